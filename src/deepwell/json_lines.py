"""Files of JSON lines that only grow: logs and records. A line is one object and ends with its line end.

A writer that is killed, or a full disk, leaves a torn last line at most. Readers leave it out and the next writer cuts
it off; anything broken before the last line is damage, and an error that names the line. Blank lines say nothing: an
editor has left them, and they are skipped.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from deepwell.errors import DeepwellError
from deepwell.files import read_bounded

Record = TypeVar("Record")

MAX_BYTES = 1 << 30
"""The longest file that is read whole."""
_CHUNK = 1 << 16


def read_lines(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a file, oldest first; none if there is no file. DeepwellError names a line that is no `kind`."""
    try:
        raw = read_bounded(path, MAX_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DeepwellError(f"{path}: cannot be read: {error.strerror or error}") from None
    *whole, last = raw.split(b"\n")
    if _is_whole(last):
        whole.append(last)
    return [_record(path, number, line, kind) for number, line in enumerate(whole, 1) if line.strip()]


def append_line(path: Path, record: object) -> None:
    """Add a record to a file, on the disk when this returns; several processes may do so at once. Raises OSError."""
    append_lines(path, [record])


def append_lines(path: Path, records: Iterable[object]) -> None:
    """As `append_line`, several at once: those before a torn one are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        rest = memoryview(_mended(file) + b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _mended(file: int) -> bytes:
    """Cut a torn last line off; gives the line end that a whole one lacks."""
    end = at = os.fstat(file).st_size
    tail = b""
    while at > 0 and b"\n" not in tail:
        start = max(0, at - _CHUNK)
        tail, at = os.pread(file, at - start, start) + tail, start
    last = tail.rpartition(b"\n")[2]
    if _is_whole(last):
        return b"\n"
    if last:
        os.ftruncate(file, end - len(last))
    return b""


def _is_whole(line: bytes) -> bool:
    """Whether a line without its end is a record nevertheless: no part of an object is one."""
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _record(path: Path, number: int, line: bytes, kind: type[Record]) -> Record:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeepwellError(
            f"{path}: line {number} is damaged ({error}); put it right or remove it, and the rest can be used"
        ) from None
