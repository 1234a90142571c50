"""Packed files: a model as the native backend keeps it in memory, so that loading is mapping the file.

Format (docs/packed-format.md has every field): a preamble of 64 bytes, then sections at multiples of 4096 bytes, each
right behind the one before: the parameters in the order of the table, the tokenizer (JSON), the header (JSON,
`_Header`). A matrix is the bytes of native/matrix.h's tiles, a vector its float32 values. Shapes are not written: they
follow from config.

Tiles are the same for all instruction sets. VERSION counts up whenever storage.h or matrix.h lays them out anew, or the
header changes.

The file is untrusted: sizes and offsets are checked against what the config calls for before anything is used, and a
section's checksum when it is loaded. Its BLAKE3 is recorded, not checked: it says which model this is, and is believed
as far as whoever wrote the file (loading/identity.py). A file changed in place while in use changes the model; a
truncated one ends the process, as with any mapped file. So files are only ever replaced whole.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell import _native
from deepwell.errors import CheckpointError, DeepwellError
from deepwell.files import open_regular
from deepwell.model.config import ModelConfig, check_config
from deepwell.model.params import Param, param_specs
from deepwell.ops import native
from deepwell.ops.base import MlaShape
from deepwell.ops.storages import OF_GGML, STORAGES
from deepwell.weights.advice import Advice
from deepwell.weights.digests import Digests
from deepwell.weights.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer, TokenizerState

VERSION = 3
MAX_HEADER_BYTES = 64 << 20
ALIGNMENT = 4096

Progress = Callable[[int, int], None]
"""Told how many bytes are written, and how many there will be."""

_MAGIC = b"DEEPWELL"
_PREAMBLE = struct.Struct("<8sIIQQ32s")
_CHUNK = 8 << 20
"""Bytes of one write. Whole multiples of 2 MiB let the system keep the file in huge pages."""
_STORAGES = frozenset(STORAGES)
_DIGEST = re.compile("[0-9a-f]{64}")
_STORED = _STORAGES | OF_GGML.keys()

Shape = tuple[int, int, int, bool]
"""Count, rows, columns and pairs of a packed matrix."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offset: int
    bytes: int
    checksum: int
    digest: str
    storage: str = "float32"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter: `kept` is the storage it was asked to have, `parts` its sections; MLA's kv_b has two."""

    key: str
    kept: str
    parts: tuple[_Section, ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`dtype` is how most matrices are kept, `sample` the source's in hexadecimal."""

    config: ModelConfig
    dtype: str
    sample: str
    tokenizer: _Section
    params: tuple[_Entry, ...]
    advice: Advice = Advice()


class PackedModel:
    """An opened packed file: a `Source` whose parameters are matrices in the mapped file already."""

    is_blocks = True

    def __init__(self, path: Path) -> None:
        """Map and check `path`. CheckpointError says what is wrong."""
        self.path = path
        self.notes: list[str] = []  # what was assumed of its source was said when the file was made
        try:
            self._file = _native.MappedFile(os.fspath(path))
        except ValueError as e:
            raise CheckpointError(f"{path}: {e}") from e
        self._header, end = _read_header(path, self._file.bytes())
        self.config = self._header.config
        self.params = param_specs(self.config)
        specs = param_specs(self.config, mtp=True)
        self.mtp_params = specs[len(self.params) :] if len(self._header.params) > len(self.params) else []
        self._entries = self._check_table([*self.params, *self.mtp_params], end)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @property
    def stored(self) -> str:
        return self._header.dtype

    @property
    def sample(self) -> bytes:
        """That of the source it was made of."""
        return bytes.fromhex(self._header.sample)

    @property
    def advice(self) -> Advice:
        return self._header.advice

    def tokenizer(self) -> Tokenizer:
        raw = self._bytes(self._header.tokenizer, "the tokenizer").tobytes()
        try:
            return Tokenizer.restore(msgspec.json.decode(raw, type=TokenizerState))
        except (msgspec.DecodeError, UnicodeDecodeError, CheckpointError) as e:
            raise CheckpointError(f"{self.path}: the tokenizer cannot be read: {e}") from e

    def packed(self, param: Param) -> Any:
        """The parameter as a native handle, without a copy. CheckpointError if its bytes are damaged."""
        entry = self._entries[param.key]
        parts = [self._bytes(part, param.key) for part in entry.parts]
        if param.kind == "vector":
            return native.vector(parts[0].view(np.float32))
        matrices = [
            native.Matrix.mapped(count, rows, cols, part.storage, pairs, self._file, part.offset)
            for part, (count, rows, cols, pairs) in zip(entry.parts, self._shapes(param, entry), strict=True)
        ]
        if param.kind != "kv_b":
            return matrices[0]
        shape = cast(MlaShape, self.config.attention)
        return native.KvB.of(shape.nope, shape.value, *matrices)

    def digests(self, param: Param) -> tuple[str, ...]:
        return tuple(part.digest for part in self._entries[param.key].parts)

    def pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a parameter seen as a matrix: the values that its codes stand for."""
        handle = self.packed(param)
        if isinstance(handle, native.Vector):
            yield 0, handle.values[0]
        elif isinstance(handle, native.KvB):
            for head in range(handle.k_b.count):
                both = handle.k_b.dequantize(head).T, handle.v_b.dequantize(head)
                yield head * (handle.nope + handle.value), np.concatenate(both)
        else:
            for index in range(handle.count):
                yield index * handle.rows, handle.dequantize(index)

    def whole(self, param: Param) -> NDArray[np.float32]:
        return np.concatenate([piece for _, piece in self.pieces(param)]).reshape(param.shape)

    def source_dtype(self, param: Param) -> str | None:
        return self._entries[param.key].kept

    def block_pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        return iter(())

    def kv_blocks(self, param: Param) -> None:
        return None

    def release(self) -> None:
        """Nothing to let go of: the mapped pages are the weights."""

    def _bytes(self, section: _Section, what: str) -> NDArray[np.uint8]:
        raw = self._file.bytes()[section.offset : section.offset + section.bytes]
        if _native.checksum(raw) != section.checksum:
            raise CheckpointError(f"{self.path}: the bytes of {what} are damaged: their checksum differs")
        return raw

    def _shapes(self, param: Param, entry: _Entry) -> list[Shape]:
        return packed_shapes(self.config, param, [part.storage for part in entry.parts])

    def _check_table(self, specs: Sequence[Param], end: int) -> dict[str, _Entry]:
        """The entries by key, once keys, storages, sizes and places are what the config calls for."""
        entries = self._header.params
        if [entry.key for entry in entries] != [param.key for param in specs]:
            raise CheckpointError(f"{self.path}: its parameters are not those of a {self.config.family} model")
        at = ALIGNMENT
        for param, entry in zip(specs, entries, strict=True):
            names = {entry.kept, *(part.storage for part in entry.parts)}
            if unknown := names - _STORAGES:
                raise CheckpointError(f"{self.path}: {param.key} is kept as {min(unknown)!r}, which is no storage")
            if param.kind in ("vector", "router") and names != {"float32"}:
                raise CheckpointError(f"{self.path}: {param.key} is kept as {entry.kept}; allowed is float32")
            if len(entry.parts) != (2 if param.kind == "kv_b" else 1):
                raise CheckpointError(f"{self.path}: {param.key} has {len(entry.parts)} parts")
            for part, size in zip(entry.parts, self._sizes(param, entry), strict=True):
                if not _DIGEST.fullmatch(part.digest):
                    raise CheckpointError(f"{self.path}: {param.key} has the digest {part.digest!r}; it is no BLAKE3")
                at = self._check_place(part, param.key, at, size)
        at = self._check_place(self._header.tokenizer, "the tokenizer", at, self._header.tokenizer.bytes)
        if at != end or not 0 < self._header.tokenizer.bytes <= MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{self.path}: the tokenizer does not lie right before the header, or is too large")
        return {entry.key: entry for entry in entries}

    def _sizes(self, param: Param, entry: _Entry) -> list[int]:
        if param.kind == "vector":
            return [4 * param.size]
        try:
            sizes = [
                native.Matrix.packed_bytes(count, rows, cols, part.storage, pairs)
                for part, (count, rows, cols, pairs) in zip(entry.parts, self._shapes(param, entry), strict=True)
            ]
        except ValueError as e:
            raise CheckpointError(f"{self.path}: {param.key}: {e}") from e
        return sizes

    def _check_place(self, part: _Section, what: str, at: int, size: int) -> int:
        """Where the next section begins."""
        if (part.offset, part.bytes) != (at, size):
            raise CheckpointError(
                f"{self.path}: {what} takes {part.bytes} bytes from {part.offset} on; expected are {size} from {at} on"
            )
        if at + size > self._file.size:
            raise CheckpointError(f"{self.path}: {what} ends behind the file, which is cut off")
        return _aligned(at + size)


class PackedWriter:
    """Writes a packed file parameter by parameter; it is valid once `finish` has returned.

    `sample` is that of the source. Raises OSError, and then the file is for the caller to remove.
    """

    def __init__(self, file: Path, config: ModelConfig, dtype: str, sample: bytes) -> None:
        self._config, self._dtype, self._sample = config, dtype, sample
        self._entries: list[_Entry] = []
        self._digests = Digests()
        self._out = _Chunks(file)
        self._out.write(np.zeros(ALIGNMENT, np.uint8))

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._digests.close()
        self._out.close()

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._out.at

    def add(self, param: Param, kept: str, handle: Any, digests: Sequence[str] = ()) -> None:
        """The next parameter in the order of `param_specs`, as `pack` made it; `digests` of its parts if known."""
        parts = parts_of(handle)
        known = digests or [""] * len(parts)
        sections = [self._section(raw, name, digest) for (name, raw), digest in zip(parts, known, strict=True)]
        self._entries.append(_Entry(param.key, kept, tuple(sections)))

    def finish(self, tokenizer: Tokenizer, advice: Advice | None = None) -> None:
        """Write tokenizer, header and, last, the preamble that makes the file valid; all of it is then on the disk."""
        state = self._section(np.frombuffer(msgspec.json.encode(tokenizer.state()), np.uint8))
        header = msgspec.json.encode(
            _Header(self._config, self._dtype, self._sample.hex(), state, tuple(self._entries), advice or Advice())
        )
        offset = self._out.at
        self._out.write(np.frombuffer(header, np.uint8))
        digest = blake2b(header, digest_size=32).digest()
        self._out.finish(_PREAMBLE.pack(_MAGIC, VERSION, 0, offset, len(header), digest))

    def _section(self, raw: NDArray[np.uint8], storage: str = "float32", known: str = "") -> _Section:
        hashed = None if known else self._digests.start(raw)
        offset, checksum = self._out.at, _native.checksum(raw)
        self._out.write(raw)
        self._out.write(np.zeros(_aligned(self._out.at) - self._out.at, np.uint8))
        return _Section(offset, len(raw), checksum, hashed() if hashed else known, storage)


class _Chunks:
    """A file written from front to back in whole chunks, and its first bytes at the end."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._chunk, self._filled, self.at = np.empty(_CHUNK, np.uint8), 0, 0

    def write(self, raw: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(raw):
            count = min(len(raw) - done, _CHUNK - self._filled)
            self._chunk[self._filled : self._filled + count] = raw[done : done + count]
            self._filled, done = self._filled + count, done + count
            if self._filled == _CHUNK:
                self._flush()
        self.at += len(raw)

    def finish(self, first: bytes) -> None:
        self._flush()
        os.fsync(self._fd)  # what the preamble promises is on the disk before it
        os.pwrite(self._fd, first, 0)
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        rest = self._chunk.data[: self._filled]
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._filled = 0


def parts_of(handle: Any) -> list[tuple[str, NDArray[np.uint8]]]:
    """Storage and packed bytes of each part of a native handle, without a copy; MLA's kv_b has two."""
    if isinstance(handle, native.Vector):
        return [("float32", handle.values[0].view(np.uint8))]
    matrices = (handle.k_b, handle.v_b) if isinstance(handle, native.KvB) else (handle,)
    return [(matrix.storage, matrix.bytes()) for matrix in matrices]


def is_packed(path: Path) -> bool:
    """Whether a path names a packed file: by its suffix, or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix == ".deepwell":
        return True
    with suppress(OSError), open_regular(path) as stream:
        return stream.read(len(_MAGIC)) == _MAGIC
    return False


def packed_shapes(config: ModelConfig, param: Param, storages: Sequence[str]) -> list[Shape]:
    """The matrices that a parameter of two or more dimensions is packed into, given the storage of each."""
    if param.kind == "kv_b":
        m = cast(MlaShape, config.attention)
        return [(m.heads, m.latent, m.nope, False), (m.heads, m.value, m.latent, False)]
    *count, rows, cols = param.shape
    pairs = param.key.endswith("gate_up") and native.side_by_side(rows, cast(native.Storage, storages[0]))
    return [(count[0] if count else 1, rows, cols, pairs)]


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def _read_header(path: Path, raw: NDArray[np.uint8]) -> tuple[_Header, int]:
    """The checked header, and where it begins."""
    if len(raw) < ALIGNMENT:
        raise CheckpointError(f"{path}: has {len(raw)} bytes; it is no packed file, or cut off")
    magic, version, zero, offset, length, digest = _PREAMBLE.unpack(raw[: _PREAMBLE.size].tobytes())
    if magic != _MAGIC:
        raise CheckpointError(f"{path}: begins with {magic!r}, not {_MAGIC!r}: it is no packed file, or not finished")
    if version != VERSION or zero:
        raise CheckpointError(f"{path}: is of version {version}; supported is {VERSION}: convert its source again")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: its header has {length} bytes; allowed are {MAX_HEADER_BYTES}")
    if offset + length != len(raw):
        raise CheckpointError(f"{path}: has {len(raw)} bytes and should have {offset + length}: it is cut off")
    encoded = raw[offset:].tobytes()
    if blake2b(encoded, digest_size=32).digest() != digest:
        raise CheckpointError(f"{path}: its header is damaged: the digest differs")
    try:
        header = msgspec.json.decode(encoded, type=_Header)
        check_config(header.config)
        sample = bytes.fromhex(header.sample)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, DeepwellError) as e:
        raise CheckpointError(f"{path}: its header is broken: {e}") from e
    if header.dtype not in _STORED or len(sample) != 16:
        raise CheckpointError(f"{path}: its header is broken: dtype {header.dtype!r} or the sample")
    return header, offset
