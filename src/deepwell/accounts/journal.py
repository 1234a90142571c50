"""What live requests have counted so far, kept where SIGKILL does not reach: in a mapped file of fixed slots, which the
kernel keeps when the process is gone. One file per process, locked while it lives; those of dead processes are read by
`recover` and removed when their requests stand in the ledger.

A count is stored before its tokens are handed on, so that nobody has more than was counted. What a slot says of its
request is written before the slot counts as taken, and carries a checksum: a loss of power may tear it, and a torn one
is told apart. docs/accounts.md describes every field.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from deepwell.accounts.money import MAX_TOKENS, Price
from deepwell.files import remove_leftovers

SLOTS = 4096
"""Requests that may be live or waiting for the ledger at once."""
_SLOT = 1024
_HEADER = 4096
_MAGIC = b"deepwell live 1\n"
_ORDER = 0x0102030405060708
_FREE, _OPEN, _ENDED = 0, 1, 2
# 64-bit words of a slot.
_STATE, _HIT, _MISS, _OUTPUT, _ELAPSED, _FIRST, _REASONING, _CHECK, _LENGTH = range(9)
_REASON, _TEXT = 72, 104
"""Where the reason of the end and the request's description begin, in bytes."""
_NO_TOKEN = (1 << 64) - 1
INTERRUPTED = "interrupted"
"""The reason of a request whose process was killed."""

_log = logging.getLogger(__name__)


class Live(msgspec.Struct, frozen=True):
    """What is known of a request from its start."""

    id: str
    account: int
    key: int
    model: str
    kind: str
    started: int
    price: Price


class Found(msgspec.Struct, frozen=True):
    """A request as far as it came. Times in microseconds since its start."""

    live: Live
    hit: int
    miss: int
    output: int
    reasoning: int
    reason: str
    whole_us: int
    first_us: int | None


class Slot:
    """One request's counts."""

    __slots__ = ("_at", "_map", "_words", "number")

    def __init__(self, mapped: mmap.mmap, words: memoryview[int], number: int) -> None:
        self._map = mapped
        self._words = words
        self._at = (_HEADER + number * _SLOT) // 8
        self.number = number

    def store(self, hit: int, miss: int, output: int, elapsed: int, first: int | None) -> None:
        """Each count is one 64-bit store, so that none is ever torn."""
        words, at = self._words, self._at
        words[at + _ELAPSED] = elapsed
        words[at + _FIRST] = _NO_TOKEN if first is None else first
        words[at + _HIT] = hit
        words[at + _MISS] = miss
        words[at + _OUTPUT] = output

    def end(self, reasoning: int, reason: str) -> None:
        words, at = self._words, self._at
        words[at + _REASONING] = reasoning
        self._map[at * 8 + _REASON : at * 8 + _TEXT] = reason.encode()[: _TEXT - _REASON].ljust(_TEXT - _REASON, b"\0")
        words[at + _STATE] = _ENDED


class Journal:
    """This process's file of slots. Thread-safe."""

    def __init__(self, folder: Path, database: str) -> None:
        """Makes the file, with all its disk space, in `folder`; `database` is the id of the one it belongs to.

        Raises OSError.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_leftovers(folder / "*")
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.slots"
        # Nobody takes it for a dead process's file: it gets its name when it is locked.
        part = folder / f".{self._path.name}.w{secrets.token_hex(6)}.part"
        self._file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        size = _HEADER + SLOTS * _SLOT
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _reserve(self._file, size)  # a full disk is met here, and never by a count
            self._map = mmap.mmap(self._file, size)
            head = _MAGIC + _ORDER.to_bytes(8, sys.byteorder) + database.encode()
            self._map[: len(head)] = head
            os.rename(part, self._path)
        except BaseException as error:
            os.close(self._file)
            part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                error.filename = str(self._path)
            raise
        self._words = memoryview(self._map).cast("Q")
        self._lock = threading.Lock()
        self._free = list(range(SLOTS - 1, -1, -1))

    def take(self, live: Live) -> Slot | None:
        """A slot for a request; None if all are taken."""
        text = msgspec.msgpack.encode(live)
        if len(text) > _SLOT - _TEXT:
            raise ValueError(f"a request's id, model and kind are too long to be kept: {len(text)} bytes")
        with self._lock:
            if not self._free:
                return None
            number = self._free.pop()
        slot = Slot(self._map, self._words, number)
        start = _HEADER + number * _SLOT
        self._map[start + _TEXT : start + _TEXT + len(text)] = text
        words, at = self._words, start // 8
        for field in (_HIT, _MISS, _OUTPUT, _ELAPSED, _REASONING):
            words[at + field] = 0
        words[at + _FIRST] = _NO_TOKEN
        words[at + _LENGTH] = len(text)
        words[at + _CHECK] = zlib.crc32(text)
        words[at + _STATE] = _OPEN
        return slot

    def free(self, slot: Slot) -> None:
        """Give a slot back, when its request stands in the ledger."""
        self._words[(_HEADER + slot.number * _SLOT) // 8 + _STATE] = _FREE
        with self._lock:
            self._free.append(slot.number)

    def close(self) -> None:
        """Remove the file if nothing is left in it; else it is for the next process to recover."""
        with self._lock:
            empty = len(self._free) == SLOTS
        self._words.release()
        self._map.close()
        if empty:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


def _reserve(file: int, size: int) -> None:
    """Take the disk space of a new file. Raises OSError."""
    if sys.platform == "linux":
        os.posix_fallocate(file, 0, size)
        return
    with open(file, "wb", buffering=0, closefd=False) as whole:
        written = 0
        while written < size:
            written += whole.write(bytes(size - written))


class Leftover:
    """The file of a process that is gone, locked until it is closed."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    def read(self, database: str) -> list[Found] | None:
        """Its requests; None if it is of another database. What is torn is said in the log and left out."""
        raw = os.pread(self._file, _HEADER + SLOTS * _SLOT, 0)
        if not raw.startswith(_MAGIC + _ORDER.to_bytes(8, sys.byteorder) + database.encode() + b"\0"):
            return None
        return list(self._requests(raw))

    def _requests(self, raw: bytes) -> Iterator[Found]:
        words = memoryview(raw)[: len(raw) // 8 * 8].cast("Q")
        for start in range(_HEADER, len(raw) - _SLOT + 1, _SLOT):
            at = start // 8
            if words[at + _STATE] == _FREE:
                continue
            found = _found(raw[start : start + _SLOT], words[at : at + _SLOT // 8])
            if found is None:
                _log.error("%s: the request in slot %d is torn and left out", self.path, (start - _HEADER) // _SLOT)
            else:
                yield found

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._file)


def _found(slot: bytes, words: memoryview[int]) -> Found | None:
    """A slot's request; None if it is torn."""
    text = slot[_TEXT : _TEXT + words[_LENGTH]]
    if zlib.crc32(text) != words[_CHECK]:
        return None
    try:
        live = msgspec.msgpack.decode(text, type=Live)
    except msgspec.DecodeError:
        return None
    if max(words[_HIT], words[_MISS], words[_OUTPUT]) > MAX_TOKENS:
        return None
    ended = words[_STATE] == _ENDED
    return Found(
        live=live,
        hit=words[_HIT],
        miss=words[_MISS],
        output=words[_OUTPUT],
        reasoning=words[_REASONING],
        reason=slot[_REASON:_TEXT].rstrip(b"\0").decode(errors="replace") if ended else INTERRUPTED,
        whole_us=words[_ELAPSED],
        first_us=None if words[_FIRST] == _NO_TOKEN else words[_FIRST],
    )


def leftovers(folder: Path) -> Iterator[Leftover]:
    """The files of processes that are gone. Each is closed when the next one is asked for."""
    for path in sorted(folder.glob("*.slots")):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            left = Leftover(path, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield left
            finally:
                left.close()
