"""Keys and accounts for administrators: listed in pages, made, limited, revoked, given money. Keys are sent in headers
alone, never in cookies, so no page of a stranger can act with them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.routing import Route

from deepwell.accounts.clock import SECOND
from deepwell.accounts.keys import Key, Limits, Period, Role
from deepwell.accounts.ledger import Balance
from deepwell.accounts.money import MAX_AMOUNT, micro, units
from deepwell.accounts.rolls import Account
from deepwell.errors import RequestError
from deepwell.server.books import books, usage
from deepwell.server.desk import Desk, endpoint
from deepwell.server.query import LAST_MOMENT, integer

MOST_LISTED = 500
MAX_INTEGER = 2**53
MAX_NAME = 200

Count = Annotated[int, Meta(ge=1, le=MAX_INTEGER, description="a whole number of 1 or more, or null for no limit")]
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$", max_length=3, description="a currency's three letters")]
Model = Annotated[str, Meta(max_length=200)]
Models = Annotated[list[Model], Meta(max_length=100, description="at most 100 names of models, or null for all")]
Moment = Annotated[int, Meta(ge=0, le=LAST_MOMENT // SECOND, description="seconds since 1970, or null for never")]


class LimitsBody(msgspec.Struct, frozen=True):
    """What a key may take; null is no limit. `budget` is an amount of money as text, such as "12.50"."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent: Count | None = None
    budget: str | None = None
    budget_currency: Currency = "USD"
    budget_period: Period = "month"

    def limits(self) -> Limits:
        budget = None if self.budget is None else micro(self.budget, "limits.budget")
        return Limits(**{**msgspec.structs.asdict(self), "budget": budget})


class KeyBody(msgspec.Struct, frozen=True):
    """A new key of the account `name`, which is made if need be."""

    name: str
    role: Role = "user"
    models: Models | None = None
    expires: Moment | None = None
    limits: LimitsBody = LimitsBody()


class ChangeBody(msgspec.Struct, frozen=True):
    """What of a key becomes another; what is left out stays."""

    models: Models | UnsetType | None = UNSET
    expires: Moment | UnsetType | None = UNSET
    limits: LimitsBody | UnsetType = UNSET


class MovementBody(msgspec.Struct, frozen=True):
    """Money for an account: `amount` as text; only an adjustment may be negative, only a grant may end."""

    kind: Literal["grant", "top_up", "adjustment"]
    amount: str
    currency: Currency = "USD"
    expires: Moment | None = None
    note: Annotated[str, Meta(max_length=200)] = ""


class KeyCard(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is listed. Times are seconds since 1970 (UTC). `key` is the secret, of a new key alone."""

    id: int
    account: int
    name: str
    prefix: str
    role: Role
    models: tuple[str, ...] | None
    created: int
    expires: int | None
    revoked: int | None
    limits: LimitsBody
    key: str | UnsetType = UNSET


class BalanceCard(msgspec.Struct, frozen=True):
    """Money of one currency, as texts."""

    currency: str
    total: str
    granted: str
    topped_up: str


class AccountCard(msgspec.Struct, frozen=True):
    """An account as it is listed."""

    id: int
    name: str
    created: int
    keys: int
    balances: list[BalanceCard]


class KeyPage(msgspec.Struct, frozen=True):
    """A page of keys; the next one is asked for with `after`, the id of the last one."""

    data: list[KeyCard]
    has_more: bool
    object: Literal["list"] = "list"


class AccountPage(msgspec.Struct, frozen=True):
    """A page of accounts, like one of keys."""

    data: list[AccountCard]
    has_more: bool
    object: Literal["list"] = "list"


def admin_routes() -> list[Route]:
    """The endpoints below /admin, which the page of that name uses."""
    get, post = ["GET"], ["POST"]
    return [
        Route("/admin/books", endpoint(books, open_without_keys=True), methods=get),
        Route("/admin/usage", endpoint(usage, open_without_keys=True), methods=get),
        Route("/admin/keys", endpoint(list_keys), methods=get),
        Route("/admin/keys", endpoint(add_key, KeyBody), methods=post),
        Route("/admin/keys/{id}", endpoint(change_key, ChangeBody), methods=post),
        Route("/admin/keys/{id}/revoke", endpoint(revoke_key), methods=post),
        Route("/admin/accounts", endpoint(list_accounts), methods=get),
        Route("/admin/accounts/{id}/movements", endpoint(move, MovementBody), methods=post),
    ]


def list_keys(request: Request, desk: Desk) -> KeyPage:
    """Keys in the order of their making."""
    after, limit, holding = _page(request)
    found = [_key_card(key) for key in desk.rolls.keys(after=after, limit=limit + 1, holding=holding)]
    return KeyPage(found[:limit], len(found) > limit)


def add_key(_: Request, desk: Desk, body: KeyBody) -> KeyCard:
    """A new key; its secret is in this answer and nowhere else."""
    secret, key = desk.keys.add(
        body.name, role=body.role, models=body.models, expires=_micros(body.expires), limits=body.limits.limits()
    )
    return msgspec.structs.replace(_key_card(key), key=secret)


def change_key(request: Request, desk: Desk, body: ChangeBody) -> KeyCard:
    """Other limits, models or another end."""
    id = _id(request)
    key = desk.keys.limit(id, body.limits.limits()) if body.limits is not UNSET else desk.keys.get(id)
    if key is None:
        raise RequestError(f"there is no key {id}", "id")
    if body.models is not UNSET or body.expires is not UNSET:
        models = key.models if body.models is UNSET else body.models
        expires = key.expires if body.expires is UNSET else _micros(body.expires)
        key = desk.keys.allow(id, models=models, expires=expires)
    return _key_card(key)


def revoke_key(request: Request, desk: Desk) -> KeyCard:
    """The end of a key, for good."""
    return _key_card(desk.keys.revoke(_id(request)))


def list_accounts(request: Request, desk: Desk) -> AccountPage:
    """Accounts with their money."""
    after, limit, holding = _page(request)
    found = [_account_card(one) for one in desk.rolls.accounts(desk.now, after=after, limit=limit + 1, holding=holding)]
    return AccountPage(found[:limit], len(found) > limit)


def move(request: Request, desk: Desk, body: MovementBody) -> AccountCard:
    """A grant, a top-up or an adjustment; the account after it."""
    account = desk.rolls.account(_id(request), desk.now)
    amount = micro(body.amount, "amount", least=-MAX_AMOUNT)
    if not body.note.isprintable():
        raise RequestError("note must be printable text", "note")
    desk.ledger.move(
        account.id, body.currency, body.kind, amount, desk.now, expires=_micros(body.expires), note=body.note
    )
    return _account_card(desk.rolls.account(account.id, desk.now))


def _page(request: Request) -> tuple[int, int, str]:
    """What page of a list is asked for: behind which id, how many at most, with which text in the name."""
    after = integer(request, "after", 0, 0, MAX_INTEGER)
    limit = integer(request, "limit", 50, 1, MOST_LISTED)
    holding = request.query_params.get("name", "")
    # Names are printable: PostgreSQL would not even be asked for one with a zero in it.
    if len(holding) > MAX_NAME or not holding.isprintable():
        raise RequestError(f"name must be a part of a name, {MAX_NAME} printable characters at most", "name")
    return after, limit, holding


def _id(request: Request) -> int:
    text: str = request.path_params["id"]
    if not text.isdecimal() or len(text) > len(str(MAX_INTEGER)):
        raise RequestError("the id in the path must be a whole number", "id")
    return int(text)


def _key_card(key: Key) -> KeyCard:
    budget = None if key.limits.budget is None else units(key.limits.budget)
    limits = LimitsBody(**{**msgspec.structs.asdict(key.limits), "budget": budget})
    return KeyCard(
        id=key.id,
        account=key.account,
        name=key.name,
        prefix=key.prefix,
        role=key.role,
        models=key.models,
        created=key.created // SECOND,
        expires=_seconds(key.expires),
        revoked=_seconds(key.revoked),
        limits=limits,
    )


def _account_card(account: Account) -> AccountCard:
    balances = [_balance_card(balance) for balance in account.balances]
    return AccountCard(account.id, account.name, account.created // SECOND, account.keys, balances)


def _balance_card(balance: Balance) -> BalanceCard:
    return BalanceCard(balance.currency, units(balance.total), units(balance.granted), units(balance.topped_up))


def _micros(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * SECOND


def _seconds(micros: int | None) -> int | None:
    return None if micros is None else micros // SECOND
