"""Packed files: weights as the native backend keeps them in memory, so that loading is reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deepwell.errors import ConfigError

Progress = Callable[[int, int], None]
"""Told how many bytes are written, and how many there will be."""


def write_packed(source: Path, out: Path, dtype: str, progress: Progress) -> None:
    """Write the model of `source` with matrices kept as `dtype` into the new file `out`.

    Raises CheckpointError for a broken source, ConfigError for a dtype that cannot be packed, OSError while writing;
    what is then in `out` is for the caller to remove.
    """
    raise ConfigError(f"{source} cannot be packed as {dtype}: this version of Deepwell writes no packed files yet")
