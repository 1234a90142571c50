"""Packed copies of models in the user's cache folder, so that the next start maps one instead of packing anew.

A copy is looked up by a name that costs no reading: a few values of every tensor, and of each file the inode, size,
time of change of its bytes (mtime) and of anything about it (ctime), beside how matrices are kept, the importances and
the version of the format. It says where a copy may be, never what a model is: the identity is made of the digests in
the copy (identity.py). A byte changed behind the samples is noticed because ctime changes with every write, and no
program can set it as it can set mtime; what is not noticed is a write to the disk below the file system, or one with
the clock set back to the same nanosecond. The price is that files copied or renamed are packed anew.

Config, samples and storages of a copy are checked when it is opened; one that has others is removed. The folder is the
user's own: who may rename files in it may as well change them. The least recently used
copies go when a new one would exceed the limit. Failing to write is a warning, never an error: the model is loaded
already.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from deepwell.errors import CheckpointError
from deepwell.files import open_regular, remove_leftovers, replacing
from deepwell.loading.convert import packed_size
from deepwell.loading.pack import DType, Packed, label, pack, storages
from deepwell.weights.importance import read_importance
from deepwell.weights.packed import VERSION, PackedModel, PackedWriter
from deepwell.weights.source import Source

SMALLEST_BYTES = 256 << 20
"""Models below this load in a moment anyway."""
_OVERHEAD = 64 << 20
"""Room for the tokenizer, the header and padding."""
_HELD = "weights, tokenizer, chat template"
"""What copies hold; those that hold less have other names."""

Warn = Callable[[str], None]


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Where packed copies live: $XDG_CACHE_HOME/deepwell/packed, by default under ~/.cache. None without a home."""
    bases = (environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"))
    return next((Path(base) / "deepwell" / "packed" for base in bases if os.path.isabs(base)), None)


class Wanted(msgspec.Struct, frozen=True, dict=True):
    """A model as it is asked for: the opened source and how its matrices are to be kept."""

    source: Source
    dtype: DType
    importance: Path | None = None

    @cached_property
    def name(self) -> str:
        """What its copy is called. Asked for once, before loading, so that files replaced meanwhile have another."""
        source = self.source
        name = blake2b(source.sample, digest_size=16)
        stats = sorted((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(os.stat, source.files))
        kept = f"{label(source, self.dtype)} {sorted(_kept(self).items())}"
        name.update(f"{VERSION} {_HELD} {kept} {stats}".encode())
        if self.importance is not None:
            with open_regular(self.importance) as file:
                name.update(hashlib.file_digest(file, "blake2b").digest())
        return name.hexdigest()


class _Stopped(Exception):
    """Nobody wants the copy any more."""


class PackCache:
    """Copies in `folder`, `limit` bytes at most. `warn` is told what could not be done, in a sentence."""

    def __init__(self, folder: Path, limit: int, warn: Warn, smallest: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        self._warn, self._smallest = warn, SMALLEST_BYTES if smallest is None else smallest

    def find(self, wanted: Wanted) -> PackedModel | None:
        """The copy of a model, checked against its source; None if there is none."""
        try:
            file = self._file(wanted)
            if not file.is_file():
                return None
            found = PackedModel(file)
        except CheckpointError as e:
            self._drop(file, str(e))
            return None
        except OSError:
            return None
        if not _is_copy(found, wanted):
            self._drop(file, f"{file}: is no copy of {wanted.source.path}")
            return None
        with suppress(OSError):
            os.utime(file)  # the least recently used copies leave first
        return found

    def discard(self, found: PackedModel, why: CheckpointError) -> None:
        """Remove a copy that turned out to be damaged."""
        self._drop(found.path, str(why))

    def worth(self, wanted: Wanted) -> bool:
        """Whether a copy of this model may be kept: not of one that is packed already, small, or above the limit."""
        return not isinstance(wanted.source, PackedModel) and (
            self._smallest <= packed_size(wanted.source, wanted.dtype) <= self.limit - _OVERHEAD
        )

    def store(self, wanted: Wanted, packed: Packed, stop: threading.Event) -> Path | None:
        """Write a copy from what is `packed` of the model; the rest is packed for it. None if it was not written.

        Setting `stop` ends it after the parameter at hand. Nothing but whole copies is ever left.
        """
        try:
            file = self._file(wanted)
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_leftovers(self.folder / "*")
            if not self._make_room(packed_size(wanted.source, wanted.dtype) + _OVERHEAD):
                return None
            with replacing(file) as part:
                _write(part, wanted, packed, stop)
            return file
        except _Stopped:
            return None
        except (OSError, CheckpointError) as e:
            self._warn(f"no packed copy is kept for the next start: {e}")
            return None

    def _file(self, wanted: Wanted) -> Path:
        return self.folder / f"{wanted.name}.deepwell"

    def _make_room(self, need: int) -> bool:
        """Remove the least recently used copies until `need` bytes are within the limit.

        False, and nothing is removed, if even without them the disk is scarce.
        """
        used = [(file, file.stat()) for file in self.folder.glob("*.deepwell")]
        total, leaving = sum(about.st_size for _, about in used) + need, []
        for file, about in sorted(used, key=lambda entry: entry[1].st_mtime_ns):
            if total <= self.limit:
                break
            leaving.append(file)
            total -= about.st_size
        gained = sum(about.st_size for file, about in used if file in leaving)
        free = shutil.disk_usage(self.folder).free + gained
        if need > free / 2:  # a cache leaves the disk to those who need it
            self._warn(
                f"no packed copy is kept: it takes {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB of disk are free"
            )
            return False
        for file in leaving:
            file.unlink(missing_ok=True)
        return True

    def _drop(self, file: Path, why: str) -> None:
        self._warn(f"a packed copy is removed: {why}")
        with suppress(OSError):
            file.unlink(missing_ok=True)


@contextmanager
def storing(cache: PackCache, wanted: Wanted, packed: Packed) -> Iterator[threading.Thread]:
    """Write a copy on a thread of its own; leaving ends it, and nothing is left of an unfinished copy."""
    stop = threading.Event()
    thread = threading.Thread(target=cache.store, args=(wanted, packed, stop), name="pack-cache", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def _write(part: Path, wanted: Wanted, packed: Packed, stop: threading.Event) -> None:
    source, kept = wanted.source, _kept(wanted)
    weighted = read_importance(wanted.importance, source.config) if wanted.importance else None
    with PackedWriter(part, source.config, label(source, wanted.dtype), source.sample) as writer:
        for param in (*source.params, *source.mtp_params):
            if stop.is_set():
                raise _Stopped
            handle = packed.handles.get(param.key)
            if handle is None:
                handle = pack(source, param, kept[param.key], weighted)
                source.release()
            known = [digest for _, digest in packed.contents.get(param.key, ())]
            writer.add(param, kept[param.key], handle, known)
        writer.finish(source.tokenizer(), source.advice)


def _kept(wanted: Wanted) -> dict[str, Any]:
    return dict(storages(wanted.source, wanted.dtype))


def _is_copy(found: PackedModel, wanted: Wanted) -> bool:
    source = wanted.source
    return (
        (found.config, found.sample) == (source.config, source.sample)
        and found.stored == label(source, wanted.dtype)
        and len(found.mtp_params) == len(source.mtp_params)
        and storages(found, "auto") == _kept(wanted)
    )
