"""Models from a Hugging Face hub: ORG/NAME becomes a folder or file on this machine.

Files lie in huggingface_hub's cache, in its layout, so that other tools find them: blobs/<checksum> holds contents,
snapshots/<commit>/ links to them under their names, refs/<revision> names the commit. A ref is written when everything
it promises is there; a half-fetched file is blobs/<checksum>.incomplete, and the next run goes on with it.
listings/<commit>.json is our own: the names and sizes of what the hub has, by which a half-fetched snapshot shows.
"""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from deepwell.errors import DeepwellError, HubError
from deepwell.files import read_bounded, write_whole
from deepwell.model.config import from_hugging_face
from deepwell.weights.hub.files import (
    CONFIG,
    INDEX,
    MAX_LISTING_BYTES,
    Reference,
    check_name,
    choose,
    is_commit,
    parse,
    placed,
    shards,
)
from deepwell.weights.json_files import read_json, read_object

if TYPE_CHECKING:
    from deepwell.weights.hub.http import Entry, Listing, Remote

MAX_REF_BYTES = 1024
WORKERS = 4
"""Files fetched at a time."""
_SPARE_BYTES = 64 << 20
"""Disk space that a download leaves free."""


class Report(Protocol):
    """What a person sees of a download. Called from several threads."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def start(self, what: str, total: int) -> None:
        """`total` bytes are about to be fetched; called again when more are known."""
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
            cache=Path(constants.HF_HUB_CACHE),
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
    store = _Store(hub.cache, reference)
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


class _Store:
    """The cache of one repository."""

    def __init__(self, cache: Path, reference: Reference) -> None:
        self.reference = reference
        name = "models--" + reference.repo.replace("/", "--")
        self.folder, self._locks = cache / name, cache / ".locks" / name

    def commit(self) -> str:
        """The commit that the revision meant when it was fetched; empty if it was not."""
        if self.reference.pinned:
            return self.reference.revision
        try:
            text = read_bounded(self._ref, MAX_REF_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""
        return text if is_commit(text) else ""

    def find(self) -> tuple[Path | None, list[str]]:
        """What was fetched before, if it is whole: a folder, or the file of a GGUF or packed model. Else what is
        missing of it, as far as one can tell.

        Without a listing, as after other tools, what is there has to show by itself that something is missing.
        """
        if not (commit := self.commit()):
            return None, []
        folder = self.snapshot(commit)
        there = {file.relative_to(folder).as_posix(): _size(file) for file in folder.rglob("*") if file.is_file()}
        promised = self._listed(commit) or there
        try:
            wanted = choose(promised, self.reference)
            files = list(wanted.files)
            if wanted.indexed and INDEX in there:
                files += placed(read_json(folder / INDEX), self.reference)
        except DeepwellError:  # whatever is wrong with it, the hub has it whole
            return None, []
        missing = [name for name in files if name not in there or promised.get(name, -2) not in (there[name], -1)]
        if missing:
            return None, missing
        return folder / wanted.entry if wanted.entry else folder, []

    @property
    def is_listed(self) -> bool:
        """Whether it is known what the hub has at the revision's commit."""
        return bool(self._listed(self.commit()))

    def promise(self, listing: Listing) -> None:
        """Write down what the hub has at a commit, before anything of it is fetched."""
        sizes = {entry.name: entry.size for entry in listing.entries.values()}
        if self._listed(listing.commit) == sizes:
            return
        try:
            write_whole(self._listing(listing.commit), msgspec.json.encode(sizes))
        except OSError:
            # a cache that cannot be written serves all the same, if what is wanted is there
            if not self.snapshot(listing.commit).is_dir():
                raise

    def _listed(self, commit: str) -> dict[str, int]:
        """Names and sizes (-1 where the hub does not say) of what it has at a commit; empty if that is not known."""
        try:
            return msgspec.json.decode(read_bounded(self._listing(commit), MAX_LISTING_BYTES), type=dict[str, int])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}

    def _listing(self, commit: str) -> Path:
        return self.folder / "listings" / f"{commit}.json"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, entry: Entry) -> Path:
        return self.folder / "blobs" / entry.digest

    def part(self, entry: Entry) -> Path:
        return self.folder / "blobs" / f"{entry.digest}.incomplete"

    def lock(self, entry: Entry) -> Path:
        """The file that every tool locks while it writes this blob."""
        self._locks.mkdir(parents=True, exist_ok=True)
        return self._locks / f"{entry.digest}.lock"

    def has(self, commit: str, entry: Entry) -> bool:
        """Whether a file was fetched, whole, for this commit or for another one."""
        return entry.size in (_size(self.snapshot(commit) / entry.name), _size(self.blob(entry)))

    def link(self, commit: str, entry: Entry) -> None:
        """Give a blob its name in the snapshot; where links are not possible, the file itself moves there."""
        place, blob = self.snapshot(commit) / entry.name, self.blob(entry)
        if _size(place) == entry.size:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except FileExistsError:  # another process was quicker
            return
        except OSError:
            os.replace(blob, place)

    def keep(self, commit: str) -> None:
        """Write down what the revision means now."""
        if self.reference.pinned or self.commit() == commit:
            return
        write_whole(self._ref, commit.encode())

    @property
    def _ref(self) -> Path:
        return self.folder / "refs" / self.reference.revision


class _Download:
    """One repository's files on their way into the cache."""

    def __init__(self, store: _Store, remote: Remote, listing: Listing, report: Report) -> None:
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
            self._report.start(str(self._reference), self._total)
            self._in_parallel(absent)
        for entry in entries:
            self._store.link(self._commit, entry)

    def _sized(self, entry: Entry) -> Entry:
        return self._remote.sized(self._reference, self._commit, entry)

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
        need = sum(max(entry.size - max(_size(self._store.part(entry)), 0), 0) for entry in entries)
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


def _size(file: Path) -> int:
    """Bytes of a file, -1 if there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1
