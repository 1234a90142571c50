"""`deepwell convert SOURCE OUT`: a model packed once, so that it loads at once. The file is whole or not there."""

from __future__ import annotations

import os
import shutil

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deepwell.cli.hub import located
from deepwell.engine.convert import packed_size, write_packed
from deepwell.errors import ConfigError
from deepwell.options import ConvertOptions
from deepwell.weights.source import open_source


def run(options: ConvertOptions) -> int:
    options = msgspec.structs.replace(options, source=located(options.source))
    _check_place(options)
    _check_room(options)
    unfinished = options.out.with_name(f".{options.out.name}.{os.getpid()}.part")
    console = Console(stderr=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task(options.out.name, total=None)
            write_packed(
                options.source,
                unfinished,
                options.dtype,
                lambda done, total: progress.update(task, completed=done, total=total),
                options.importance,
            )
        os.replace(unfinished, options.out)
    except OSError as error:
        raise ConfigError(f"cannot write {options.out}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e9:.3f} GB; try: deepwell serve {options.out}")
    return 0


def _check_place(options: ConvertOptions) -> None:
    out = options.out
    if not options.source.exists():
        raise ConfigError(f"{options.source} does not exist")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: the folder {out.absolute().parent} does not exist")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name the file to write")
    if out.exists() and out.samefile(options.source):
        raise ConfigError(f"{out} is the source itself")
    if out.exists() and not options.force:
        raise ConfigError(f"{out} exists; --force writes it anew")


def _check_room(options: ConvertOptions) -> None:
    need = packed_size(open_source(options.source), options.dtype)
    free = shutil.disk_usage(options.out.absolute().parent).free
    if need > free:
        raise ConfigError(f"{options.out} needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB of disk are free")
