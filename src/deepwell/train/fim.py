"""Fill-in-the-middle: half of the texts are shown as prefix, suffix, then the middle to write (PSM order)."""

from __future__ import annotations

import numpy as np

from deepwell.chat.fim import around_gap


def split_points(length: int, random: np.random.Generator) -> tuple[int, int]:
    """Two places, in order, that cut a text of `length` characters into prefix, middle and suffix."""
    first, second = sorted(int(place) for place in random.integers(0, length + 1, 2))
    return first, second


def psm(prefix: list[int], middle: list[int], suffix: list[int], begin: int, hole: int, end: int) -> list[int]:
    """What a model reads, and then writes, to fill a hole."""
    return [*around_gap(prefix, suffix, (begin, hole, end)), *middle]
