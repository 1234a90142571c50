"""Tensors a piece at a time, so that reading one never takes the memory of all of it."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK_VALUES = 1 << 20
"""Values of a piece: 4 MiB as float32."""

RELEASE_EVERY = 16
"""Pieces after which the pages of a mapped file are let go."""


def chunks(rows: int, width: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """(begin, end) of pieces of rows of `width` values, in order: whole units of rows, one at the least."""
    step = max(CHUNK_VALUES // max(1, width) // unit, 1) * unit
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)
