"""safetensors shards out, with their index: `safetensors.py` states the format, and reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.safetensors import TYPES
from deepwell.weights.tensor_stream import TensorStream

INDEX = "model.safetensors.index.json"
_NAMES = {type.ggml: name for name, type in TYPES.items()}

Progress = Callable[[int, int], None]
Planned = Sequence[tuple[TensorStream, str]]
"""Tensors and the type that each is written in: f32, f16 or bf16."""


def safetensors_size(planned: Planned) -> int:
    """Bytes of the shards, but for their headers."""
    return sum(tensor.nbytes(kind) for tensor, kind in planned)


def write_safetensors(
    folder: Path, planned: Planned, most: int, progress: Progress, release: Callable[[], None]
) -> None:
    """Write shards of `most` bytes at most (a larger tensor has one alone) into `folder`, and an index if they are
    several. A tensor is read in pieces; `release` lets go of what was read.

    Raises OSError while writing, and then the files are for the caller to remove.
    """
    shards = _shards(planned, most)
    total, done = safetensors_size(planned), 0
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("xb") as out:
            out.write(_header(shard))
            for tensor, kind in shard:
                for raw in tensor.encoded(kind, release):
                    done += out.write(raw.data)
                    progress(done, total)
                placed[tensor.name] = name
            out.flush()
            os.fsync(out.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=2))


def _shards(planned: Planned, most: int) -> list[Planned]:
    """Neighbours together; in a shard the widest types first, so that each value is aligned."""
    shards: list[list[tuple[TensorStream, str]]] = [[]]
    size = 0
    for tensor, kind in planned:
        if shards[-1] and size + tensor.nbytes(kind) > most:
            shards.append([])
            size = 0
        shards[-1].append((tensor, kind))
        size += tensor.nbytes(kind)
    return [sorted(shard, key=lambda entry: -BY_NAME[entry[1]].layout.itemsize) for shard in shards]


def _header(shard: Planned) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor, kind in shard:
        end = at + tensor.nbytes(kind)
        entries[tensor.name] = {"dtype": _NAMES[kind], "shape": tensor.shape, "data_offsets": (at, end)}
        at = end
    raw = msgspec.json.encode(entries)
    raw = raw.ljust(-(-len(raw) // 8) * 8)
    return len(raw).to_bytes(8, "little") + raw
