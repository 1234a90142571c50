"""Files and batches on the disk, in a folder of each account's own; whole or absent, whatever kills the writer.

    ACCOUNT/file-ID.jsonl    a file's content          ACCOUNT/file-ID.json     its card, written last: no card, no file
    ACCOUNT/batch_ID.json    a batch (`Kept`)          lock                     held by the server that works here

The answers of a batch grow in the files that it will have (`output`, `faults`), which get their cards when it is over.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from deepwell.errors import DeepwellError, NotFound, RequestError, Unavailable
from deepwell.files import locked, read_bounded, write_whole
from deepwell.server.batches.objects import OVER, Batch, FileObject, Purpose

KEPT_SECONDS = 30 * 24 * 3600
"""How long a file is kept, and a batch after its end."""
MAX_FILES = 1000
"""Of one account."""
MAX_ACCOUNT_BYTES = 1 << 30
MAX_OPEN = 32
"""Batches of one account that are not over."""
_CARD_BYTES = 1 << 20
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")

R = TypeVar("R", bound=msgspec.Struct)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and what only the server needs: whose key asked for it, and the ids of the files it will have."""

    batch: Batch
    account: int
    key: int
    output: str
    faults: str


class Store:
    """The folder of one server's files and batches. Every method may block; any thread may call one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = ExitStack()
        self._is_open = False

    def open(self) -> None:
        """Claim the folder, once. Raises Unavailable if another server works in it, OSError."""
        if not self._is_open:
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = f"another server keeps its batches in {self.folder}; give this one a folder with --data-dir"
            try:
                self._lock.enter_context(locked(self.folder / "lock", taken))
            except DeepwellError as error:
                raise Unavailable(str(error)) from None
            self._is_open = True

    def close(self) -> None:
        self._is_open = False
        self._lock.close()

    def add_file(self, account: int, data: bytes, filename: str, now: int) -> FileObject:
        """Keep a file for batches. Raises RequestError where an account has too many, OSError."""
        files = list(self.files(account, now))
        if len(files) >= MAX_FILES or sum(file.bytes for file in files) + len(data) > MAX_ACCOUNT_BYTES:
            limits = f"{MAX_FILES} files and {MAX_ACCOUNT_BYTES >> 20} MiB"
            raise RequestError(f"an account may have {limits}; delete some first", "file")
        id = new_id("file-")
        write_whole(self.content(account, id), data)
        return self.publish(account, id, filename, "batch", now)

    def publish(self, account: int, id: str, filename: str, purpose: Purpose, now: int) -> FileObject:
        """Give content that is there its card."""
        card = FileObject(
            id=id,
            bytes=self.content(account, id).stat().st_size,
            created_at=now,
            expires_at=now + KEPT_SECONDS,
            filename=filename,
            purpose=purpose,
        )
        write_whole(self._card(account, id), msgspec.json.encode(card))
        return card

    def files(self, account: int, now: int) -> Iterator[FileObject]:
        """The account's files, the newest first; those whose time is over are removed."""
        found = [self._read(path, FileObject) for path in self._folder(account).glob("file-*.json")]
        for file in sorted(filter(None, found), key=lambda file: (file.created_at, file.id), reverse=True):
            if file.expires_at <= now:
                self._remove(account, file.id)
            else:
                yield file

    def file(self, account: int, id: str, now: int) -> FileObject:
        """One of them. Raises NotFound: also for a file of another account."""
        card = self._read(self._card(account, id), FileObject) if _FILE_ID.fullmatch(id) else None
        if card is None or card.expires_at <= now:
            raise NotFound(f"there is no file {id[:80]!r}", "file_id")
        return card

    def content(self, account: int, id: str) -> Path:
        """Where the content of a file lies, whose id is known to be one."""
        assert _FILE_ID.fullmatch(id)
        return self._folder(account) / f"{id}.jsonl"

    def delete(self, account: int, id: str, now: int) -> None:
        """Remove a file. Raises NotFound."""
        self.file(account, id, now)
        self._remove(account, id)

    def batches(self, account: int, now: int) -> list[Kept]:
        """The account's batches, the newest first; those whose time is over are removed with what they have written."""
        kept = []
        for one in filter(None, (self._read(path, Kept) for path in self._folder(account).glob("batch_*.json"))):
            if _is_old(one.batch, now):
                for id in (one.output, one.faults):
                    self._remove(account, id)
                self._batch(account, one.batch.id).unlink(missing_ok=True)
            else:
                kept.append(one)
        return sorted(kept, key=lambda kept: (kept.batch.created_at, kept.batch.id), reverse=True)

    def batch(self, account: int, id: str, now: int) -> Kept:
        """One of them. Raises NotFound: also for a batch of another account."""
        kept = self._read(self._batch(account, id), Kept) if _BATCH_ID.fullmatch(id) else None
        if kept is None or _is_old(kept.batch, now):
            raise NotFound(f"there is no batch {id[:80]!r}", "batch_id")
        return kept

    def keep(self, kept: Kept) -> Kept:
        """Write a batch down as it is now."""
        write_whole(self._batch(kept.account, kept.batch.id), msgspec.json.encode(kept))
        return kept

    def sweep(self, now: int) -> None:
        """Remove the files and batches of all accounts whose time is over."""
        for account in self._accounts():
            for _ in self.files(account, now):
                pass
            self.batches(account, now)

    def unfinished(self, now: int) -> list[Kept]:
        """Batches of all accounts that are not over, the oldest first."""
        batches = (kept for account in self._accounts() for kept in self.batches(account, now))
        found = [kept for kept in batches if kept.batch.status not in OVER]
        return sorted(found, key=lambda kept: (kept.batch.created_at, kept.batch.id))

    def _accounts(self) -> list[int]:
        return [int(folder.name) for folder in self.folder.glob("[0-9]*") if folder.name.isdecimal()]

    def _remove(self, account: int, id: str) -> None:
        self._card(account, id).unlink(missing_ok=True)
        self.content(account, id).unlink(missing_ok=True)

    def _folder(self, account: int) -> Path:
        return self.folder / str(account)

    def _card(self, account: int, id: str) -> Path:
        return self._folder(account) / f"{id}.json"

    def _batch(self, account: int, id: str) -> Path:
        return self._folder(account) / f"{id}.json"

    def _read(self, path: Path, kind: type[R]) -> R | None:
        """A card, None if there is none."""
        with suppress(FileNotFoundError):
            try:
                return msgspec.json.decode(read_bounded(path, _CARD_BYTES), type=kind)
            except msgspec.DecodeError as error:
                raise DeepwellError(f"{path} is damaged: {error}") from None
        return None


def _is_old(batch: Batch, now: int) -> bool:
    """Whether a batch ended so long ago that it is kept no longer."""
    ended = batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at
    return batch.status in OVER and ended is not None and ended + KEPT_SECONDS <= now


def new_id(front: str) -> str:
    """An id that nobody guesses."""
    return front + secrets.token_hex(16)
