"""`deepwell usage`: the books printed, exported and checked."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from deepwell.accounts import Clock, Database, Keys, Ledger, Row, open_database, recover
from deepwell.accounts.books import BY, Books, By, Latency, Sum
from deepwell.accounts.money import units
from deepwell.cli.extras import needing
from deepwell.cli.moments import moment, written
from deepwell.cli.terminal import console_of_tables, visible
from deepwell.errors import ConfigError, LedgerDown
from deepwell.files import replacing
from deepwell.options import UsageOptions

Record = dict[str, Any]
Kind = Literal["time", "text", "money", "share", "span", "id", "count"]
Columns = Mapping[str, Kind]
_HIDDEN = {
    "interrupted", "reasoning", "generating_us", "from_granted", "from_topped_up", "first_p90_us", "whole_p90_us",
    "ended", "price_hit", "price_miss", "price_output",
}  # fmt: skip
"""Columns of exports that tables have no room for."""
_PIECE = 10_000
"""Records of a Parquet file that are in memory at once."""


def run(options: UsageOptions) -> int:
    if sum((options.json, options.csv, options.parquet is not None, options.check)) > 1:
        raise ConfigError("--json, --csv, --parquet and --check exclude each other")
    database = open_database(options.database)
    try:
        _recover(database)
        if options.check:
            return _check(Ledger(database))
        since = _moment("--since", options.since)
        until = _moment("--until", options.until)
        account = None if options.account is None else Keys(database).account_of(options.account)
        if options.rows:
            _put(options, _of_rows(), map(msgspec.structs.asdict, Ledger(database).rows(since, until, account)))
        else:
            columns = _of_sums(options.by)
            sums = Books(database).sums(options.by, since=since, until=until, account=account)
            records = map(_record, sums)
            _put(options, columns, ({name: record[name] for name in columns} for record in records))
    finally:
        database.close()
    return 0


def _recover(database: Database) -> None:
    """Count in what servers that were killed have left."""
    try:
        if count := recover(database):
            print(f"{count} interrupted requests were written down", file=sys.stderr)
    except (LedgerDown, OSError) as error:
        print(f"what killed servers left could not be written down: {error}", file=sys.stderr)


def _check(ledger: Ledger) -> int:
    faults = ledger.audit()
    for fault in faults:
        print(fault)
    if not faults:
        print("everything adds up")
    return 1 if faults else 0


def _moment(flag: str, text: str | None) -> int | None:
    return None if text is None else moment(flag, text, Clock().now(), -1)


def _put(options: UsageOptions, columns: Columns, records: Iterable[Record]) -> None:
    if options.json:
        _print_json(records)
    elif options.csv:
        writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    elif options.parquet:
        _write_parquet(options.parquet, columns, records)
    else:
        _print_table(columns, records)


def _print_json(records: Iterable[Record]) -> None:
    """A list, printed as it is read."""
    mark = "["
    for record in records:
        print(mark, msgspec.json.encode(record).decode(), sep="\n", end="")
        mark = ","
    print("\n]" if mark == "," else "[]")


def _write_parquet(path: Path, columns: Columns, records: Iterable[Record]) -> None:
    with needing("parquet", "--parquet"):
        import pyarrow
        import pyarrow.parquet
    kinds = {"time": pyarrow.timestamp("us", "UTC"), "text": pyarrow.string(), "share": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(kind, pyarrow.int64())) for name, kind in columns.items()])
    records = iter(records)
    with replacing(path) as part, pyarrow.parquet.ParquetWriter(part, schema) as writer:
        while piece := list(itertools.islice(records, _PIECE)):
            writer.write_table(pyarrow.Table.from_pylist(piece, schema))


def _print_table(columns: Columns, records: Iterable[Record]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = {name: kind for name, kind in columns.items() if name not in _HIDDEN}
    for name, kind in shown.items():
        right = kind not in ("time", "text")
        table.add_column(name.removesuffix("_us").replace("_", " "), justify="right" if right else "left")
    for record in records:
        table.add_row(*(_cell(kind, record[name]) for name, kind in shown.items()))
    console = console_of_tables(250)
    console.print(table)


def _cell(kind: Kind, value: Any) -> str:
    if value is None:
        return "-"
    match kind:
        case "time":
            return written(value)
        case "text":
            return visible(value)
        case "money":
            return units(value)
        case "share":
            return f"{value:.1%}"
        case "span":
            return f"{value / 1e6:.2f} s"
    return f"{value:,}" if kind == "count" else str(value)


def _columns(names: Iterable[str], texts: Iterable[str]) -> Columns:
    """What kind of value each name stands for."""

    def kind(name: str) -> Kind:
        if name in texts:
            return "text"
        if name in ("hour", "day", "started", "ended"):
            return "time"
        if name in ("cost", "from_granted", "from_topped_up") or name.startswith("price_"):
            return "money"
        if name == "hit_rate":
            return "share"
        if name.endswith("_us"):
            return "span"
        return "id" if name in ("account", "key") else "count"

    return {name: kind(name) for name in names}


def _of_rows() -> Columns:
    return _columns(Row.__struct_fields__, ("id", "model", "kind", "reason", "currency"))


def _of_sums(by: Sequence[By]) -> Columns:
    names = [*(name for one in by for name in ((one, "prefix") if one == "key" else (one,))), *_record(Sum(""))]
    left_out = {name for name in (*BY, "prefix") if name not in by and not (name == "prefix" and "key" in by)}
    return _columns(
        dict.fromkeys(name for name in names if name not in left_out),
        ("account", "prefix", "model", "kind", "currency"),
    )


def _record(one: Sum) -> Record:
    """A sum as one flat record."""
    record = msgspec.structs.asdict(one)
    for name in ("first", "whole"):
        latency: Latency | None = record.pop(name)
        for percent in ("p50", "p90", "p99"):
            record[f"{name}_{percent}_us"] = None if latency is None else getattr(latency, percent)
    record["hit_rate"] = round(one.hit_rate, 6)
    return record
