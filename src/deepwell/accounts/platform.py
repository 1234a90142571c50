"""Who may ask, and what it costs: all that a server sees of accounts.

A request is opened before it is queued, counted as it goes, and ended once. Money and limits are decided from what this
process knows, which is refreshed every few seconds; the ledger alone is exact.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from deepwell.accounts.clock import Clock, month_start
from deepwell.accounts.database import ANONYMOUS, Database
from deepwell.accounts.journal import Journal, Live, leftovers
from deepwell.accounts.keys import Key, Keys, Limits, Role, digest
from deepwell.accounts.ledger import Balance, Ledger, Row
from deepwell.accounts.meter import FRESH_SECONDS, Meter, Tab, Use, row_of
from deepwell.accounts.money import Price, units
from deepwell.accounts.prices import Prices
from deepwell.accounts.writer import Writer
from deepwell.errors import BadKey, Broke, LedgerDown, ModelUnknown, OverLimit, shown

PATIENCE = 5.0
"""Seconds that the database may be away before requests are refused and live ones end."""
_KEPT = 10_000
"""Keys and balances remembered at most."""
_SECOND = 10**9

_log = logging.getLogger(__name__)


class Caller(msgspec.Struct, frozen=True):
    """Who asks. `models` None is all of them; `scope` parts the prefix cache, where accounts are kept apart in it."""

    account: int
    key: int
    name: str
    role: Role
    models: tuple[str, ...] | None
    scope: bytes = b""
    limits: Limits = Limits()

    @property
    def anonymous(self) -> bool:
        """Whether there was no key, because none was ever made: nothing is limited then, and nothing owed."""
        return self.key == ANONYMOUS


class Platform:
    """The accounts of one server process. For any thread."""

    def __init__(
        self,
        database: Database,
        prices: Prices | None = None,
        *,
        clock: Clock | None = None,
        isolate: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        """Takes over what processes that were killed have left. `isolate`: no account finds the prompts of another in
        the prefix cache; `patience`: seconds that the database may be away. Raises LedgerDown, OSError.
        """
        self.database = database
        self.prices = prices or Prices()
        self.clock = clock or Clock()
        self._isolate = isolate
        self._patience = int(patience * _SECOND)
        self._keys = Keys(database, self.clock)
        self._ledger = Ledger(database)
        recover(database, self.clock)
        self._journal = Journal(database.live, database.id)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, Key | None]] = {}
        self._any: tuple[int, bool] = (0, False)
        self._tabs: dict[tuple[object, ...], Tab] = {}
        self._uses: dict[int, Use] = {}
        self._live: dict[str, Meter] = {}
        self._writer = Writer(self._write, self._refresh, self.clock)

    @property
    def required(self) -> bool:
        """Whether a key is needed: from the first one that is made, for good. Raises LedgerDown."""
        read_at, any_key = self._any
        now = self.clock.elapsed()
        if not read_at or (not any_key and now - read_at > FRESH_SECONDS * _SECOND):
            self._any = now, self._keys.any()
        return self._any[1]

    def knows(self, secret: str | None) -> bool:
        """Whether `caller` answers without asking the database."""
        now, fresh = self.clock.elapsed(), FRESH_SECONDS * _SECOND
        read_at, any_key = self._any
        if not read_at or (not any_key and now - read_at > fresh):
            return False
        known = self._known.get(digest(secret)) if secret and any_key else None
        return not any_key or not secret or (known is not None and now - known[0] <= fresh)

    def caller(self, secret: str | None) -> Caller:
        """Who has this key. Raises BadKey, LedgerDown."""
        if not self.required:
            return Caller(ANONYMOUS, ANONYMOUS, "", "user", None)
        if not secret:
            raise BadKey("an API key is needed, as the header Authorization: Bearer sk-...")
        key = self._key(secret)
        if key is None:
            raise BadKey("there is no such API key")
        return self._caller(key)

    def caller_of(self, key: int) -> Caller:
        """The holder of a key by the key's id, for what is done later than it was asked. Raises BadKey, LedgerDown."""
        if key == ANONYMOUS and not self.required:
            return self.caller(None)
        found = self._keys.get(key)
        if found is None:
            raise BadKey("there is no such API key")
        return self._caller(found)

    def open(
        self,
        caller: Caller,
        *,
        id: str,
        model: str,
        kind: str,
        prompt_tokens: int,
        checked: bool = False,
        counted: bool = False,
    ) -> Meter:
        """Begin a request. `id` is the server's own, and of no other request; `kind` is chat, completion, and so on.
        For one that was `checked`, money is what was read then: nothing waits for the database. One that `count` has
        counted is within the key's limits.

        Raises ModelUnknown for a model that the key may not use, Broke, OverLimit, LedgerDown.
        """
        started = self.clock.now()
        price = self.prices.at(model, started, kind=kind)
        tabs = self._may_begin(caller, model, price, started, anew=not checked)
        live = Live(id, caller.account, caller.key, model, kind, started, price)
        with self._lock:
            _check_money(tabs)
            if id in self._live:
                raise LedgerDown(f"request {id} is not written down yet")
            use = self._uses.setdefault(caller.key, Use())
            if not counted:
                self._check(use, caller.limits, [prompt_tokens], 1)
            slot = self._journal.take(live)
            if slot is None:
                raise LedgerDown("too many requests wait for the ledger")
            if not counted:
                self._add(use, [prompt_tokens])
            made = Meter(
                caller,
                live,
                prompt_tokens,
                slot,
                tabs,
                use,
                clock=self.clock,
                lock=self._lock,
                trouble=self._trouble,
                put=self._writer.put,
            )
            self._live[id] = made
            return made

    def count(self, caller: Caller, prompts: Sequence[int], at_once: int) -> None:
        """Count requests with prompts of so many tokens, `at_once` of them at one time, before any is opened. Raises
        OverLimit if they are too many together, and counts none then."""
        with self._lock:
            use = self._uses.setdefault(caller.key, Use())
            self._check(use, caller.limits, prompts, at_once)
            self._add(use, prompts)

    def check(self, caller: Caller, model: str, kind: str = "chat") -> None:
        """Raise what `open` would now for any request of that kind, limits not among it."""
        now = self.clock.now()
        self._may_begin(caller, model, self.prices.at(model, now, kind=kind), now)

    def is_free(self, model: str, kind: str = "chat") -> bool:
        """Whether nothing is asked for it now."""
        return self.prices.at(model, self.clock.now(), kind=kind).free

    def balance(self, account: int) -> tuple[Balance, ...]:
        """What an account has by the ledger. Raises LedgerDown."""
        return self._ledger.balances(account, self.clock.now())

    def flush(self, seconds: float) -> bool:
        """Wait until what has ended is in the ledger, `seconds` at most; whether it is."""
        return self._writer.flush(seconds)

    def close(self, seconds: float = PATIENCE) -> None:
        """End what is live, and write for `seconds` at most; what is not written then is for the next start."""
        for meter in list(self._live.values()):
            meter.give_up("interrupted")
        self._writer.close(seconds)
        self._journal.close()

    def _may_begin(self, caller: Caller, model: str, price: Price, now: int, anew: bool = True) -> list[Tab]:
        """What a request is paid from, read `anew` if it is old. Raises ModelUnknown, Broke, LedgerDown."""
        if trouble := self._trouble():
            raise trouble
        if caller.models is not None and model not in caller.models:
            raise ModelUnknown(f"this key may not use {model!r}; it may use {', '.join(caller.models)}", "model")
        tabs = self._tabs_of(caller, price, now)
        for tab in tabs:
            if anew or tab.read_at is None:
                tab.refresh(self.clock, self._lock)
        with self._lock:
            _check_money(tabs)
        return tabs

    def _trouble(self) -> LedgerDown | None:
        since = self._writer.failing_since
        if since is None or self.clock.elapsed() - since <= self._patience:
            return None
        return LedgerDown("what is used cannot be written down at the moment; try again later")

    def _key(self, secret: str) -> Key | None:
        """By its secret; read anew every few seconds, and believed longer while the database is away."""
        name, now = digest(secret), self.clock.elapsed()
        known = self._known.get(name)
        if known and now - known[0] <= FRESH_SECONDS * _SECOND:
            return known[1]
        try:
            key = self._keys.find(secret)
        except LedgerDown:
            if not known:
                raise
            return known[1]
        with self._lock:
            _bound(self._known)
            self._known[name] = now, key
        return key

    def _caller(self, key: Key) -> Caller:
        if ended := _ended(key, self.clock.now()):
            raise ended
        scope = key.account.to_bytes(8, "big") if self._isolate else b""
        return Caller(key.account, key.id, key.name, key.role, key.models, scope, key.limits)

    def _add(self, use: Use, prompts: Sequence[int]) -> None:
        now = self.clock.elapsed()
        use.requests.add(now, len(prompts))
        use.tokens.add(now, sum(prompts))

    def _check(self, use: Use, limits: Limits, prompts: Sequence[int], at_once: int) -> None:
        """Raises OverLimit if requests with these prompts are too much."""
        now = self.clock.elapsed()
        if limits.concurrent is not None and use.live + at_once > limits.concurrent:
            raise OverLimit(f"this key may have {limits.concurrent} requests at one time", "concurrent")
        if limits.requests_per_minute is not None:
            wait = use.requests.wait(now, len(prompts), limits.requests_per_minute)
            _refuse(wait, f"this key may make {limits.requests_per_minute} requests per minute", "requests_per_minute")
        if limits.tokens_per_minute is not None:
            wait = use.tokens.wait(now, sum(prompts) + use.output_live, limits.tokens_per_minute)
            _refuse(wait, f"this key may use {limits.tokens_per_minute} tokens per minute", "tokens_per_minute")

    def _tabs_of(self, caller: Caller, price: Price, started: int) -> list[Tab]:
        """What the request is paid from: its account's balance, and its key's budget."""
        if price.free or caller.anonymous:
            return []
        account, key, limits = caller.account, caller.key, caller.limits
        tabs = [
            self._tab(
                ("balance", account, price.currency),
                f"Insufficient Balance: the account {shown(caller.name)} has no {price.currency} left",
                lambda: sum(one.total for one in self.balance(account) if one.currency == price.currency),
            )
        ]
        budget = limits.budget
        if budget is not None and limits.budget_currency != price.currency:
            raise Broke(f"this key's budget is in {limits.budget_currency}, and the price in {price.currency}")
        if budget is not None:
            since = month_start(started) if limits.budget_period == "month" else 0
            tabs.append(
                self._tab(
                    ("budget", key, price.currency, since, budget),
                    f"this key's budget of {units(budget)} {price.currency} is used up",
                    lambda: budget - self._ledger.spent(key, price.currency, since),
                )
            )
        return tabs

    def _tab(self, name: tuple[object, ...], exhausted: str, read: Callable[[], int]) -> Tab:
        with self._lock:
            tab = self._tabs.get(name)
            if tab is None:
                _bound(self._tabs, lambda tab: not (tab.unsettled or tab.held))
                tab = self._tabs[name] = Tab(exhausted, read)
            return tab

    def _write(self, group: Sequence[Meter]) -> None:
        """Write a group into the ledger; from then on it knows what was counted for it. Raises LedgerDown."""
        self._committing(group, 1)
        try:
            self._ledger.append([meter.row() for meter in group], self.clock.now())
            self._settle(group)
        finally:
            self._committing(group, -1)
        for meter in group:
            self._journal.free(meter.slot)

    def _committing(self, group: Sequence[Meter], more: int) -> None:
        with self._lock:
            for tab in (tab for meter in group for tab in meter.tabs):
                tab.committing += more

    def _settle(self, group: Sequence[Meter]) -> None:
        with self._lock:
            for meter in group:
                self._live.pop(meter.live.id, None)
                for tab in meter.tabs:
                    tab.unsettled -= meter.cost
                    tab.settled -= meter.cost
                    tab.settlements += 1

    def _refresh(self) -> None:
        """See what others did to the money that live requests are paid from, and to their keys."""
        with self._lock:
            live = list(self._live.values())
        with suppress(LedgerDown):
            for tab in {tab for meter in live for tab in meter.tabs}:
                tab.refresh(self.clock, self._lock)
            found = self._keys.some({meter.caller.key for meter in live if not meter.caller.anonymous})
            ended = {key.id: _ended(key, self.clock.now()) for key in found}
            for meter in live:
                meter.refused = ended.get(meter.caller.key)


def recover(database: Database, clock: Clock | None = None) -> int:
    """Write down what processes that were killed have left, once; how many requests. Raises LedgerDown."""
    count, now = 0, (clock or Clock()).now()
    for left in leftovers(database.live):
        found = left.read(database.id)
        if found is None:
            continue
        rows = [row_of(one) for one in found]
        written = _append(Ledger(database), rows, now)
        if written == len(rows):
            left.remove()
        count += written
    return count


def _append(ledger: Ledger, rows: Sequence[Row], now: int) -> int:
    """How many of the rows the ledger has taken; what it will not have is told in the log. Raises LedgerDown."""
    try:
        ledger.append(rows, now)
    except LedgerDown:
        raise
    except Exception:
        if len(rows) > 1:
            return sum(_append(ledger, [row], now) for row in rows)
        _log.exception("the ledger will not have %r; it stays in the journal", rows)
        return 0
    return len(rows)


def _ended(key: Key, now: int) -> BadKey | None:
    """Why a key opens nothing any more."""
    if key.revoked is not None:
        return BadKey("this API key was revoked")
    return BadKey("this API key has expired") if key.expired(now) else None


def _check_money(tabs: Sequence[Tab]) -> None:
    for tab in tabs:
        if tab.left - tab.held <= 0:
            raise Broke(tab.exhausted)


def _refuse(wait: int, message: str, limit: str) -> None:
    if wait > 0:
        raise OverLimit(message, limit, max(1, -(-wait // _SECOND)))


def _bound(kept: dict[Any, Any], may_go: Callable[[Any], bool] = lambda _: True) -> None:
    """Forget the oldest of what is remembered, when that is too much."""
    while len(kept) >= _KEPT:
        oldest = next((name for name, value in kept.items() if may_go(value)), None)
        if oldest is None:
            return
        del kept[oldest]
