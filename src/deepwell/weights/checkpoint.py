"""A Hugging Face model folder: config.json, safetensors shards, checked against the parameters the model needs."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import count as count_from
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.model.config import ModelConfig, from_hugging_face
from deepwell.model.params import Param, param_specs
from deepwell.weights.advice import Advice, of_generation
from deepwell.weights.block_fp8 import block_format, pair
from deepwell.weights.chunks import chunks
from deepwell.weights.explain import AGAIN, decided_by, no_config, no_weights, stranger
from deepwell.weights.json_files import read_json, read_object
from deepwell.weights.mapping import maps_behind, release
from deepwell.weights.safetensors import TYPES, Tensor, read
from deepwell.weights.tokenizer import MAX_CONFIG_BYTES, TOOL_TEMPLATE_FILE, Tokenizer

_OF_MODULE = re.compile(r"model\.layers\.(\d+)\.(?:enorm|hnorm|eh_proj|shared_head)\.")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model folder. CheckpointError if there is none, or none that is an object."""
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{folder}: {no_config(folder)}")
    return read_object(file)


class Checkpoint:
    """An opened model folder. `tensors` are mapped, not read; `stored` is the type that most weights are kept in.

    Block-FP8 weights are joined to their scales: they have the values of the products and the type `float8`.

    `params` are the decoder's, `mtp_params` those of its multi-token prediction modules, empty if the files lack them.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"{folder}: {what}; give a folder with config.json and *.safetensors, a .gguf or a .deepwell file"
            )
        self.folder = self.path = folder
        self.is_blocks = False
        self.notes: list[str] = []
        raw = read_config(folder)
        self.config: ModelConfig = from_hugging_face(raw)
        self.tensors = pair(_open(folder), block_format(folder / "config.json", raw))
        self.params = param_specs(self.config)
        self.mtp_params = self._mtp_params()
        for param in self.params + self.mtp_params:
            self._check(param)
        self._check_extra()

    @property
    def files(self) -> list[Path]:
        """All that may decide what the model is: configs, tokenizer, chat template and shards."""
        return [
            found
            for kind in ("*.json", "*.jinja", TOOL_TEMPLATE_FILE, "*.safetensors")
            for found in self.folder.glob(kind)
        ]

    @property
    def stored(self) -> str:
        sizes: Counter[str] = Counter()
        for param in self.params:
            for source in param.sources:
                sizes[TYPES[self.tensors[source].dtype].name] += param.size // len(param.sources)
        return sizes.most_common(1)[0][0]

    @property
    def sample(self) -> bytes:
        """16 bytes to look copies up by: config and, of every tensor, name, type, shape and first values."""
        digest = hashlib.blake2b(msgspec.json.encode(self.config), digest_size=16)
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.sample())
        return digest.digest()

    @property
    def advice(self) -> Advice:
        file = self.folder / "generation_config.json"
        return of_generation(read_object(file, MAX_CONFIG_BYTES)) if os.path.lexists(file) else Advice()

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    def pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a parameter seen as a matrix, a piece of a source tensor at a time."""
        row = 0
        for source in param.sources:
            tensor = self.tensors[source]
            if len(tensor.shape) == 1:
                yield row, tensor.float32()
            else:
                for begin, end in chunks(tensor.count, tensor.shape[-1]):
                    yield row + begin, tensor.rows(begin, end)  # and not held here, while the next one is read
            row += tensor.count

    def whole(self, param: Param) -> NDArray[np.float32]:
        return np.concatenate([piece for _, piece in self.pieces(param)]).reshape(param.shape)

    def source_dtype(self, param: Param) -> str | None:
        return None

    def block_pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        return iter(())

    def kv_blocks(self, param: Param) -> None:
        return None

    def packed(self, param: Param) -> None:
        return None

    def digests(self, param: Param) -> tuple[str, ...]:
        return ()

    def release(self) -> None:
        """Let go of the mapped pages that were read."""
        release(self._maps)

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        return maps_behind(tensor.raw for tensor in self.tensors.values())

    def _mtp_params(self) -> list[Param]:
        """All or nothing: many copies of a model come without the modules or with a part of them, though the config
        still counts them. No answer depends on them."""
        specs = param_specs(self.config, mtp=True)[len(self.params) :]
        wanted = [source for param in specs for source in param.sources]
        missing = [source for source in wanted if source not in self.tensors]
        if 0 < len(missing) < len(wanted):
            self.notes.append(
                f"{len(missing)} tensors of the multi-token prediction module are missing, {missing[0]} among them: "
                "the model is read without the module"
            )
        return [] if missing else specs

    def _check(self, param: Param) -> None:
        rows = int(np.prod(param.shape[:-1])) if len(param.shape) > 1 else param.shape[0]
        tail = param.shape[-1:] if len(param.shape) > 1 else ()
        wanted = (rows // len(param.sources), *tail)
        for source in param.sources:
            tensor = self.tensors.get(source)
            if tensor is None:
                raise CheckpointError(
                    f"{self.folder}: tensor {source} is missing; the config calls for {wanted}. A file of the model is "
                    "absent, or config.json is of another one"
                )
            if tensor.shape != wanted:
                raise CheckpointError(
                    f"{tensor.file}: tensor {source} has shape {tensor.shape}; the config calls for {wanted}: compare "
                    f"{decided_by(source, tensor.shape, wanted)} in config.json"
                )

    def _check_extra(self) -> None:
        known = {source for param in self.params for source in param.sources} | {"lm_head.weight"}
        modules = self.config.mtp_layers or self._uncounted_modules()
        drafts = tuple(f"model.layers.{self.config.layers + k}." for k in range(modules))
        for name, tensor in self.tensors.items():
            if name not in known and not name.startswith(drafts) and not name.endswith("rotary_emb.inv_freq"):
                why = stranger(name, self.config)
                raise CheckpointError(f"{tensor.file}: tensor {name} is none of a {self.config.family} model's{why}")

    def _uncounted_modules(self) -> int:
        """How many prediction modules the files hold where config.json says nothing of them, by tensors that no layer
        of a decoder has."""
        found = {int(layer[1]) for name in self.tensors if (layer := _OF_MODULE.match(name))}
        count = next(k for k in count_from(0) if self.config.layers + k not in found)
        if count:
            self.notes.append(
                "config.json has no num_nextn_predict_layers: the model is read without the multi-token prediction "
                f"module that tensors of layer {self.config.layers} belong to"
            )
        return count


def _open(folder: Path) -> dict[str, Tensor]:
    if not os.path.lexists(folder / _INDEX):
        if not (folder / _SINGLE).exists():
            raise CheckpointError(f"{folder}: {no_weights(folder)}")
        return read(folder / _SINGLE)
    index = read_json(folder / _INDEX)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(f"{folder / _INDEX}: has no weight_map from tensor names to files; {AGAIN}")
    names = sorted(set(placed.values()))
    for shard in names:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{folder / _INDEX}: names the file {shard!r}; allowed are *.safetensors beside it")
    if absent := [shard for shard in names if not (folder / shard).exists()]:
        more = f" (as are {len(absent) - 1} more of {len(names)})" if len(absent) > 1 else ""
        raise CheckpointError(f"{folder / absent[0]}: is missing{more}, though {_INDEX} names it; {AGAIN}")
    shards = {shard: read(folder / shard) for shard in names}
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{folder / shard}: has no tensor {name}, though {_INDEX} places it there: index and shards are of "
                "different downloads"
            )
    return {name: shards[shard][name] for name, shard in placed.items()}
