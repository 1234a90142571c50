"""`deepwell list`: the models on this disk, by the names that one may type."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deepwell.cli.terminal import console_of_tables, visible
from deepwell.options import ListOptions
from deepwell.weights import embedded_path
from deepwell.weights.hub.kept import kept
from deepwell.weights.hub.names import known
from deepwell.weights.hub.store import hub_cache

if TYPE_CHECKING:
    from rich.table import Table


_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)


class Here(msgspec.Struct, frozen=True):
    """What is on this disk. `where` is hub, packed or embedded; `used` is in seconds since 1970, `size` in bytes.

    `name` is what MODEL may be; of a packed copy, what `deepwell rm --packed` takes; of the embedded model, nothing.
    """

    name: str
    where: str
    kind: str
    size: int
    used: float
    partial: bool = False


def run(options: ListOptions) -> int:
    if options.names:
        print("\n".join(names()))
        return 0
    found = [*_of_hubs(), *_packed(), _embedded()]
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _show(found)
    return 0


def names() -> list[str]:
    """What MODEL may be without a path: known names, and what came from hubs.

    Shells expand what they offer, so that a name with anything but plain characters is left out.
    """
    found = (*(model.name for model in known()), *(model.name for model in kept(hub_cache())))
    return [name for name in found if _PLAIN.fullmatch(name)]


def packed_copies() -> list[Path]:
    """The files of the cache of packed copies, which are named by what they are made of."""
    # Imported here, for the loader is heavy and completion does not want it.
    from deepwell.loading.pack_cache import cache_folder

    folder = cache_folder(os.environ)
    return sorted(file for file in folder.glob("*.deepwell") if not file.is_symlink()) if folder else []


def amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _of_hubs() -> Iterator[Here]:
    for model in kept(hub_cache()):
        yield Here(model.name, "hub", model.kind, model.size, model.used, model.partial)


def _packed() -> Iterator[Here]:
    from deepwell.errors import CheckpointError
    from deepwell.model import account
    from deepwell.weights.packed import PackedModel

    for file in packed_copies():
        about = file.stat()
        try:
            model = PackedModel(file)
            kind = f"{model.stored} of a {model.config.family} of {account(model.config).total_params / 1e9:.1f}B"
        except (CheckpointError, OSError):
            kind = "unreadable"
        yield Here(file.stem, "packed", kind, about.st_size, about.st_mtime)


def _embedded() -> Here:
    files = [file.stat() for file in embedded_path().iterdir() if file.is_file()]
    last = max(max(about.st_atime, about.st_mtime) for about in files)
    return Here("", "embedded", "safetensors", sum(about.st_size for about in files), last)


def _show(found: list[Here]) -> None:
    console = console_of_tables(200)
    console.print(_table(found, time.time()))
    console.print(f"\n{amount(sum(one.size for one in found))} in all; models of hubs lie in {hub_cache()}.")
    console.print("deepwell rm NAME removes one, deepwell rm --packed the packed copies; deepwell models lists more.")


def _table(found: list[Here], now: float) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "kind", "size", "last used"):
        right = title in ("size", "last used")
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for one in found:
        name = one.name or "(MODEL left out)"
        kind = {"packed": f"packed: {one.kind}", "embedded": "embedded toy"}.get(one.where, one.kind)
        table.add_row(visible(name), visible(kind) + ", partial" * one.partial, amount(one.size), _ago(now - one.used))
    return table


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
