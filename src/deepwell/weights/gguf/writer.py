"""GGUF files out, from front to back: `gguf.py` states the format, and reads them."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.tensor_stream import TensorStream

ALIGNMENT = 32
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64, _FLOAT64 = 4, 6, 7, 8, 9, 10, 11, 12
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "u8": 10, "i8": 11, "f8": 12}

Progress = Callable[[int, int], None]
Planned = Sequence[tuple[TensorStream, str]]
"""Tensors and the ggml type that each is written in."""


def gguf_size(metadata: Mapping[str, Any], planned: Planned) -> int:
    """Bytes of the file that `write_gguf` makes."""
    head, ends = _head(metadata, planned)
    return len(head) + (ends[-1] if ends else 0)


def write_gguf(
    file: Path, metadata: Mapping[str, Any], planned: Planned, progress: Progress, release: Callable[[], None]
) -> None:
    """Write `file` and have it on the disk. A tensor is read in pieces; `release` lets go of what was read.

    Raises OSError while writing, and then the file is for the caller to remove.
    """
    head, ends = _head(metadata, planned)
    total = len(head) + (ends[-1] if ends else 0)
    with file.open("wb") as out:
        done = out.write(head)
        for (tensor, kind), end in zip(planned, ends, strict=True):
            for raw in tensor.encoded(kind, release):
                done += out.write(raw.data)
                progress(done, total)
            done += out.write(bytes(len(head) + end - done))
        out.flush()
        os.fsync(out.fileno())
    progress(total, total)


def _head(metadata: Mapping[str, Any], planned: Planned) -> tuple[bytes, list[int]]:
    """All before the data, padded, and where each tensor's padded data ends."""
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(planned), len(metadata))]
    parts += [_string(key) + _typed(value) for key, value in metadata.items()]
    at, ends = 0, []
    for tensor, kind in planned:
        shape = tensor.shape[::-1]
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", BY_NAME[kind].code, at))
        at = _aligned(at + tensor.nbytes(kind))
        ends.append(at)
    head = b"".join(parts)
    return head.ljust(_aligned(len(head)), b"\0"), ends


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """A metadata value behind the number of its type. Arrays are of numbers, lists of one type of anything else."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return struct.pack("<II", _UINT32, value)
        return struct.pack("<Iq", _INT64, value) if value < 1 << 63 else struct.pack("<IQ", _UINT64, value)
    if isinstance(value, float):
        fits = abs(value) <= _LARGEST_FLOAT32 or not math.isfinite(value)
        return struct.pack("<If", _FLOAT32, value) if fits else struct.pack("<Id", _FLOAT64, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        number = _NUMBERS[value.dtype.str[1:]]
        return struct.pack("<IIQ", _ARRAY, number, len(value)) + value.astype(value.dtype.newbyteorder("<")).tobytes()
    items = [_typed(item) for item in value]
    kind = items[0][:4] if items else struct.pack("<I", _STRING)
    return struct.pack("<I", _ARRAY) + kind + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
