"""The cache of one repository on this disk: huggingface_hub's layout, and the listing of what a hub promised."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deepwell.errors import DeepwellError
from deepwell.files import read_bounded, write_whole
from deepwell.weights.hub.files import INDEX, MAX_LISTING_BYTES, Reference, choose, is_commit, placed
from deepwell.weights.json_files import read_json

if TYPE_CHECKING:
    from deepwell.weights.hub.http import Entry, Listing


MAX_REF_BYTES = 1024


def hub_cache() -> Path:
    """Where a hub's files lie on this machine, as HF_HOME and HF_HUB_CACHE say."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def ref_commit(ref: Path) -> str:
    """The commit that a branch or tag meant when it was fetched; empty if that cannot be read."""
    try:
        text = read_bounded(ref, MAX_REF_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if is_commit(text) else ""


class Store:
    """What is there of a repository."""

    def __init__(self, cache: Path, reference: Reference) -> None:
        self.reference = reference
        name = "models--" + reference.repo.replace("/", "--")
        self.folder, self._locks = cache / name, cache / ".locks" / name

    def commit(self) -> str:
        """The commit that the revision meant when it was fetched; empty if it was not."""
        if self.reference.pinned:
            return self.reference.revision
        return ref_commit(self._ref)

    def find(self) -> tuple[Path | None, list[str]]:
        """What was fetched before, if it is whole: a folder, or the file of a GGUF or packed model. Else what is
        missing of it, as far as one can tell.

        Without a listing, as after other tools, what is there has to show by itself that something is missing.
        """
        if not (commit := self.commit()):
            return None, []
        folder = self.snapshot(commit)
        there = {file.relative_to(folder).as_posix(): size_of(file) for file in folder.rglob("*") if file.is_file()}
        promised = self.listed(commit) or there
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
        return bool(self.listed(self.commit()))

    def promise(self, listing: Listing) -> None:
        """Write down what the hub has at a commit, before anything of it is fetched."""
        sizes = {entry.name: entry.size for entry in listing.entries.values()}
        if self.listed(listing.commit) == sizes:
            return
        try:
            write_whole(self._listing(listing.commit), msgspec.json.encode(sizes))
        except OSError:
            # a cache that cannot be written serves all the same, if what is wanted is there
            if not self.snapshot(listing.commit).is_dir():
                raise

    def listed(self, commit: str) -> dict[str, int]:
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
        return entry.size in (size_of(self.snapshot(commit) / entry.name), size_of(self.blob(entry)))

    def link(self, commit: str, entry: Entry) -> None:
        """Give a blob its name in the snapshot; where links are not possible, the file itself moves there."""
        place, blob = self.snapshot(commit) / entry.name, self.blob(entry)
        if size_of(place) == entry.size:
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


def size_of(file: Path) -> int:
    """Bytes of a file, -1 if there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return -1
