"""API keys: who may ask, for what, how much. A secret is shown once; what is kept is its SHA-256.

A plain hash does for secrets of 256 random bits: there is nothing to guess, so nothing to slow down or salt. They are
looked up by their hash, and how long that takes tells of the hash alone, from which no secret follows.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sql
from sqlalchemy.engine import Connection

from deepwell.accounts.clock import DAY, Clock
from deepwell.accounts.database import Database, accounts, insert_new, keys
from deepwell.accounts.ledger import move
from deepwell.accounts.prices import Welcome
from deepwell.errors import DeepwellError, shown

Role = Literal["admin", "user"]
Period = Literal["month", "total"]
_SHOWN = 10
"""Characters of a secret that are kept to tell keys apart."""
MAX_SECRET = 256
"""Longest text that is looked up as a key."""


class Limits(msgspec.Struct, frozen=True):
    """What a key may take; None is no limit. Minutes are any 60 seconds, `concurrent` is requests at one time, `budget`
    is in micro-units of `currency`, in a calendar month (UTC) or in all."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    budget: int | None = None
    budget_currency: str = "USD"
    budget_period: Period = "month"


class Key(msgspec.Struct, frozen=True):
    """A key as it is kept. `name` is the account's; `models` None is all of them; times are microseconds (UTC)."""

    id: int
    account: int
    name: str
    prefix: str
    role: Role
    models: tuple[str, ...] | None
    created: int
    expires: int | None
    revoked: int | None
    limits: Limits

    def expired(self, now: int) -> bool:
        return self.expires is not None and self.expires <= now


class Keys:
    """The keys of a database. All may raise LedgerDown."""

    def __init__(self, database: Database, clock: Clock | None = None, welcome: Welcome | None = None) -> None:
        """`welcome` is granted to every account that is made."""
        self._database = database
        self._clock = clock or Clock()
        self._welcome = welcome

    def add(
        self,
        name: str,
        *,
        role: Role = "user",
        models: Sequence[str] | None = None,
        expires: int | None = None,
        limits: Limits | None = None,
    ) -> tuple[str, Key]:
        """A new key of the account `name`, which is made if need be: the secret, to be shown once, and the key."""
        secret = "sk-" + secrets.token_urlsafe(32)
        now = self._clock.now()
        with self._database.writing() as connection:
            account = self._account(connection, name, now)
            made = connection.execute(
                keys.insert().values(
                    account=account,
                    hash=digest(secret),
                    prefix=secret[:_SHOWN],
                    role=role,
                    models=None if models is None else msgspec.json.encode(list(models)).decode(),
                    created=now,
                    expires=expires,
                    **msgspec.structs.asdict(limits or Limits()),
                )
            )
            id = made.inserted_primary_key[0]  # type: ignore[index]
            return secret, keys_where(connection, keys.c.id == id)[0]

    def account_of(self, name: str) -> int:
        """The id of the account `name`. DeepwellError if there is none."""
        with self._database.reading() as connection:
            id = connection.scalar(sql.select(accounts.c.id).where(accounts.c.name == name))
        if id is None or not name:
            raise DeepwellError(f"there is no account {shown(name)}; `deepwell keys add NAME` makes one with a key")
        return int(id)

    def find(self, secret: str) -> Key | None:
        """The key of a secret, also when it is expired or revoked."""
        if len(secret) > MAX_SECRET:
            return None
        with self._database.reading() as connection:
            return next(iter(keys_where(connection, keys.c.hash == digest(secret))), None)

    def get(self, id: int) -> Key | None:
        """The key of an id, also when it is expired or revoked."""
        with self._database.reading() as connection:
            return next(iter(keys_where(connection, keys.c.id == id)), None)

    def some(self, ids: Collection[int]) -> list[Key]:
        """The keys of some ids, also the expired and revoked."""
        if not ids:
            return []
        with self._database.reading() as connection:
            return keys_where(connection, keys.c.id.in_(ids))

    def all(self) -> list[Key]:
        """Every key that ever was, the oldest first."""
        with self._database.reading() as connection:
            return keys_where(connection, sql.true())

    def any(self) -> bool:
        """Whether a key was ever made: from then on nobody gets in without one, even if all are revoked."""
        with self._database.reading() as connection:
            return connection.scalar(sql.select(keys.c.id).limit(1)) is not None

    def named(self, which: str) -> Key:
        """The key that a person means: by its id, the beginning of its secret, or its account if that has one only.

        Revoked keys are meant by their id alone. DeepwellError if it is none or several.
        """
        found = [key for key in self.all() if str(key.id) == which or (_means(key, which) and not key.revoked)]
        exact = [key for key in found if str(key.id) == which] or found
        if len(exact) == 1:
            return exact[0]
        if not exact:
            raise DeepwellError(f"there is no key {shown(which)}; `deepwell keys list` shows them")
        ids = ", ".join(str(key.id) for key in exact)
        raise DeepwellError(f"{shown(which)} has several keys; name one by its id: {ids}")

    def limit(self, id: int, limits: Limits) -> Key:
        """Give a key other limits."""
        return self._change(id, **msgspec.structs.asdict(limits))

    def allow(self, id: int, *, models: Sequence[str] | None, expires: int | None) -> Key:
        """Give a key other models (None: all) and another end (None: none)."""
        text = None if models is None else msgspec.json.encode(list(models)).decode()
        return self._change(id, models=text, expires=expires)

    def revoke(self, id: int) -> Key:
        """End a key for good; one that is revoked stays as it was."""
        with self._database.writing() as connection:
            this = sql.and_(keys.c.id == id, keys.c.revoked.is_(None))
            connection.execute(keys.update().where(this).values(revoked=self._clock.now()))
            return _one(connection, id)

    def _account(self, connection: Connection, name: str, now: int) -> int:
        if not name or len(name) > 200 or not name.isprintable() or name != name.strip():
            raise DeepwellError(f"an account's name is 1 to 200 printable characters, not {shown(name)}")
        fresh = insert_new(connection, accounts, name=name, created=now)
        id = int(connection.execute(sql.select(accounts.c.id).where(accounts.c.name == name)).scalar_one())
        if fresh and (gift := self._welcome):
            expires = None if gift.days is None else now + gift.days * DAY
            move(connection, id, gift.currency, "grant", gift.amount, now, expires=expires, note="welcome")
        return id

    def _change(self, id: int, **values: object) -> Key:
        with self._database.writing() as connection:
            connection.execute(keys.update().where(keys.c.id == id).values(**values))
            return _one(connection, id)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _means(key: Key, which: str) -> bool:
    return key.name == which or (len(which) >= _SHOWN and which.startswith(key.prefix))


def _one(connection: Connection, id: int) -> Key:
    found = keys_where(connection, keys.c.id == id)
    if not found:
        raise DeepwellError(f"there is no key {id}")
    return found[0]


def keys_where(connection: Connection, where: sql.ColumnElement[bool], limit: int | None = None) -> list[Key]:
    """Keys in the order of their making, `limit` at most; `where` is of the tables `keys` and `accounts`."""
    query = sql.select(keys, accounts.c.name).join(accounts, accounts.c.id == keys.c.account)
    found = connection.execute(query.where(where).order_by(keys.c.id).limit(limit))
    return [_key(row._mapping) for row in found]


def _key(row: Any) -> Key:
    return Key(
        id=row["id"],
        account=row["account"],
        name=row["name"],
        prefix=row["prefix"],
        role=row["role"],
        models=None if row["models"] is None else tuple(msgspec.json.decode(row["models"])),
        created=row["created"],
        expires=row["expires"],
        revoked=row["revoked"],
        limits=Limits(**{name: row[name] for name in Limits.__struct_fields__}),
    )
