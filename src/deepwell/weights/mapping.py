"""Mapped files: letting go of pages once their values have been packed."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def maps_behind(arrays: Iterable[NDArray[Any]]) -> list[mmap.mmap]:
    """The memory maps that arrays are views of, each once."""
    return list({id(found): found for array in arrays if (found := _map_behind(array)) is not None}.values())


def release(maps: Iterable[mmap.mmap]) -> None:
    """Give the resident pages of mapped files back; they are read again when used again."""
    for mapped in maps:
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _map_behind(array: NDArray[np.uint8]) -> mmap.mmap | None:
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner
