"""`deepwell convert SOURCE OUT`: a model as another kind of file. What is written is whole or not there."""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from deepwell.cli.hub import located
from deepwell.cli.model import tell
from deepwell.cli.waiting import Wait, sized
from deepwell.errors import ConfigError
from deepwell.files import replacing, replacing_folder
from deepwell.loading.convert import BESIDE, Prepared, Target, prepare, target_of
from deepwell.options import ConvertOptions

_OURS = (*BESIDE, "*.safetensors")
"""Files that a folder which may be replaced can hold."""


_FOLDERS = tuple(kind.rpartition("/")[0] for kind in BESIDE if "/" in kind)


def run(options: ConvertOptions) -> int:
    options = msgspec.structs.replace(options, source=located(options.source))
    target = target_of(options.out, options.to)
    if target == "safetensors" and options.to == "auto" and options.out.suffix:
        tell([f"{options.out} is to be a folder of safetensors; NAME.gguf and NAME.deepwell are files of those kinds"])
    _check_place(options, target)
    prepared = prepare(options.source, target, options.dtype, options.importance, int(options.shard_gb * 1e9))
    tell(prepared.notes)
    _check_room(options.out, prepared)
    out = options.out.absolute()
    try:
        with (replacing_folder if target == "safetensors" else replacing)(out) as unfinished:
            _write(prepared, unfinished, options.out)
    except OSError as error:
        raise ConfigError(f"cannot write {options.out}: {error.strerror or error}") from None
    print(f"{options.out}: {_size(options.out) / 1e9:.3f} GB; try: deepwell serve {options.out}")
    if prepared.otherwise:
        print(prepared.otherwise)
    return 0


def _write(prepared: Prepared, unfinished: Path, out: Path) -> None:
    with Wait(f"writing {out.name}", sized) as wait:
        try:
            prepared.write(unfinished, wait)
        except OSError as error:
            raise ConfigError(f"cannot write {out}: {_reason(error, out, prepared, unfinished)}") from None


def _check_place(options: ConvertOptions, target: Target) -> None:
    out = options.out
    if not options.source.exists():
        raise ConfigError(f"{options.source} does not exist")
    if not out.name:
        raise ConfigError(f"{out} has no name of its own; name the file or folder to write")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: the folder {out.absolute().parent} does not exist")
    if out.exists() and out.samefile(options.source):
        raise ConfigError(f"{out} is the source itself")
    if out.exists() and not out.is_file() and not out.is_dir():
        raise ConfigError(f"{out} is a device, a pipe or a socket, which is never replaced; name a file")
    if out.is_dir() and target != "safetensors":
        raise ConfigError(f"{out} is a folder; name the file to write")
    if out.is_file() and target == "safetensors":
        raise ConfigError(f"{out} is a file; name the folder to write, or say --to gguf or --to packed")
    if out.exists() and not options.force and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists; --force writes it anew")
    if out.is_dir():
        _check_replaceable(out)


def _check_replaceable(folder: Path) -> None:
    """Only what a convert may have written is ever removed."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link to a folder; name the folder itself")
    for entry in folder.rglob("*"):
        name = entry.relative_to(folder).as_posix()
        if name in _FOLDERS and entry.is_dir() and not entry.is_symlink():
            continue
        if entry.is_symlink() or not entry.is_file() or not any(fnmatch(name, kind) for kind in _OURS):
            raise ConfigError(f"{folder} holds {name}, which a model folder does not; name another folder")


def _check_room(out: Path, prepared: Prepared) -> None:
    free = shutil.disk_usage(out.absolute().parent).free
    if prepared.bytes > free:
        raise ConfigError(
            f"{out} needs {prepared.bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of disk are free: "
            f"{(prepared.bytes - free) / 1e9:.1f} GB are missing"
        )


def _reason(error: OSError, out: Path, prepared: Prepared, unfinished: Path) -> str:
    told = error.strerror or str(error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return told
    with suppress(OSError):
        missing = max(prepared.bytes - _size(unfinished), 0)
        told += f": {missing / 1e9:.3f} of {prepared.bytes / 1e9:.3f} GB were still to be written"
    return f"{told}; free some of {out.absolute().parent}, or name a place on another disk"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
