"""The ledger added up: tokens, requests, latencies, income and margin, by hour, day, account, key, model or kind."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec
import sqlalchemy as sql
from sqlalchemy.engine import Connection

from deepwell.accounts.clock import DAY, HOUR
from deepwell.accounts.database import Database, accounts, keys, requests
from deepwell.accounts.journal import INTERRUPTED

By = Literal["hour", "day", "account", "key", "model", "kind"]
BY: tuple[By, ...] = get_args(By)
_PERCENTS = (50, 90, 99)


class Latency(msgspec.Struct, frozen=True):
    """Percentiles in microseconds, each a value that was measured (the nearest rank)."""

    p50: int
    p90: int
    p99: int


class Sum(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests of one group added up; what it is grouped by is set, and the currency always.

    `hour` and `day` are where they begin in microseconds (UTC), `account` is its name, `prefix` how the key begins.
    Money is in micro-units. `generating_us` is the time from first tokens to last ones, added up over requests.
    """

    currency: str
    hour: int | None = None
    day: int | None = None
    account: str | None = None
    key: int | None = None
    prefix: str | None = None
    model: str | None = None
    kind: str | None = None
    requests: int = 0
    interrupted: int = 0
    hit: int = 0
    miss: int = 0
    output: int = 0
    reasoning: int = 0
    generating_us: int = 0
    cost: int = 0
    from_granted: int = 0
    from_topped_up: int = 0
    first: Latency | None = None
    whole: Latency | None = None

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were found in the cache."""
        return self.hit / (self.hit + self.miss) if self.hit + self.miss else 0.0

    @property
    def tokens_per_second(self) -> float:
        """How fast one answer grew, on average, after its first token."""
        return self.output * 1e6 / self.generating_us if self.generating_us else 0.0


class Books:
    """The books of a database. All may raise LedgerDown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def sums(
        self,
        by: Sequence[By] = (),
        *,
        since: int | None = None,
        until: int | None = None,
        account: int | None = None,
        latencies: bool = True,
    ) -> list[Sum]:
        """Requests that started from `since` to before `until`, of one account or all, in the order of their groups."""
        groups = [column for name in by for column in _columns(name)] + [requests.c.currency]
        these = _these(since, until, account)
        with self._database.reading() as connection:
            found = {tuple(row[: len(groups)]): row._mapping for row in connection.execute(_sums(groups, these))}
            first, whole = {}, {}
            if latencies:
                first = _latencies(connection, groups, requests.c.first_us, these)
                whole = _latencies(connection, groups, requests.c.whole_us, these)
        ordered = sorted(found, key=lambda group: [(value is None, value) for value in group])
        return [_sum(found[group], first.get(group), whole.get(group)) for group in ordered]


def _columns(by: By) -> list[sql.ColumnElement[Any]]:
    match by:
        case "hour":
            return [(requests.c.started - requests.c.started % HOUR).label("hour")]
        case "day":
            return [(requests.c.started - requests.c.started % DAY).label("day")]
        case "account":
            return [accounts.c.name.label("account")]
        case "key":
            return [requests.c.key, keys.c.prefix]
        case _:
            return [requests.c[by]]


def _these(since: int | None, until: int | None, account: int | None) -> list[sql.ColumnElement[bool]]:
    these: list[sql.ColumnElement[bool]] = []
    if since is not None:
        these.append(requests.c.started >= since)
    if until is not None:
        these.append(requests.c.started < until)
    if account is not None:
        these.append(requests.c.account == account)
    return these


def _from() -> sql.FromClause:
    named = requests.join(accounts, accounts.c.id == requests.c.account)
    return named.outerjoin(keys, keys.c.id == requests.c.key)


def _sums(groups: Sequence[sql.ColumnElement[Any]], these: Sequence[sql.ColumnElement[bool]]) -> sql.Select[Any]:
    added = ("hit", "miss", "output", "reasoning", "cost", "from_granted", "from_topped_up")
    return (
        sql.select(
            *groups,
            sql.func.count().label("requests"),
            sql.func.sum(sql.case((requests.c.reason == INTERRUPTED, 1), else_=0)).label("interrupted"),
            sql.func.sum(requests.c.whole_us - requests.c.first_us).label("generating_us"),
            *(sql.func.sum(requests.c[name]).label(name) for name in added),
        )
        .select_from(_from())
        .where(*these)
        .group_by(*groups)
    )


def _latencies(
    connection: Connection,
    groups: Sequence[sql.ColumnElement[Any]],
    value: sql.Column[Any],
    these: Sequence[sql.ColumnElement[bool]],
) -> dict[tuple[Any, ...], Latency]:
    """Percentiles of a column by group: of the n values in order, the one with number ceil(n * percent / 100)."""
    ranked = (
        sql.select(
            *groups,
            value.label("value"),
            sql.func.row_number().over(partition_by=groups, order_by=value).label("rank"),
            sql.func.count().over(partition_by=groups).label("n"),
        )
        .select_from(_from())
        .where(value.is_not(None), *these)
        .subquery()
    )
    wanted = sql.or_(*(ranked.c.rank == (ranked.c.n * percent + 99) // 100 for percent in _PERCENTS))
    values: dict[tuple[Any, ...], dict[int, int]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    for row in connection.execute(sql.select(ranked).where(wanted)):
        group = tuple(row[: len(groups)])
        values.setdefault(group, {})[row.rank] = row.value
        counts[group] = row.n
    return {
        group: Latency(*(found[(counts[group] * percent + 99) // 100] for percent in _PERCENTS))
        for group, found in values.items()
    }


def _sum(row: Any, first: Latency | None, whole: Latency | None) -> Sum:
    known = {name: row[name] for name in Sum.__struct_fields__ if row.get(name) is not None}
    # PostgreSQL's sums of 64-bit integers are decimals.
    exact: dict[str, Any] = {name: int(value) if isinstance(value, Decimal) else value for name, value in known.items()}
    return Sum(**exact, first=first, whole=whole)
