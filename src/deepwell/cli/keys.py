"""`deepwell keys`: API keys and the money of accounts, for who runs a server."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from deepwell.accounts import Clock, Keys, Ledger, Limits, Prices, open_database
from deepwell.accounts.keys import Key
from deepwell.accounts.money import MAX_AMOUNT, micro, units
from deepwell.cli.moments import moment, written
from deepwell.cli.terminal import console_of_tables, visible
from deepwell.errors import ConfigError
from deepwell.options import KeysOptions

if TYPE_CHECKING:
    from rich.table import Table

_LIMITS = {"requests_per_minute", "tokens_per_minute", "concurrent", "budget", "budget_period", "currency"}
_MONEY = {"name", "amount", "currency", "note"}
_TAKES: Mapping[str, set[str]] = {
    "add": {"name", "role", "models", "expires"} | _LIMITS,
    "list": {"json"},
    "limit": {"name", "models", "expires"} | _LIMITS,
    "revoke": {"name"},
    "grant": _MONEY | {"expires"},
    "top-up": _MONEY,
    "adjust": _MONEY,
}
"""What each action can be told; whatever else is given is refused."""
_KINDS: Mapping[str, Literal["grant", "top_up", "adjustment"]] = {
    "grant": "grant",
    "top-up": "top_up",
    "adjust": "adjustment",
}
_EVERYWHERE = {"action", "database", "prices"}


def run(options: KeysOptions) -> int:
    _check(options)
    prices = Prices.read(options.prices) if options.prices else Prices()
    options = msgspec.structs.replace(options, currency=options.currency or prices.currency)
    database = open_database(options.database)
    try:
        keys = Keys(database, welcome=prices.welcome)
        match options.action:
            case "add":
                _add(keys, Ledger(database), options)
            case "list":
                _list(keys, Ledger(database), options.json)
            case "limit":
                _limit(keys, options)
            case "revoke":
                key = keys.revoke(keys.named(options.name or "").id)
                _say(f"revoked key {key.id} of {key.name}; servers notice within seconds")
            case "grant" | "top-up" | "adjust":
                _move(keys, Ledger(database), options)
    finally:
        database.close()
    return 0


def _check(options: KeysOptions) -> None:
    takes = _TAKES[options.action]
    for field in msgspec.structs.fields(options):
        given = getattr(options, field.name) != field.default
        if given and field.name not in takes | _EVERYWHERE:
            flag = field.name.upper() if field.name in ("name", "amount") else "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} is nothing that keys {options.action} takes")
    for name in ("name", "amount"):
        if name in takes and getattr(options, name) is None:
            raise ConfigError(f"keys {options.action} needs {name.upper()}; `deepwell keys --help` shows examples")


def _add(keys: Keys, ledger: Ledger, options: KeysOptions) -> None:
    expires = _expires(options)
    secret, key = keys.add(
        options.name or "",
        role=options.role,
        models=_models(options.models),
        expires=expires,
        limits=_limits(Limits(), options),
    )
    _say(f"key {key.id} of {visible(key.name)}, shown this once:")
    print(secret)
    if not any(balance.total > 0 for balance in ledger.balances(key.account, Clock().now())):
        _say(
            f"{visible(key.name)} has no money yet; where tokens cost something, "
            f"`deepwell keys top-up {shlex.quote(visible(key.name))} 20` comes first"
        )


def _limit(keys: Keys, options: KeysOptions) -> None:
    key = keys.named(options.name or "")
    keys.limit(key.id, _limits(key.limits, options))
    models = _models(options.models) if options.models else key.models
    expires = _expires(options) if options.expires else key.expires
    _say(f"key {key.id} of {visible(key.name)}: {_told(keys.allow(key.id, models=models, expires=expires))}")


def _move(keys: Keys, ledger: Ledger, options: KeysOptions) -> None:
    kind = _KINDS[options.action]
    amount = micro(options.amount, "AMOUNT", least=-MAX_AMOUNT if kind == "adjustment" else 1)
    name, currency = options.name or "", options.currency or ""
    account, expires = keys.account_of(name), _expires(options)
    balance = ledger.move(account, currency, kind, amount, Clock().now(), expires=expires, note=options.note)
    _say(
        f"{visible(name)} has {units(balance.total)} {currency}: {units(balance.granted)} granted, "
        f"{units(balance.topped_up)} topped up"
    )


def _limits(before: Limits, options: KeysOptions) -> Limits:
    """`before` with what the options say; 0 lifts a limit."""
    changes: dict[str, Any] = {}
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
        if (given := getattr(options, name)) is not None:
            changes[name] = given or None
    if options.budget is not None:
        changes["budget"] = micro(options.budget, "--budget") or None
        changes["budget_currency"] = options.currency
    if options.budget_period is not None:
        changes["budget_period"] = options.budget_period
    return msgspec.structs.replace(before, **changes)


def _models(given: tuple[str, ...]) -> tuple[str, ...] | None:
    return None if not given or given == ("*",) else given


def _expires(options: KeysOptions) -> int | None:
    if options.expires in (None, "never"):
        return None
    now = Clock().now()
    expires = moment("--expires", options.expires, now, 1)
    if expires <= now:
        raise ConfigError(f"--expires: {options.expires} is in the past")
    return expires


def _list(keys: Keys, ledger: Ledger, as_json: bool) -> None:
    found = keys.all()
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    console = console_of_tables(200)
    if not found:
        _say("there is no key; `deepwell keys add NAME` makes one")
        return
    console.print(_table(found, ledger))


def _table(found: list[Key], ledger: Ledger) -> Table:
    from rich.table import Table

    now = Clock().now()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("id", "account", "key", "role", "made", "state", "may", "balance"):
        table.add_column(title, justify="right" if title == "id" else "left", overflow="fold")
    for key in found:
        state = "revoked" if key.revoked else "expired" if key.expired(now) else "good"
        money = ", ".join(f"{units(one.total)} {one.currency}" for one in ledger.balances(key.account, now))
        made = written(key.created)
        table.add_row(str(key.id), visible(key.name), f"{key.prefix}...", key.role, made, state, _told(key), money)
    return table


def _told(key: Key) -> str:
    """A key's limits in words."""
    limits, parts = key.limits, []
    if key.models is not None:
        parts.append(visible(", ".join(key.models)))
    if limits.requests_per_minute is not None:
        parts.append(f"{limits.requests_per_minute} requests/min")
    if limits.tokens_per_minute is not None:
        parts.append(f"{limits.tokens_per_minute} tokens/min")
    if limits.concurrent is not None:
        parts.append(f"{limits.concurrent} at once")
    if limits.budget is not None:
        per = "a month" if limits.budget_period == "month" else "in all"
        parts.append(f"{units(limits.budget)} {limits.budget_currency} {per}")
    if key.expires is not None:
        parts.append(f"until {written(key.expires)}")
    return "; ".join(parts) or "everything"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
