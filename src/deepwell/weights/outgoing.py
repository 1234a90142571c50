"""Tensors on their way from one file into another: what each is called there, and its rows when asked for.

Whatever a model comes from, it is first seen in the order and layout of a Hugging Face checkpoint (`as_hugging_face`):
of a GGUF file, the rows of q and k are put back in order, and MLA's halves of kv_b are joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import ConfigError
from deepwell.model.params import Param
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.chunks import RELEASE_EVERY, chunks
from deepwell.weights.encode import encode
from deepwell.weights.gguf.checkpoint import GgufCheckpoint, joined
from deepwell.weights.gguf.ggml_types import BY_NAME, values_in
from deepwell.weights.source import Source

Rows = NDArray[np.float32]
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
Q_OR_K = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)")


class Outgoing(msgspec.Struct, frozen=True):
    """A tensor to be written. `dtype` is the type it has now, a ggml type's name or `float8`.

    `read(begin, end)` gives rows as float32, (rows, values of a row); begin and end are multiples of `unit`, or the
    end. A vector is rows of one value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Rows]
    unit: int = 1

    @property
    def count(self) -> int:
        """Rows: all dimensions but the last; the values of a vector."""
        return values_in(self.shape[:-1] if len(self.shape) > 1 else self.shape)

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def nbytes(self, kind: str) -> int:
        """Bytes that it takes as a ggml type."""
        return self.count * BY_NAME[kind].row_bytes(self.width)

    def pieces(self) -> Iterator[Rows]:
        for begin, end in chunks(self.count, self.width, self.unit):
            yield self.read(begin, end)

    def encoded(self, kind: str, release: Callable[[], None]) -> Iterator[NDArray[np.uint8]]:
        """Its bytes as a ggml type, piece by piece. ConfigError names the tensor that the type cannot hold.

        `release` lets go of the memory that holds what was read; it is called now and then, and at the end.
        """
        for number, rows in enumerate(self.pieces(), 1):
            try:
                yield encode(kind, rows)
            except ValueError as error:
                raise ConfigError(f"tensor {self.name} {error}; choose another --dtype") from None
            if number % RELEASE_EVERY == 0:
                release()
        release()


def as_hugging_face(source: Source, *, extra: bool = False) -> list[Outgoing]:
    """A model's tensors as a Hugging Face checkpoint has them. With `extra`, also those that Deepwell does not read.

    ConfigError for a packed file, whose values are no longer those of a checkpoint.
    """
    if isinstance(source, Checkpoint):
        needed = [name for param in (*source.params, *source.further) for name in param.sources]
        rest = sorted(source.tensors.keys() - needed) if extra else []
        return [_stored(source, name) for name in (*needed, *rest)]
    if isinstance(source, GgufCheckpoint):
        return [tensor for param in source.params for tensor in _of_gguf(source, param)]
    raise ConfigError(f"{source.path} is a packed file; convert what it was made of instead")


def _stored(source: Checkpoint, name: str) -> Outgoing:
    tensor = source.tensors[name]
    return Outgoing(name, tensor.shape, _TYPES.get(tensor.dtype, "float8"), tensor.rows)


def _of_gguf(source: GgufCheckpoint, param: Param) -> Iterator[Outgoing]:
    if param.kind == "kv_b" and (halves := source.kv_halves(param)) is not None:
        keys, values = halves
        height = keys.shape[2] + values.shape[1]

        def read(begin: int, end: int) -> Rows:
            return np.concatenate([joined(keys[head], values[head]) for head in range(begin // height, end // height)])

        wider = max(keys.dtype, values.dtype, key=lambda kind: BY_NAME[kind].layout.itemsize / BY_NAME[kind].width)
        yield Outgoing(param.sources[0], param.shape, wider, read, height)
        return
    for name, tensor in source.sources(param):
        if source.config.interleaved and Q_OR_K.fullmatch(name):
            height = source.config.head_dim
            yield Outgoing(name, tensor.shape, tensor.dtype, partial(_halved, tensor.rows, height), height)
        else:
            yield Outgoing(name, tensor.shape, tensor.dtype, tensor.rows)


def _halved(rows: Callable[[int, int], Rows], height: int, begin: int, end: int) -> Rows:
    """Rows of heads whose rotated pairs are neighbours, as two halves of pairs."""
    values = rows(begin, end)
    return values.reshape(-1, height // 2, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def paired(tensor: Outgoing, height: int) -> Outgoing:
    """The inverse: each head's two halves of rotated pairs, as neighbours."""

    def read(begin: int, end: int) -> Rows:
        values = tensor.read(begin, end)
        return values.reshape(-1, 2, height // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)

    return msgspec.structs.replace(tensor, read=read, unit=height)
