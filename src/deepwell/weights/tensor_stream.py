"""Tensors on their way from one file into another: what each is called there, and its rows when asked for.

Whatever a model comes from, it is first seen in the order and layout of a Hugging Face checkpoint: that of a folder is
the one it has (`as_stored`), and gguf/layout.py puts a GGUF file's in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import ConfigError
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.chunks import RELEASE_EVERY, chunks
from deepwell.weights.encode import encode
from deepwell.weights.gguf.ggml_types import BY_NAME, values_in
from deepwell.weights.safetensors import TYPES, Tensor

Rows = NDArray[np.float32]


class TensorStream(msgspec.Struct, frozen=True):
    """A tensor to be written. `dtype` is the type it has now, a ggml type's name or `float8`.

    `read(begin, end)` gives rows as float32, (rows, values of a row); begin and end are multiples of `unit`, or the
    end. A vector is rows of one value.

    `importance_PK` are the mean squares of its input columns, for each of the P equal parts that its rows are made of
    (experts, heads; else one). They weigh the search of scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Rows]
    unit: int = 1
    importance_PK: Rows | None = None

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
        begin = 0
        for number, rows in enumerate(self.pieces(), 1):
            try:
                for one, importance_K in self._weighed(begin, rows):
                    yield encode(kind, one, importance_K)
            except ValueError as error:
                raise ConfigError(f"tensor {self.name} {error}; choose another --dtype") from None
            begin += len(rows)
            if number % RELEASE_EVERY == 0:
                release()
        release()

    def _weighed(self, begin: int, rows: Rows) -> Iterator[tuple[Rows, Rows | None]]:
        """Rows from `begin` on, as runs that share their importances."""
        if self.importance_PK is None:
            yield rows, None
            return
        height = self.count // len(self.importance_PK)
        for at in range(begin // height * height, begin + len(rows), height):
            yield rows[max(at - begin, 0) : at - begin + height], self.importance_PK[at // height]


def as_stored(source: Checkpoint, *, extra: bool = False) -> list[TensorStream]:
    """The tensors of a folder as they are. With `extra`, also those that Deepwell does not read."""
    needed = [name for param in (*source.params, *source.mtp_params) for name in param.sources]
    rest = sorted(source.tensors.keys() - needed) if extra else []
    return [_stored(source.tensors[name]) for name in (*needed, *rest)]


def _stored(tensor: Tensor) -> TensorStream:
    return TensorStream(tensor.name, tensor.shape, TYPES[tensor.dtype].ggml or "float8", tensor.rows)
