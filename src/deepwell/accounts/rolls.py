"""Accounts and keys in pages, as an administrator looks through them: however many there are, an answer is short."""

from __future__ import annotations

import msgspec
import sqlalchemy as sql

from deepwell.accounts.database import ANONYMOUS, Database, accounts, keys, requests
from deepwell.accounts.keys import Key, keys_where
from deepwell.accounts.ledger import Balance, Ledger
from deepwell.errors import DeepwellError


class Account(msgspec.Struct, frozen=True):
    """An account with its money. `created` is in microseconds (UTC), `keys` are those that were not revoked."""

    id: int
    name: str
    created: int
    keys: int
    balances: tuple[Balance, ...]


class Rolls:
    """The accounts and keys of a database, by their ids. All may raise LedgerDown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def accounts(self, now: int, *, after: int = ANONYMOUS, limit: int = 100, holding: str = "") -> list[Account]:
        """Those behind the id `after` whose names hold a text, `limit` at most."""
        live = sql.select(sql.func.count()).where(keys.c.account == accounts.c.id, keys.c.revoked.is_(None))
        query = sql.select(accounts, live.scalar_subquery().label("keys")).where(accounts.c.id > after)
        query = query.where(accounts.c.name.contains(holding, autoescape=True)).order_by(accounts.c.id).limit(limit)
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        ledger = Ledger(self._database)
        return [Account(row.id, row.name, row.created, row.keys, ledger.balances(row.id, now)) for row in found]

    def account(self, id: int, now: int) -> Account:
        """One of them. DeepwellError if there is none."""
        found = [one for one in self.accounts(now, after=id - 1, limit=1) if one.id == id and id != ANONYMOUS]
        if not found:
            raise DeepwellError(f"there is no account {id}")
        return found[0]

    def keys(self, *, after: int = 0, limit: int = 100, holding: str = "") -> list[Key]:
        """Keys behind the id `after` whose account's name holds a text, `limit` at most."""
        where = sql.and_(keys.c.id > after, accounts.c.name.contains(holding, autoescape=True))
        with self._database.reading() as connection:
            return keys_where(connection, where, limit)

    def began(self) -> int | None:
        """When the first request started, in microseconds (UTC); None if there was none."""
        with self._database.reading() as connection:
            began: int | None = connection.scalar(sql.select(sql.func.min(requests.c.started)))
            return began
