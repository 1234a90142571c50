"""A model in a GGUF file: its tensors under the names of `param_specs`, checked against the parameters it needs."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.model.config import ModelConfig
from deepwell.model.params import Param, param_specs
from deepwell.ops.storages import GGML_FLOATS
from deepwell.weights.advice import Advice, of_gguf
from deepwell.weights.chunks import chunks
from deepwell.weights.gguf.config import model_config
from deepwell.weights.gguf.ggml_types import values_in
from deepwell.weights.gguf.names import gguf_name
from deepwell.weights.gguf.reader import GgufFile, GgufTensor
from deepwell.weights.gguf.tokenizer import tokenizer_from
from deepwell.weights.mapping import maps_behind, release
from deepwell.weights.tokenizer import Tokenizer

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_UNUSED = ("rope_freqs.weight",)


class GgufCheckpoint:
    """An opened GGUF model. `tensors` are mapped, not read; `stored` is the type most weights are kept in."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self.path, self.tensors = path, self._file.tensors
        self.notes: list[str] = []
        self.config: ModelConfig = model_config(self._file, self.notes)
        self.params = param_specs(self.config)
        self.mtp_params: list[Param] = []
        self.is_blocks = True
        for param in self.params:
            self._check(param)
        self._check_extra()

    @property
    def files(self) -> list[Path]:
        return self._file.files

    @property
    def stored(self) -> str:
        """float32, float16, bfloat16 or the name of a ggml type."""
        values: Counter[str] = Counter()
        for tensor in self.tensors.values():
            values[tensor.dtype] += values_in(tensor.shape)
        dtype = values.most_common(1)[0][0]
        return GGML_FLOATS.get(dtype, dtype)

    @property
    def sample(self) -> bytes:
        """16 bytes to look copies up by: config and, of every tensor, name, type, shape and first values."""
        digest = hashlib.blake2b(msgspec.json.encode(self.config), digest_size=16)
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.sample())
        return digest.digest()

    @property
    def metadata(self) -> dict[str, Any]:
        """All keys of the file, as `GgufFile` has them."""
        return self._file.metadata

    @property
    def advice(self) -> Advice:
        return of_gguf(self.metadata)

    def tokenizer(self) -> Tokenizer:
        return tokenizer_from(self._file)

    def pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a parameter seen as a matrix, a piece of a source tensor at a time."""
        if param.kind == "kv_b" and (halves := self.kv_halves(param)) is not None:
            keys, values = halves
            for head in range(keys.shape[0]):
                yield head * (keys.shape[2] + values.shape[1]), joined(keys[head], values[head])
            return
        row = 0
        for _, tensor in self.sources(param):
            if len(tensor.shape) == 1:
                yield row, tensor.float32()
            else:
                for begin, end in chunks(tensor.count, tensor.shape[-1]):
                    yield row + begin, tensor.rows(begin, end)  # and not held here, while the next one is read
            row += tensor.count

    def whole(self, param: Param) -> NDArray[np.float32]:
        return np.concatenate([piece for _, piece in self.pieces(param)]).reshape(param.shape)

    def source_dtype(self, param: Param) -> str | None:
        """The one ggml type that all sources of a parameter have; None if they differ or their rows are regrouped."""
        if param.kind == "kv_b" and (halves := self.kv_halves(param)) is not None:
            return halves[0].dtype if halves[0].dtype == halves[1].dtype else None
        types = {self.tensors[gguf_name(source)[0]].dtype for source in param.sources}
        return types.pop() if len(types) == 1 else None

    def block_pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(first row, raw rows as stored) like `pieces`, without a copy; for parameters that have a `source_dtype`."""
        row = 0
        for _, tensor in self.sources(param):
            blocks = tensor.blocks()
            yield row, blocks
            row += len(blocks)

    def kv_blocks(self, param: Param) -> tuple[tuple[str, NDArray[np.uint8]], tuple[str, NDArray[np.uint8]]] | None:
        """Type and raw rows of MLA's keys and of its values, where the file has them apart."""
        if (halves := self.kv_halves(param)) is None:
            return None
        keys, values = halves
        return (keys.dtype, keys.blocks()), (values.dtype, values.blocks())

    def packed(self, param: Param) -> None:
        return None

    def digests(self, param: Param) -> tuple[str, ...]:
        return ()

    def release(self) -> None:
        """Let go of the mapped pages that were read."""
        release(self._maps)

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        return maps_behind(tensor.blocks() for tensor in self.tensors.values())

    def kv_halves(self, param: Param) -> tuple[GgufTensor, GgufTensor] | None:
        """MLA's kv_b as newer files store it, for absorbed attention: keys (heads, latent, nope) and values
        (heads, value, latent). None where the file has kv_b in one piece."""
        prefix = gguf_name(param.sources[0])[0].removesuffix("attn_kv_b.weight")
        keys, values = (self.tensors.get(f"{prefix}attn_{part}_b.weight") for part in "kv")
        if keys is None or values is None:
            return None
        return keys, values

    def sources(self, param: Param) -> Iterator[tuple[str, GgufTensor]]:
        """The tensors that a parameter is made of, beside the names that `param_specs` has for them."""
        for source in param.sources:
            name, index = gguf_name(source)
            yield source, self.tensors[name] if index is None else self.tensors[name][index]

    def _check(self, param: Param) -> None:
        if param.kind == "kv_b" and (halves := self.kv_halves(param)) is not None:
            self._check_halves(*halves)
            return
        rows = values_in(param.shape[:-1]) if len(param.shape) > 1 else param.shape[0]
        wanted = (rows // len(param.sources), *(param.shape[-1:] if len(param.shape) > 1 else ()))
        # experts share a tensor, which need be looked at once
        stacks = {name: index is not None for name, index in map(gguf_name, param.sources)}
        for name, stacked in stacks.items():
            self._check_shape(name, (param.shape[0], *wanted) if stacked else wanted)

    def _check_halves(self, keys: GgufTensor, values: GgufTensor) -> None:
        mla = self.config.mla
        if mla is not None:
            self._check_shape(keys.name, (self.config.heads, mla.kv_lora, mla.nope))
            self._check_shape(values.name, (self.config.heads, mla.value, mla.kv_lora))

    def _check_shape(self, name: str, wanted: tuple[int, ...]) -> None:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path}: tensor {name} is missing; the metadata call for {wanted}")
        if tensor.shape != wanted:
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has shape {tensor.shape}; the metadata call for {wanted}"
            )

    def _check_extra(self) -> None:
        known = {gguf_name(source)[0] for param in self.params for source in param.sources}
        for name, tensor in self.tensors.items():
            block = _BLOCK.fullmatch(name)
            if name in known or name in _UNUSED or (block and int(block[1]) >= self.config.layers):
                continue  # blocks behind the last layer predict further tokens
            if self.config.mla is None or not block or block[2] not in ("attn_k_b.weight", "attn_v_b.weight"):
                raise CheckpointError(f"{tensor.file}: tensor {name} is none of a {self.config.family} model's")


def joined(keys: GgufTensor, values: GgufTensor) -> NDArray[np.float32]:
    """A head's rows of kv_b (nope+value, latent) from its halves: the nope rows, then the value rows."""
    return np.concatenate([keys.float32().T, values.float32()])
