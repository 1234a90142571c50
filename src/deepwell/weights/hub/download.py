"""Models from a Hugging Face hub: ORG/NAME becomes a folder or file on this machine.

Files lie in huggingface_hub's cache, in its layout, so that other tools find them: blobs/<checksum> holds contents,
snapshots/<commit>/ links to them under their names, refs/<revision> names the commit. A ref is written when everything
it promises is there; a half-fetched file is blobs/<checksum>.incomplete, and the next run goes on with it.
listings/<commit>.json is our own: the names and sizes of what the hub has, by which a half-fetched snapshot shows.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from deepwell.errors import HubError
from deepwell.model.config import from_hugging_face
from deepwell.weights.hub.files import CONFIG, INDEX, check_name, choose, parse, shards
from deepwell.weights.hub.names import licence_of
from deepwell.weights.hub.store import Store, hub_cache, size_of
from deepwell.weights.json_files import read_json, read_object

if TYPE_CHECKING:
    from deepwell.weights.hub.http import Entry, Listing, Remote

WORKERS = 4
"""Files fetched at a time."""
_SHARD = re.compile(r"[^/]*-of-\d+\.safetensors")
_SPARE_BYTES = 64 << 20
"""Disk space that a download leaves free."""


class Report(Protocol):
    """What a person sees of a download. Called from several threads."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def start(self, what: str, total: int, about: str) -> None:
        """`total` bytes are about to be fetched; called again when more are known.

        `about` tells of the whole model: its size, its licence, where it will lie.
        """
        ...

    def advance(self, count: int) -> None:
        """So many more bytes are there, or fewer."""
        ...


class Hub(msgspec.Struct, frozen=True):
    """Which hub, where its files go, and how patient to be. `offline` never asks it."""

    endpoint: str
    cache: Path
    token: str | None = None
    offline: bool = False
    timeout: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of_environment(cls) -> Hub:
        """As HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT say. Raises HubError."""
        from huggingface_hub import constants, get_token

        token = None if constants.HF_HUB_OFFLINE else get_token()
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise HubError(f"the token of HF_TOKEN or {constants.HF_TOKEN_PATH} holds characters that no token has")
        return cls(
            endpoint=constants.ENDPOINT,
            cache=hub_cache(),
            token=token,
            offline=constants.HF_HUB_OFFLINE,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )


def locate(model: Path, report: Report, hub: Hub | None = None, *, renew: bool = False) -> Path:
    """Where `model` lies on this machine: itself if it exists or cannot be on a hub, else what a hub has by that name.

    A hub is asked whether the revision has moved; if it cannot be asked, what was fetched before is used, and `report`
    is told; with `renew` that is an error. Raises HubError, and ConfigError for a config that is not supported.
    """
    reference = None if model.exists() else parse(model.as_posix())
    if reference is None:
        return model
    hub = hub or Hub.of_environment()
    store = Store(hub.cache, reference)
    kept, missing = store.find()
    if kept is not None and (hub.offline or (reference.pinned and store.is_listed)):
        return kept
    if hub.offline:
        raise HubError(
            f"{reference} is not in {hub.cache}, at least not all of it{_named(missing)}, and HF_HUB_OFFLINE forbids "
            "to fetch it; there is no such file or folder here either"
        )
    from deepwell.weights.hub.http import Remote

    remote = Remote(hub.endpoint, hub.token, hub.timeout, report.note, hub.sleep)
    try:
        # Who has a copy does not wait for a hub that is down.
        listing = remote.listing(reference, attempts=1 if kept and not renew else None)
    except HubError as error:
        if kept is None:
            raise HubError(f"{model} is neither a file nor a folder here, and {error}") from None
        if renew:
            raise
        report.note(f"{error}; using what was fetched before, commit {store.commit()[:12]}")
        return kept
    return _Download(store, remote, listing, report).run()


class _Download:
    """One repository's files on their way into the cache."""

    def __init__(self, store: Store, remote: Remote, listing: Listing, report: Report) -> None:
        self._store, self._remote, self._listing, self._report = store, remote, listing, report
        self._reference, self._commit = store.reference, listing.commit
        self._total = 0
        self._ended = threading.Event()

    def run(self) -> Path:
        """Fetch what is missing. Small files come first, and are looked at before the weights."""
        snapshot = self._store.snapshot(self._commit)
        wanted = choose(self._listing.entries, self._reference)
        small = [name for name in wanted.files if name.endswith((".json", ".jinja"))]
        large = [name for name in wanted.files if name not in small]
        try:
            self._store.promise(self._listing)
            if wanted.entry is None:
                self._fetch(small)
                self._check_config(snapshot)
                if wanted.indexed:
                    large = [*shards(read_json(snapshot / INDEX), self._listing.entries, self._reference)]
            self._fetch(large)
            self._store.keep(self._commit)
        except OSError as error:
            raise HubError(f"cannot write {error.filename or self._store.folder}: {error.strerror or error}") from None
        finally:
            self._ended.set()
        return snapshot / wanted.entry if wanted.entry else snapshot

    def _check_config(self, snapshot: Path) -> None:
        """A model that is not supported is refused before its weights are fetched."""
        from_hugging_face(read_object(snapshot / CONFIG))

    def _fetch(self, names: list[str]) -> None:
        """All of these, several at a time; the first failure ends it."""
        listed = [self._listing.entries[check_name(name, self._reference)] for name in names]
        entries = [self._sized(entry).checked(self._reference) for entry in listed]
        absent = [entry for entry in entries if not self._store.has(self._commit, entry)]
        if absent:
            self._check_room(absent)
            (self._store.folder / "blobs").mkdir(parents=True, exist_ok=True)
            self._total += sum(entry.size for entry in absent)
            self._report.start(str(self._reference), self._total, self._described())
            self._in_parallel(absent)
        for entry in entries:
            self._store.link(self._commit, entry)

    def _sized(self, entry: Entry) -> Entry:
        return self._remote.sized(self._reference, self._commit, entry)

    def _described(self) -> str:
        """How large the model is, under which licence, and where it will lie."""
        listed = self._listing.entries
        wanted = choose(listed, self._reference)
        sharded = [name for name in listed if wanted.indexed and _SHARD.fullmatch(name)]
        size = sum(max(listed[name].size, 0) for name in {*wanted.files, *sharded})
        about = "about " if wanted.indexed else ""
        licence = licence_of(self._reference.repo) or (self._listing.licence or "")[:60]
        said = f"{licence} licence" if licence else "no licence stated"
        return f"{about}{_amount(size)}, {said}, into {self._store.folder}"

    def _in_parallel(self, entries: list[Entry]) -> None:
        """Daemon threads, so that Ctrl-C need not wait for a silent hub."""
        todo: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for entry in entries:
            todo.put(entry)

        def work() -> None:
            while not self._ended.is_set():
                try:
                    self._one(todo.get_nowait())
                except queue.Empty:
                    return
                except BaseException as error:
                    done.put(error)
                else:
                    done.put(None)

        for _ in range(min(WORKERS, len(entries))):
            threading.Thread(target=work, name="hub", daemon=True).start()
        for _ in entries:
            if (failure := done.get()) is not None:
                raise failure

    def _one(self, entry: Entry) -> None:
        from huggingface_hub.utils import WeakFileLock

        with WeakFileLock(self._store.lock(entry)):
            if self._store.has(self._commit, entry):  # another process has brought it meanwhile
                self._advance(entry.size)
                return
            part = self._store.part(entry)
            self._remote.fetch(self._reference, self._commit, entry, part, self._advance)
            os.replace(part, self._store.blob(entry))

    def _advance(self, count: int) -> None:
        if self._ended.is_set():
            raise HubError("the download has ended")
        self._report.advance(count)

    def _check_room(self, entries: list[Entry]) -> None:
        need = sum(max(entry.size - max(size_of(self._store.part(entry)), 0), 0) for entry in entries)
        folder = self._store.folder
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if need + _SPARE_BYTES > free:
            raise HubError(
                f"{self._reference} needs {need / 1e9:.3f} GB more in {folder.parent}, and {free / 1e9:.3f} GB are "
                "free; free some space, or set HF_HOME to a folder on a larger disk"
            )


def _named(missing: list[str]) -> str:
    """The first files that are missing, for a sentence."""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f" (missing: {', '.join(missing[:3])}{more})" if missing else ""


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
