"""safetensors files, read by memory map without torch. The header is untrusted: everything it says is checked.

Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.files import open_regular
from deepwell.weights.explain import AGAIN, pointer
from deepwell.weights.values import all_finite

MAX_HEADER_BYTES = 100 << 20


class StoredType(NamedTuple):
    """A type of the format: numpy's view of it, bytes of a value, what Deepwell calls it, and its name in ggml."""

    view: str
    width: int
    name: str
    ggml: str | None = None


TYPES: Mapping[str, StoredType] = {
    "F32": StoredType("<f4", 4, "float32", "f32"),
    "F16": StoredType("<f2", 2, "float16", "f16"),
    "BF16": StoredType("<u2", 2, "bfloat16", "bf16"),
    "F8_E4M3": StoredType("u1", 1, "float8"),
    "F8_E5M2": StoredType("u1", 1, "float8"),
    "F8_E8M0": StoredType("u1", 1, "float8"),
}
"""What is read; those with a name in ggml are written too (safetensors_writer.py)."""


def _small_float(exponent_bits: int, bias: int, *, infinity: bool) -> NDArray[np.float32]:
    """The 256 values of an 8-bit float: sign, exponent, mantissa. Without infinity only the last code is no number."""
    codes = np.arange(128, dtype=np.int64)
    mantissa_bits = 7 - exponent_bits
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    values = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    last = exponent == (1 << exponent_bits) - 1
    values[last & ((mantissa != 0) if infinity else (mantissa == (1 << mantissa_bits) - 1))] = np.nan
    if infinity:
        values[last & (mantissa == 0)] = np.inf
    return np.concatenate([values, -values]).astype(np.float32)


_BYTE_VALUES = {
    "F8_E4M3": _small_float(4, 7, infinity=False),
    "F8_E5M2": _small_float(5, 15, infinity=True),
    "F8_E8M0": np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32),
}
"""What each byte of an 8-bit type stands for (OCP 8-bit floating point specification; E8M0 is a power of two)."""


class Tensor:
    """A tensor in a mapped file: its values are read, and turned into float32, when asked for. `raw` is as stored."""

    def __init__(self, file: Path, name: str, dtype: str, shape: tuple[int, ...], raw: NDArray[Any]) -> None:
        self.file, self.name, self.dtype, self.shape = file, name, dtype, shape
        self.raw = raw

    @property
    def count(self) -> int:
        """Rows: all dimensions but the last; the values of a vector."""
        return math.prod(self.shape[:-1] if len(self.shape) > 1 else self.shape)

    def float32(self) -> NDArray[np.float32]:
        """All values, in the tensor's shape. CheckpointError if one of them is not a finite number."""
        return self.rows(0, self.count).reshape(self.shape)

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Some of the `count` rows, (rows, values of a row). CheckpointError if a value is not a finite number."""
        width = self.shape[-1] if len(self.shape) > 1 else 1
        stored = self.raw.reshape(self.count, width)[begin:end]
        values: NDArray[np.float32]
        if self.dtype == "BF16":
            wide = stored.astype(np.uint32)
            wide <<= np.uint32(16)
            values = wide.view(np.float32)
        elif self.dtype in _BYTE_VALUES:
            values = _BYTE_VALUES[self.dtype][stored]
        else:
            values = stored.astype(np.float32)
        if not all_finite(values):
            raise CheckpointError(
                f"{self.file.name}: tensor {self.name} holds values that are not finite numbers; the file or the model "
                "in it is damaged: get it anew"
            )
        return values

    def sample(self) -> bytes:
        """The first values as stored: enough to look a copy up by, never to name the tensor."""
        return bytes(self.raw[:256].tobytes())


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read(file: Path) -> dict[str, Tensor]:
    """Map `file`. CheckpointError names the file, the tensor and what is wrong with it."""
    try:
        with open_regular(file) as opened:
            mapped = np.memmap(opened, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as e:
        what = "is empty" if file.is_file() and not file.stat().st_size else f"cannot be mapped: {e}"
        raise CheckpointError(f"{file}: {what}; {AGAIN}") from e
    if other := pointer(mapped[:64].tobytes()):
        raise CheckpointError(f"{file}: is {other}")
    header, start = _header(file, mapped)
    data = mapped[start:]
    tensors = {name: _tensor(file, name, entry, data) for name, entry in header.items()}
    _check_layout(file, header, len(data))
    return tensors


def _header(file: Path, mapped: NDArray[np.uint8]) -> tuple[dict[str, _Entry], int]:
    length = int.from_bytes(mapped[:8].tobytes(), "little") if len(mapped) >= 8 else 0
    if not 2 <= length <= min(len(mapped) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{file}: is no whole safetensors file: its header would be {length} bytes long, and it has "
            f"{len(mapped)} in all; {AGAIN}"
        )
    try:
        raw = msgspec.json.decode(mapped[8 : 8 + length].tobytes(), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        header = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{file}: its header is broken: {e}") from e
    return header, 8 + length


def _tensor(file: Path, name: str, entry: _Entry, data: NDArray[np.uint8]) -> Tensor:
    if entry.dtype not in TYPES:
        raise CheckpointError(f"{file}: tensor {name} is of type {entry.dtype}; supported are {', '.join(TYPES)}")
    dtype, width, *_ = TYPES[entry.dtype]
    begin, end = entry.data_offsets
    if any(n < 0 for n in entry.shape) or not 0 <= begin <= end:
        raise CheckpointError(f"{file}: tensor {name} has shape {entry.shape} and offsets {begin} to {end}")
    if end > len(data):
        missing = end - len(data)
        raise CheckpointError(
            f"{file}: tensor {name} ends {missing} bytes after the file: the file is cut off; {AGAIN}"
        )
    if math.prod(entry.shape) * width != end - begin:
        raise CheckpointError(f"{file}: tensor {name} of shape {entry.shape} cannot have {end - begin} bytes")
    # a copy-free view needs no alignment in numpy
    raw = np.frombuffer(data[begin:end], dtype=dtype)
    return Tensor(file, name, entry.dtype, tuple(entry.shape), raw)


def _check_layout(file: Path, header: dict[str, _Entry], size: int) -> None:
    """Tensors must follow each other without gap or overlap and fill the file."""
    at, before = 0, "the header"
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != at:
            raise CheckpointError(f"{file}: tensor {name} starts at byte {begin}, but {before} ends at {at}")
        at, before = end, f"tensor {name}"
    if at != size:
        raise CheckpointError(f"{file}: {size - at} bytes follow the last tensor")
