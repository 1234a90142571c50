"""The ledger: what was used and what was paid. Rows are only ever added, and a balance changes in the transaction that
adds the row, so that the sum of rows and movements is the balance, always; `audit` proves it.

Granted money is spent first, of what ends soonest. An end is a movement like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sql
from sqlalchemy.engine import Connection

from deepwell.accounts.database import Database, balances, grants, insert_new, movements, requests
from deepwell.accounts.money import MAX_AMOUNT, units
from deepwell.accounts.prices import BATCH
from deepwell.errors import DeepwellError

MoveKind = Literal["grant", "top_up", "adjustment", "expiry"]
MAX_BALANCE = 1 << 62
_UNANSWERED = ("abort", "error", "interrupted")


class Row(msgspec.Struct, frozen=True):
    """One request. Tokens: prompt tokens found in the cache and others, generated ones, and thoughts among these.

    `started` and `ended` are of the wall clock; `first_us` (until the first token, None if there was none) and
    `whole_us` were measured by one that does not jump. Prices are those of `started`.
    """

    id: str
    account: int
    key: int
    model: str
    kind: str
    started: int
    ended: int
    first_us: int | None
    whole_us: int
    hit: int
    miss: int
    output: int
    reasoning: int
    reason: str
    price_hit: int
    price_miss: int
    price_output: int
    currency: str
    cost: int
    from_granted: int = 0
    from_topped_up: int = 0


class Movement(msgspec.Struct, frozen=True):
    """Money that came or went otherwise than by a request."""

    id: int
    account: int
    currency: str
    at: int
    kind: MoveKind
    purse: Literal["granted", "topped_up"]
    amount: int
    note: str


class Balance(msgspec.Struct, frozen=True):
    """An account's money of one currency, in micro-units. Only `topped_up` can be below zero: by what the last tokens
    of a request cost more than there was."""

    currency: str
    granted: int
    topped_up: int

    @property
    def total(self) -> int:
        return self.granted + self.topped_up


class Ledger:
    """The ledger of a database. All may raise LedgerDown, and then have changed nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, rows: Sequence[Row], now: int) -> dict[tuple[int, str], Balance]:
        """Write down requests and take what they cost, all or none; the balances after it, by account and currency.

        A row that is there already changes nothing. One with the id of another request is kept beside it: its id gets
        the time of its start. But a line of a batch has one id however often it is asked: its first answer is billed,
        and what was not answered is not.
        """
        with self._database.writing() as connection:
            purses = _purses(connection, {(row.account, row.currency) for row in rows}, now)
            fresh = [purses[row.account, row.currency].pay(row) for row in _fresh(connection, rows)]
            if fresh:
                connection.execute(requests.insert(), [msgspec.structs.asdict(row) for row in fresh])
            for purse in purses.values():
                purse.save(connection)
            return {place: purse.balance() for place, purse in purses.items()}

    def move(
        self,
        account: int,
        currency: str,
        kind: Literal["grant", "top_up", "adjustment"],
        amount: int,
        now: int,
        *,
        expires: int | None = None,
        note: str = "",
    ) -> Balance:
        """Grant, top up or adjust by micro-units; only an adjustment may be negative. The balance after it."""
        with self._database.writing() as connection:
            return move(connection, account, currency, kind, amount, now, expires=expires, note=note)

    def balances(self, account: int, now: int) -> tuple[Balance, ...]:
        """What an account has, without grants that have ended by now."""
        with self._database.reading() as connection:
            return _balances(connection, account, now)

    def movements(self, account: int | None = None) -> list[Movement]:
        """All movements, or an account's, the oldest first."""
        query = sql.select(movements).order_by(movements.c.id)
        with self._database.reading() as connection:
            found = connection.execute(query if account is None else query.where(movements.c.account == account))
            return [Movement(**row._mapping) for row in found]

    def rows(self, since: int | None = None, until: int | None = None, account: int | None = None) -> Iterator[Row]:
        """Requests that started from `since` to before `until`, the oldest first, read as they are asked for."""
        query = sql.select(requests).order_by(requests.c.started, requests.c.id)
        if since is not None:
            query = query.where(requests.c.started >= since)
        if until is not None:
            query = query.where(requests.c.started < until)
        if account is not None:
            query = query.where(requests.c.account == account)
        with self._database.reading() as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield Row(**row._mapping)

    def spent(self, key: int, currency: str, since: int = 0) -> int:
        """What requests of a key cost that started at or after `since`, in micro-units."""
        these = sql.and_(requests.c.key == key, requests.c.currency == currency, requests.c.started >= since)
        with self._database.reading() as connection:
            return int(connection.scalar(sql.select(sql.func.sum(requests.c.cost)).where(these)) or 0)

    def audit(self) -> list[str]:
        """What does not add up, in sentences; empty if all does."""
        with self._database.reading() as connection:
            return list(_audit(connection))


def move(
    connection: Connection,
    account: int,
    currency: str,
    kind: Literal["grant", "top_up", "adjustment"],
    amount: int,
    now: int,
    *,
    expires: int | None = None,
    note: str = "",
) -> Balance:
    """As `Ledger.move`, inside a transaction that does more."""
    if kind == "adjustment":
        if not 0 < abs(amount) <= MAX_AMOUNT:
            raise DeepwellError(f"an adjustment must not be 0, and up to {units(MAX_AMOUNT)}, not {units(amount)}")
    elif not 0 < amount <= MAX_AMOUNT:
        raise DeepwellError(f"a {kind} must be above 0 and up to {units(MAX_AMOUNT)}, not {units(amount)}")
    if expires is not None and (kind != "grant" or expires <= now):
        raise DeepwellError("only a grant may end, and only in the future")
    purse = _purse(connection, account, currency, now)
    if kind == "grant":
        purse.grant(connection, amount, now, expires, note)
    else:
        purse.move(connection, kind, amount, now, note)
    purse.save(connection)
    return purse.balance()


class _Purse:
    """One account's money of one currency inside a transaction: spent first from grants, the soonest to end first."""

    def __init__(self, account: int, currency: str, topped_up: int, lots: dict[int, int]) -> None:
        """`lots` is what remains of each grant, in the order of spending."""
        self._account = account
        self._currency = currency
        self._topped_up = topped_up
        self._lots = lots
        self._touched: set[int] = set()

    def balance(self) -> Balance:
        return Balance(self._currency, sum(self._lots.values()), self._topped_up)

    def pay(self, row: Row) -> Row:
        """The row with the parts of its cost that grants and topped-up money have given."""
        owed = row.cost
        for id, remaining in self._lots.items():
            if not owed:
                break
            part = min(owed, remaining)
            self._lots[id] -= part
            self._touched.add(id)
            owed -= part
        self._topped_up -= owed
        return msgspec.structs.replace(row, from_granted=row.cost - owed, from_topped_up=owed)

    def move(self, connection: Connection, kind: MoveKind, amount: int, now: int, note: str = "") -> int:
        """Write a movement down, and its id. Money of grants is the caller's to change."""
        purse = "granted" if kind in ("grant", "expiry") else "topped_up"
        if abs(self.balance().total + amount) > MAX_BALANCE:
            raise DeepwellError(f"a balance cannot be more than {units(MAX_BALANCE)}")
        values = {"at": now, "kind": kind, "purse": purse, "amount": amount, "note": note}
        made = connection.execute(movements.insert().values(account=self._account, currency=self._currency, **values))
        if purse == "topped_up":
            self._topped_up += amount
        return int(made.inserted_primary_key[0])  # type: ignore[index]

    def grant(self, connection: Connection, amount: int, now: int, expires: int | None, note: str) -> None:
        id = self.move(connection, "grant", amount, now, note)
        values = {"account": self._account, "currency": self._currency, "expires": expires, "remaining": amount}
        connection.execute(grants.insert().values(id=id, **values))
        self._lots[id] = amount

    def expire(self, connection: Connection, id: int, now: int) -> None:
        self.move(connection, "expiry", -self._lots[id], now, f"of grant {id}")
        self._lots[id] = 0
        self._touched.add(id)

    def save(self, connection: Connection) -> None:
        for id in self._touched:
            connection.execute(grants.update().where(grants.c.id == id).values(remaining=self._lots[id]))
        balance = self.balance()
        this = sql.and_(balances.c.account == self._account, balances.c.currency == self._currency)
        connection.execute(balances.update().where(this).values(granted=balance.granted, topped_up=balance.topped_up))


def _purses(connection: Connection, places: Iterable[tuple[int, str]], now: int) -> dict[tuple[int, str], _Purse]:
    """Purses locked until the transaction ends, in one order for all, without grants that have ended."""
    return {place: _purse(connection, *place, now) for place in sorted(places)}


def _purse(connection: Connection, account: int, currency: str, now: int) -> _Purse:
    insert_new(connection, balances, account=account, currency=currency, granted=0, topped_up=0)
    this = sql.and_(balances.c.account == account, balances.c.currency == currency)
    topped_up = connection.scalar(sql.select(balances.c.topped_up).where(this).with_for_update())
    these = sql.and_(grants.c.account == account, grants.c.currency == currency, grants.c.remaining > 0)
    found = connection.execute(
        sql.select(grants).where(these).order_by(grants.c.expires.is_(None), grants.c.expires, grants.c.id)
    ).all()
    purse = _Purse(account, currency, int(topped_up or 0), {grant.id: grant.remaining for grant in found})
    for grant in found:
        if grant.expires is not None and grant.expires <= now:
            purse.expire(connection, grant.id, now)
    return purse


def _fresh(connection: Connection, rows: Sequence[Row]) -> list[Row]:
    """Those that are not there yet, each once, under ids that are free."""
    started = _started(connection, [id for row in rows for id in (row.id, _other_id(row))])
    fresh = []
    for row in rows:
        if row.kind == BATCH and (row.id in started or _is_unanswered(row)):
            continue
        if started.get(row.id, row.started) != row.started:
            row = msgspec.structs.replace(row, id=_other_id(row))
        if row.id not in started:
            started[row.id] = row.started
            fresh.append(row)
    return fresh


def _is_unanswered(row: Row) -> bool:
    """Whether nobody got an answer of it, so that it is asked again."""
    return row.reason in _UNANSWERED or not (row.hit or row.miss or row.output)


def _other_id(row: Row) -> str:
    return f"{row.id}.{row.started}"


def _started(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    found = connection.execute(sql.select(requests.c.id, requests.c.started).where(requests.c.id.in_(ids)))
    return {row.id: row.started for row in found}


def _balances(connection: Connection, account: int, now: int) -> tuple[Balance, ...]:
    ended = sql.select(grants.c.currency, sql.func.sum(grants.c.remaining)).group_by(grants.c.currency)
    ended = ended.where(grants.c.account == account, grants.c.expires <= now)
    gone = {currency: int(amount) for currency, amount in connection.execute(ended)}
    found = connection.execute(sql.select(balances).where(balances.c.account == account).order_by(balances.c.currency))
    return tuple(Balance(row.currency, row.granted - gone.get(row.currency, 0), row.topped_up) for row in found)


def _audit(connection: Connection) -> Iterator[str]:
    moved = _sums(connection, movements, movements.c.amount, movements.c.purse)
    paid = {
        purse: _sums(connection, requests, column)
        for purse, column in (("granted", requests.c.from_granted), ("topped_up", requests.c.from_topped_up))
    }
    left = _sums(connection, grants, grants.c.remaining)
    kept = {(row.account, row.currency): row for row in connection.execute(sql.select(balances))}
    for account, currency in sorted({place[:2] for place in (*moved, *paid["granted"], *left, *kept)}):
        row = kept.get((account, currency))
        for purse in ("granted", "topped_up"):
            is_kept = row._mapping[purse] if row else 0
            should = moved.get((account, currency, purse), 0) - paid[purse].get((account, currency), 0)
            if is_kept != should:
                yield f"account {account}: {purse} is {units(is_kept)} {currency}, and adds up to {units(should)}"
        granted, remains = row.granted if row else 0, left.get((account, currency), 0)
        if remains != granted:
            yield f"account {account}: granted is {units(granted)} {currency}, and {units(remains)} of grants is left"
    wrong = connection.scalar(
        sql.select(sql.func.count()).where(requests.c.cost != requests.c.from_granted + requests.c.from_topped_up)
    )
    if wrong:
        yield f"{wrong} requests cost something else than was paid for them"


def _sums(
    connection: Connection, table: sql.Table, amount: sql.Column[Any], *by: sql.Column[Any]
) -> dict[tuple[Any, ...], int]:
    """An amount added up by account, currency and further columns."""
    columns = (table.c.account, table.c.currency, *by)
    found = connection.execute(sql.select(*columns, sql.func.sum(amount)).group_by(*columns))
    return {tuple(row[:-1]): int(row[-1]) for row in found}
