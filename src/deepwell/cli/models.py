"""`deepwell models`: the models that have short names, or one in detail: its costs, and what of it fits here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from deepwell.cli.hub import fetched
from deepwell.cli.terminal import console_of_tables, visible
from deepwell.errors import ConfigError
from deepwell.loading.fit import Fit, ModelReport, report
from deepwell.loading.machine import free_memory, inspect_machine
from deepwell.loading.pack import label, storages
from deepwell.model.config import from_hugging_face
from deepwell.model.presets import PRESETS
from deepwell.model.published import Published, find_published, published
from deepwell.ops.storages import STORAGES, Storage
from deepwell.options import ModelsOptions
from deepwell.weights.checkpoint import read_config
from deepwell.weights.hub.kept import kept
from deepwell.weights.hub.names import find, known, unknown_name
from deepwell.weights.hub.store import hub_cache
from deepwell.weights.source import open_source

if TYPE_CHECKING:
    from rich.table import Table

_LISTED = ("bfloat16", "int8", "int4")
_LEAVING = ("of MHA", "int8", "context", "bfloat16", "active", "KV/token", "here", "licence", "int4", "total")
_ROOM = 1.25
"""What a GGUF file takes of memory, with a cache to begin with, as a multiple of its size."""
_UNLIMITED = 200
"""Characters of a line where it does not go to a terminal."""


class Released(ModelReport, frozen=True, kw_only=True):
    """A released model: `place` is ORG/NAME on the hub, `here` whether all of it is on this disk."""

    place: str
    licence: str
    here: bool


def run(options: ModelsOptions) -> int:
    free = free_memory(inspect_machine())
    told = list(released(free)) if options.model is None else inspect(options.model, free)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
    else:
        _show(told, free)
    return 0


def released(free: int) -> Iterator[Released]:
    """Every released model; those of one shape are counted once."""
    same: dict[object, ModelReport] = {}
    here = _places_here()
    for model in published().values():
        key = model.config, model.stored, model.unchecked
        if key not in same:
            same[key] = _figures(model, free)
        yield _released(model.name, same[key], here)


def _figures(model: Published, free: int) -> ModelReport:
    return report(model.name, model.config, free, published_as=model.stored, unchecked=model.unchecked)


def _released(name: str, figures: ModelReport, here: set[str]) -> Released:
    model = find(name)
    assert model is not None, f"{name} has no place in the table of names"
    told = msgspec.structs.asdict(figures) | {"name": name}
    return Released(**told, place=model.place, licence=model.licence, here=model.place in here)


def inspect(name: str, free: int) -> ModelReport:
    """A checkpoint folder (its config.json alone), a GGUF or packed file, a released model by name, a training preset,
    or a hub's model that was fetched before.

    ConfigError or CheckpointError says what is wrong with `name` or with what it names.
    """
    if (told := _at(Path(os.path.expanduser(name)), free)) is not None:
        return told
    if (model := find_published(name)) is not None:
        return _released(model.name, _figures(model, free), _places_here())
    if name in PRESETS:
        return report(name, PRESETS[name], free)
    short = find(name)
    if (place := fetched(Path(short.place if short else name))) is not None and (told := _at(place, free, name)):
        return told
    if short is None:
        raise unknown_name(name, *(model.name for model in kept(hub_cache())))
    size = f"about {_size(short.size)}" if short.size else "of a size that the hub knows"
    raise ConfigError(
        f"{name} is {short.place}, {size}, {short.licence} licence; models tells of a GGUF file that is here: "
        f"deepwell pull {name}"
    )


def _places_here() -> set[str]:
    """What of hubs is whole on this disk, as ORG/NAME and ORG/NAME:FILE."""
    found = set()
    for model in kept(hub_cache()):
        if not model.partial:
            found |= {model.name, f"{model.repo}:{model.kind.upper()}"}
    return found


def _at(path: Path, free: int, named: str = "") -> ModelReport | None:
    """What lies at a place of this machine; None if there is nothing."""
    if path.is_dir():
        return report(named or path.resolve().name, from_hugging_face(read_config(path)), free)
    if path.is_file():
        source = open_source(path)
        kept = (label(source, "auto"), storages(source, "auto"))
        return report(named or path.name, source.config, free, kept=kept)
    return None


def _listing(reports: list[Released], width: int) -> Table:
    """A line per model, in as many columns as `width` characters hold: those of _LEAVING give way, in that order."""
    from rich.table import Table

    columns = {
        "model": [visible(r.name) for r in reports],
        "total": [_billions(r.total_params) for r in reports],
        "active": [_billions(r.active_params) for r in reports],
        "context": [f"{r.context:,}" for r in reports],
        **{precision: [_size(_of(r, precision).weight_bytes) for r in reports] for precision in _LISTED},
        "KV/token": [_kib(r.kv_bytes_per_token) for r in reports],
        "of MHA": [_percent(r.kv_share) for r in reports],
        "licence": [r.licence for r in reports],
        "here": ["yes" if r.here else "" for r in reports],
        "fits here as": [_best(r) for r in reports],
    }
    for name in _LEAVING:
        if sum(max(map(len, (title, *cells))) + 2 for title, cells in columns.items()) <= width + 2:
            break
        del columns[name]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(
            title, justify="left" if title in ("model", "licence", "here", "fits here as") else "right", no_wrap=True
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _quantised(free: int, width: int) -> Table:
    """Well-known GGUF files, as they would be fetched."""
    from rich.table import Table

    here = _places_here()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("GGUF file", "about", "licence", "here", "fits")[: 5 if width >= 75 else 3 if width >= 60 else 2]:
        table.add_column(title, justify="right" if title == "about" else "left", no_wrap=True)
    for model in known():
        if ":" in model.name:
            cells = (model.name, _size(model.size), model.licence, "yes" if model.place in here else "")
            table.add_row(*(*cells, "yes" if model.size * _ROOM < free else "no")[: len(table.columns)])
    return table


def _facts(r: ModelReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(r):
        table.add_row(*row)
    return table


def _rows(r: ModelReport) -> Iterator[tuple[str, str]]:
    yield "model", visible(r.name)
    yield "family", r.family
    mtp = f"; prediction modules {_billions(r.mtp_params)} more" if r.mtp_params else ""
    yield "parameters", f"{r.total_params:,} ({_billions(r.total_params)}), {_billions(r.active_params)} active{mtp}"
    yield "context", f"{r.context:,} tokens"
    if r.published_bytes is not None:
        yield "files", f"{_size(r.published_bytes)} as {r.published_as}"
    if isinstance(r, Released):
        yield "on the hub", f"{r.place}, {r.licence} licence{'; on this disk' if r.here else ''}"
    plain = f"{_percent(r.kv_share)} of plain MHA's {r.mha_kv_bytes_per_token:,}"
    yield "KV cache", f"{r.kv_bytes_per_token:,} bytes a token in bfloat16, {plain}"
    flops = [f"{_flops(flops)} after {int(depth):,}" for depth, flops in r.flops_per_token.items()]
    yield "FLOPs", "a token: " + ", ".join(flops)


def _precisions(r: ModelReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kept as", no_wrap=True)
    for title in ("weights", "KV/token", "needs", "context here"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for one in r.precisions:
        cells = [_name(one), _size(one.weight_bytes), _kib(one.kv_bytes_per_token), _size(one.need_bytes)]
        table.add_row(*cells, f"{one.context:,}" if one.fits else "does not fit", _streams(one))
    return table


def _streams(one: Fit) -> str:
    at_once = one.cache_tokens // max(one.context, 1)
    return f"{at_once} at once" if at_once > 1 else ""


def _listing_notes(reports: list[Released]) -> Iterator[str]:
    yield "deepwell serve NAME, or chat, fetches it first if it is not here; ORG/NAME of any other model does as well."
    yield "deepwell models NAME tells more of one, or of a checkpoint folder or file; --json for programs."
    for r in reports:
        yield from _unchecked(r)


def _notes(r: ModelReport) -> Iterator[str]:
    if r.published_as == "float8":
        yield "Block FP8 files are kept as bfloat16 unless --dtype says int8 or int4."
    yield from _unchecked(r)


def _unchecked(r: ModelReport) -> Iterator[str]:
    if r.unchecked:
        yield f"{r.name}: not compared with the released config.json: {', '.join(r.unchecked)}."


def _best(r: ModelReport) -> str:
    """The most precise storage that fits, with the context it leaves."""
    one = next((one for one in r.precisions if one.fits), None)
    return f"{_name(one).split(',')[0]}, {one.context:,}" if one else "-"


def _of(r: ModelReport, precision: str) -> Fit:
    return next(one for one in r.precisions if one.precision == precision)


def _name(one: Fit) -> str:
    facts = STORAGES.get(cast(Storage, one.precision))
    if facts is None or not facts.quantised:
        return one.precision
    ggml = facts.ggml.upper()
    return ggml if one.precision == facts.ggml else f"{one.precision}, {ggml}"


def _show(told: ModelReport | list[Released], free: int) -> None:
    console = console_of_tables(_UNLIMITED)
    if isinstance(told, list):
        tables = [_listing(told, console.width), _quantised(free, console.width)]
        notes = _listing_notes(told)
    else:
        tables, notes = [_facts(told), _precisions(told)], _notes(told)
    for table in tables:
        console.print(table)
        console.print()
    for line in (f"{free / 2**30:.1f} GiB of memory are free here.", *notes):
        console.print(line)


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _flops(count: int) -> str:
    return f"{count / 1e9:,.1f} G" if count >= 1e9 else f"{count / 1e6:,.1f} M"


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f} KiB"


def _percent(share: float) -> str:
    return f"{share:.1%}"
