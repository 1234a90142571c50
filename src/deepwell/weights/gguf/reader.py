"""GGUF files, read by memory map. The file is untrusted: every length, count and offset in it is checked before use.

Format (versions 2 and 3, little-endian): magic "GGUF", u32 version, u64 count of tensors, u64 count of metadata keys;
each key: string, u32 type, value; each tensor: string name, u32 count of dimensions, u64 dimensions (innermost first),
u32 type, u64 offset; then, at a multiple of `general.alignment`, the data that the offsets count from. A string is a
u64 length and UTF-8; an array is a u32 type of its items, a u64 count and the items.

A model split over files names them `…-00001-of-0000N.gguf`; the first holds the metadata and is the one to open.
"""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError, shown
from deepwell.files import open_regular
from deepwell.weights.explain import pointer
from deepwell.weights.gguf.ggml_types import BY_CODE, NAMES, GgmlType, values_in
from deepwell.weights.gguf.keys import General
from deepwell.weights.values import all_finite

MAX_HEADER_BYTES = 128 << 20
"""Metadata and tensor list together; a vocabulary of 256,000 tokens takes about 20 MB."""
MAX_KEYS, MAX_TENSORS, MAX_SHARDS = 1 << 16, 1 << 17, 1 << 12
MAX_NAME_BYTES, MAX_STRING_BYTES, MAX_ITEMS, MAX_NESTING = 1 << 10, 16 << 20, 1 << 22, 4
MAX_DIMENSION = 1 << 32

_MAGIC = b"GGUF"
_ARRAY, _STRING, _BOOL, _FLOAT32 = 9, 8, 7, 6
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_SMALLEST = {_ARRAY: 12, _STRING: 8, _BOOL: 1} | {code: int(text[2]) for code, text in _NUMBERS.items()}
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GgufTensor:
    """A tensor in a mapped file; nothing of it is read before it is asked for.

    `shape` is in numpy's order, outputs before inputs; `dtype` is ggml's name of the type in lower case.
    """

    def __init__(self, file: Path, name: str, type: GgmlType, shape: tuple[int, ...], raw: NDArray[np.uint8]) -> None:
        self.file, self.name, self.shape = file, name, shape
        self._type, self._raw = type, raw

    @property
    def dtype(self) -> str:
        return self._type.name

    def blocks(self) -> NDArray[np.uint8]:
        """The bytes as stored (rows, bytes per row), without a copy; rows are all dimensions but the last."""
        return self._raw.reshape(-1, self._type.row_bytes(self.shape[-1]))

    @property
    def count(self) -> int:
        """Rows: all dimensions but the last; the values of a vector."""
        return values_in(self.shape[:-1] if len(self.shape) > 1 else self.shape)

    def float32(self) -> NDArray[np.float32]:
        """All values, exactly, in the tensor's shape. CheckpointError if one of them is not a finite number."""
        return self._finite(self._type.float32(self.blocks())).reshape(self.shape)

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Some of the `count` rows, (rows, values of a row). CheckpointError if a value is not a finite number."""
        if len(self.shape) == 1:
            return self.float32()[begin:end, None]
        return self._finite(self._type.float32(self.blocks()[begin:end]))

    def _finite(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not all_finite(values):
            raise CheckpointError(f"{self.file.name}: tensor {self.name} holds values that are not finite numbers")
        return values

    def __getitem__(self, index: int) -> GgufTensor:
        """One entry along the first of several dimensions (an expert, a head), without a copy."""
        if len(self.shape) < 2 or not 0 <= index < self.shape[0]:
            raise IndexError(f"{self.name} of shape {self.shape} has no entry {index}")
        each = len(self._raw) // self.shape[0]
        part = self._raw[index * each : (index + 1) * each]
        return GgufTensor(self.file, f"{self.name}[{index}]", self._type, self.shape[1:], part)

    def sample(self) -> bytes:
        """The first kilobyte as stored: enough to look a copy up by, never to name the tensor."""
        return self._raw[:1024].tobytes()


class GgufFile:
    """An opened model: `metadata` by key (strings, numbers, bools; lists of strings or arrays; numpy arrays of
    numbers), `tensors` by name, and the `files` they are mapped from, in order."""

    def __init__(self, path: Path) -> None:
        """Open `path` and, if the model is split, its other shards. CheckpointError says what is wrong and where."""
        _refuse_later_shard(path)
        self.files = [path]
        self.metadata, self.tensors = _read(path)
        if (count := self._split("split.count", 1)) > 1:
            self._open_others(path, count)

    def _open_others(self, path: Path, count: int) -> None:
        match = _SHARD.match(path.name)
        if match is None or int(match["count"]) != count:
            raise CheckpointError(
                f"{path}: is part of a model of {count} files, whose names must end in -00001-of-{count:05}.gguf"
            )
        for number in range(2, count + 1):
            shard = path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
            if not shard.exists():
                raise CheckpointError(f"{shard}: is missing; {path.name} is the first of {count} files")
            metadata, tensors = _read(shard)
            found = {key: metadata.get(key) for key in ("split.no", "split.count")}
            if not all(isinstance(value, int) for value in found.values()) or [*found.values()] != [number - 1, count]:
                told = " and ".join(f"{key} {shown(value)}" for key, value in found.items())
                raise CheckpointError(f"{shard}: has {told}; expected are {number - 1} and {count}")
            for name in tensors.keys() & self.tensors.keys():
                raise CheckpointError(f"{shard}: tensor {name} is in {self.tensors[name].file.name} too")
            self.tensors |= tensors
            self.files.append(shard)
        if (wanted := self._split("split.tensors.count", len(self.tensors))) != len(self.tensors):
            raise CheckpointError(f"{path}: split.tensors.count is {wanted}, its files hold {len(self.tensors)}")

    def _split(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        allowed = MAX_SHARDS if key == "split.count" else MAX_TENSORS
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= allowed:
            raise CheckpointError(f"{self.files[0]}: {key} is {shown(value)}; allowed are 0 to {allowed}")
        return value


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file: by its suffix, or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    try:
        with open_regular(path) as stream:
            return stream.read(4) == _MAGIC
    except OSError:
        return False


def _refuse_later_shard(path: Path) -> None:
    match = _SHARD.match(path.name)
    if match is not None and int(match["number"]) != 1:
        first = f"{match['stem']}-00001-of-{match['count']}.gguf"
        raise CheckpointError(f"{path}: is shard {int(match['number'])} of a split model; give the first, {first}")


class _Cursor:
    """Reads forward in the header, never past its end; `what` names what is being read, for errors."""

    def __init__(self, file: Path, data: NDArray[np.uint8]) -> None:
        self.file, self.size = file, len(data)
        self._data = data[:MAX_HEADER_BYTES].data
        self.at, self.what, self._items = 0, "the header", 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.what} {problem}")

    def take(self, count: int) -> memoryview:
        if count > len(self._data) - self.at:
            if self.size > MAX_HEADER_BYTES:
                raise self.error(f"lies beyond the {MAX_HEADER_BYTES} bytes allowed for metadata and tensor list")
            raise self.error(f"needs {count} bytes at byte {self.at}, and the file ends at {self.size}: it is cut off")
        part = self._data[self.at : self.at + count]
        self.at += count
        return part

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def string(self, limit: int = MAX_STRING_BYTES) -> str:
        length = self.number("Q")
        if length > limit:
            raise self.error(f"would be {length} bytes long; allowed are {limit}")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as e:
            raise self.error(f"is not valid UTF-8 at byte {e.start} of {length}") from None

    def value(self, code: int, depth: int = 0) -> Any:
        if code == _STRING:
            return self.string()
        if code == _ARRAY:
            return self._array(depth)
        if code == _BOOL:
            return self._bools(1)[0]
        if code not in _NUMBERS:
            raise self.error(f"has the value type {code}; allowed are 0 to 12")
        number = np.frombuffer(self.take(_SMALLEST[code]), _NUMBERS[code])[0]
        # the shortest decimal is what was written: 1e-6, not the 9.99999997e-7 that float32 makes of it
        return float(str(number)) if code == _FLOAT32 else number.item()

    def _array(self, depth: int) -> Any:
        code, count = self.number("I"), self.number("Q")
        if code not in _SMALLEST:
            raise self.error(f"is an array of type {code}; allowed are 0 to 12")
        if depth >= MAX_NESTING:
            raise self.error(f"nests arrays more than {MAX_NESTING} deep")
        self._items += count
        if self._items > MAX_ITEMS:
            raise self.error(f"has {count} items; all arrays together may have {MAX_ITEMS}")
        if count * _SMALLEST[code] > len(self._data) - self.at:
            raise self.error(f"has {count} items, more than the file could hold: it is cut off or broken")
        if code in _NUMBERS:
            return np.frombuffer(self.take(count * _SMALLEST[code]), _NUMBERS[code])
        if code == _BOOL:
            return self._bools(count)
        return [self.value(code, depth + 1) for _ in range(count)]

    def _bools(self, count: int) -> list[bool]:
        raw = bytes(self.take(count))
        if max(raw, default=0) > 1:
            raise self.error(f"has the bool {max(raw)}; allowed are 0 and 1")
        return [byte == 1 for byte in raw]


def _read(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with open_regular(file) as opened:
            data: NDArray[np.uint8] = np.memmap(opened, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{file}: cannot be mapped: {e}") from e
    if other := pointer(bytes(data[:64])):
        raise CheckpointError(f"{file}: is {other}")
    cursor = _Cursor(file, data)
    tensors = _preamble(cursor)
    metadata = _metadata(cursor)
    infos = [_info(cursor, index) for index in range(tensors)]
    alignment = _alignment(file, metadata)
    start = -(-cursor.at // alignment) * alignment
    placed: dict[str, GgufTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, shape, code, offset in infos:
        if name in placed:
            raise CheckpointError(f"{file}: two tensors are named {name}")
        begin, end, kind = _span(file, name, shape, code, offset, alignment, len(data) - start)
        spans.append((begin, end, name))
        placed[name] = GgufTensor(file, name, kind, shape, data[start + begin : start + end].view(np.ndarray))
    _refuse_overlap(file, spans)
    return metadata, placed


def _preamble(cursor: _Cursor) -> int:
    """Checks magic and version; gives the count of tensors."""
    cursor.what = "the magic"
    if (magic := bytes(cursor.take(4))) != _MAGIC:
        raise cursor.error(f"is {magic!r}, not {_MAGIC!r}: this is no GGUF file")
    cursor.what = "the version"
    version = cursor.number("I")
    if version not in (2, 3):
        if version & 0xFFFF == 0 and version:
            raise cursor.error("is written big-endian; supported are little-endian files")
        raise cursor.error(f"is {version}; supported are 2 and 3")
    cursor.what = "the count of tensors"
    if (tensors := int(cursor.number("Q"))) > MAX_TENSORS:
        raise cursor.error(f"is {tensors}; allowed are {MAX_TENSORS}")
    return tensors


def _metadata(cursor: _Cursor) -> dict[str, Any]:
    cursor.what = "the count of metadata keys"
    if (count := cursor.number("Q")) > MAX_KEYS:
        raise cursor.error(f"is {count}; allowed are {MAX_KEYS}")
    metadata: dict[str, Any] = {}
    for index in range(count):
        cursor.what = f"the name of metadata key {index}"
        key = cursor.string(MAX_NAME_BYTES)
        if key in metadata:
            raise CheckpointError(f"{cursor.file}: two metadata keys are named {key}")
        cursor.what = f"metadata key {key}"
        metadata[key] = cursor.value(cursor.number("I"))
    return metadata


def _info(cursor: _Cursor, index: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (outermost first), type and offset of a tensor, as written."""
    cursor.what = f"the name of tensor {index}"
    name = cursor.string(MAX_NAME_BYTES)
    cursor.what = f"tensor {name}"
    if not 1 <= (dimensions := cursor.number("I")) <= 4:
        raise cursor.error(f"has {dimensions} dimensions; allowed are 1 to 4")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    if not all(1 <= n <= MAX_DIMENSION for n in shape):
        raise cursor.error(f"has shape {shape}; allowed are dimensions of 1 to {MAX_DIMENSION}")
    return name, shape, cursor.number("I"), cursor.number("Q")


def _alignment(file: Path, metadata: dict[str, Any]) -> int:
    alignment = metadata.get(General.ALIGNMENT, 32)
    good = isinstance(alignment, int) and not isinstance(alignment, bool) and 8 <= alignment <= 1 << 20
    if not good or alignment & (alignment - 1):
        raise CheckpointError(
            f"{file}: general.alignment is {shown(alignment)}; allowed are powers of two from 8 to {1 << 20}"
        )
    return int(alignment)


def _span(
    file: Path, name: str, shape: tuple[int, ...], code: int, offset: int, alignment: int, size: int
) -> tuple[int, int, GgmlType]:
    """First byte and end of a tensor in the data, with its type."""
    kind = BY_CODE.get(code)
    if kind is None:
        raise CheckpointError(f"{file}: tensor {name} is of ggml type {code}; supported are {NAMES}")
    if shape[-1] % kind.width:
        raise CheckpointError(
            f"{file}: tensor {name} has rows of {shape[-1]} values; {kind.name} needs a multiple of {kind.width}"
        )
    if offset % alignment:
        raise CheckpointError(f"{file}: tensor {name} starts at byte {offset}, which is no multiple of {alignment}")
    end = offset + kind.row_bytes(values_in(shape))
    if end > size:
        missing = end - max(size, 0)
        raise CheckpointError(
            f"{file}: tensor {name} of shape {shape} ends {missing} bytes after the file: the file is cut off"
        )
    return offset, end, kind


def _refuse_overlap(file: Path, spans: list[tuple[int, int, str]]) -> None:
    spans.sort()
    for (_, end, before), (begin, _, name) in itertools.pairwise(spans):
        if begin < end:
            raise CheckpointError(f"{file}: tensor {name} starts at byte {begin}, but {before} ends at {end}")
