"""What a hub's cache holds on this disk, and its removal. Nothing outside of the cache is ever touched.

The layout is huggingface_hub's (download.py): a name in a snapshot links to a blob, which other snapshots may share.
A process that has a file mapped keeps what it mapped until it ends, also when the file is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from deepwell.errors import DeepwellError, HubError
from deepwell.weights.hub.files import CONFIG, MAIN, Reference, is_commit, models_named, models_of, parse, short_name
from deepwell.weights.hub.store import Store, ref_commit, size_of


class Kept(msgspec.Struct, frozen=True):
    """A model of a hub on this disk. `name` is as one may type it; `used` is in seconds since 1970.

    `size` counts the bytes that are there, those of a download that is not finished included; such a one is `partial`.
    """

    name: str
    kind: str
    size: int
    used: float
    partial: bool
    repo: str


def kept(cache: Path) -> list[Kept]:
    """The models in a cache by name, also those that other tools have fetched; a repository without weights is none."""
    found = [model for folder in _repositories(cache) for model in _models(cache, folder)]
    return sorted(found, key=lambda model: model.name.lower())


def remove(cache: Path, reference: Reference) -> int:
    """Remove what `reference` names: all of a repository, a revision, or a file. The bytes that became free.

    Blobs that another snapshot uses stay. HubError if it is not there.
    """
    folder = cache / ("models--" + reference.repo.replace("/", "--"))
    if folder not in _repositories(cache):
        raise HubError(f"{reference} is not in {cache}")
    before = _used(folder)
    if reference.revision == MAIN and reference.file is None:
        shutil.rmtree(folder)
        shutil.rmtree(cache / ".locks" / folder.name, ignore_errors=True)
        return before
    commit = Store(cache, reference).commit()
    snapshot = folder / "snapshots" / commit
    if not commit or snapshot.is_symlink() or not snapshot.is_dir():
        raise HubError(f"{reference} is not in {cache}")
    if reference.file is None:
        shutil.rmtree(snapshot)
    else:
        _unlink_file(snapshot, reference)
    _forget_unused(folder)
    if not any((folder / "snapshots").iterdir()):
        shutil.rmtree(folder)
        return before
    return before - _used(folder)


def _repositories(cache: Path) -> list[Path]:
    """Their folders: real ones, for a link could lead out of the cache."""
    with suppress(OSError):
        return sorted(folder for folder in cache.glob("models--*--*") if _is_own(folder))
    return []


def _is_own(folder: Path) -> bool:
    places = (folder, *(folder / name for name in ("blobs", "snapshots", "refs")))
    return folder.is_dir() and not any(place.is_symlink() for place in places)


def _models(cache: Path, folder: Path) -> Iterator[Kept]:
    repo = folder.name.removeprefix("models--").replace("--", "/", 1)
    if parse(repo) is None:
        return
    parts = sum(max(size_of(part), 0) for part in (folder / "blobs").glob("*.incomplete"))
    used = _last(folder / "blobs")
    told = False
    for revision, snapshot in _revisions(folder):
        names = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()]
        gguf = models_of(names)
        offered = models_of(Store(cache, Reference(repo, revision)).listed(snapshot.name)) or gguf
        entries: list[str | None] = [*gguf] or ([None] if CONFIG in names else [])
        for file in entries:
            reference = Reference(repo, revision, _typed(file, offered) if file else None)
            whole = _is_whole(cache, Reference(repo, revision, file))
            mine = [n for n in names if file is None or n == file or _same_model(n, file)]
            size = sum(max(size_of(snapshot / n), 0) for n in mine) + (0 if whole else parts)
            kind = short_name(file) if file else "safetensors"
            yield Kept(str(reference), kind, size, _last(snapshot, mine), not whole, repo)
            told = True
    if parts and not told:
        yield Kept(repo, "unknown", parts, used, True, repo)


def _typed(file: str, offered: list[str]) -> str | None:
    """What goes after the colon to mean one of the files that the hub has: as little as tells it apart."""
    if len(offered) < 2:
        return None
    short = short_name(file)
    return short if len(models_named(offered, short)) == 1 else file


def _revisions(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every snapshot once, under the name of its branch or tag if it has one: main first."""
    snapshots, seen = folder / "snapshots", set()
    refs = [ref for ref in sorted((folder / "refs").rglob("*")) if ref.is_file()]
    for ref in sorted(refs, key=lambda ref: ref.name != MAIN):
        commit = ref_commit(ref)
        if commit and commit not in seen and (snapshots / commit).is_dir():
            seen.add(commit)
            yield ref.relative_to(folder / "refs").as_posix(), snapshots / commit
    for snapshot in sorted(snapshots.glob("*")):
        if is_commit(snapshot.name) and snapshot.name not in seen and snapshot.is_dir():
            # A first download that was not finished has no ref yet; the name without revision goes on with it.
            yield MAIN if not refs else snapshot.name, snapshot


def _is_whole(cache: Path, reference: Reference) -> bool:
    try:
        return Store(cache, reference).find()[0] is not None
    except DeepwellError:
        return False


def _same_model(name: str, first: str) -> bool:
    """Whether a file is a shard of the model whose first shard is `first`."""
    head, dash, tail = first.partition("-00001-of-")
    return bool(dash) and name.startswith(f"{head}-") and name.endswith(f"-of-{tail}")


def _unlink_file(snapshot: Path, reference: Reference) -> None:
    names = [file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if not file.is_dir()]
    wanted = models_named(models_of(names), reference.file or "")
    wanted += [n for n in names if n == reference.file and n.endswith(".deepwell")]
    if not wanted:
        raise HubError(f"{reference} is not in {snapshot}; it has {', '.join(map(short_name, models_of(names)))}")
    for name in names:
        if any(name == first or _same_model(name, first) for first in wanted):
            (snapshot / name).unlink()
    left = [name for name in names if (snapshot / name).is_symlink() or (snapshot / name).exists()]
    if not models_of(left) and CONFIG not in left:
        shutil.rmtree(snapshot)


def _forget_unused(folder: Path) -> None:
    """Remove blobs that no snapshot links to any more, and refs to snapshots that are gone."""
    links = [link for link in (folder / "snapshots").rglob("*") if link.is_symlink()]
    linked = {Path(os.readlink(link)).name for link in links}
    for blob in (folder / "blobs").iterdir():
        if blob.name not in linked and not blob.name.endswith(".incomplete"):
            blob.unlink()
    for ref in [ref for ref in (folder / "refs").rglob("*") if ref.is_file()]:
        commit = ref_commit(ref)
        if commit and not (folder / "snapshots" / commit).is_dir():
            ref.unlink()


def _used(folder: Path) -> int:
    """Bytes of the files in a folder; links count nothing."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _last(folder: Path, names: list[str] | None = None) -> float:
    """When a file of the folder was last read or written."""
    files = [folder / name for name in names] if names is not None else list(folder.glob("*"))
    stats = []
    for file in files:
        with suppress(OSError):
            stats.append(file.stat())
    return max((max(about.st_atime, about.st_mtime) for about in stats), default=0.0)
