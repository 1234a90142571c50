"""A request is opened, counted and billed once; who may not ask is told so."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rows import row

from deepwell.accounts import Balance, Clock, Database, Keys, Ledger, Limits, Platform, Prices, open_database
from deepwell.accounts.books import Books
from deepwell.accounts.money import Price
from deepwell.accounts.prices import Welcome
from deepwell.errors import BadKey, Broke, LedgerDown, ModelUnknown, OverLimit

ASK = {"model": "m", "kind": "chat", "prompt_tokens": 5}


class Flat(Prices, frozen=True):
    """One price for all: 1, 2 and 8 dollars."""

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        return Price(1_000_000, 2_000_000, 8_000_000)


@pytest.fixture
def platform(database: Database) -> Iterator[Platform]:
    made = Platform(database, Flat())
    yield made
    made.close()


def test_a_request_is_billed_once(database: Database, platform: Platform) -> None:
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "grant", 100, 1)
    Ledger(database).move(key.account, "USD", "top_up", 1_000_000, 1)
    caller = platform.caller(secret)
    assert (caller.name, caller.role, caller.models) == ("ada", "user", None)
    meter = platform.open(caller, id="r1", model="m", kind="chat", prompt_tokens=30)
    assert meter.progress(10, 20, 1)
    assert meter.progress(10, 20, 5)
    meter.end(10, 20, 7, 3, "stop")
    meter.end(10, 20, 9, 3, "stop")
    assert platform.flush(5)
    [row] = Ledger(database).rows()
    assert (row.hit, row.miss, row.output, row.reasoning, row.reason) == (10, 20, 7, 3, "stop")
    assert row.cost == 10 + 2 * 20 + 8 * 7
    assert (row.from_granted, row.from_topped_up) == (100, 6)
    assert row.ended - row.started == row.whole_us >= (row.first_us or 0) >= 0
    [balance] = platform.balance(key.account)
    assert (balance.granted, balance.topped_up) == (0, 999_994)
    assert Ledger(database).audit() == []
    assert platform.open(caller, id="r2", model="m", kind="chat", prompt_tokens=1)


def test_what_was_checked_is_begun_without_the_database(
    database: Database, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop begins it, which must wait for nothing."""
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", 1_000_000, 1)
    caller = platform.caller(secret)
    platform.check(caller, "m")
    later = time.monotonic_ns() + 60 * 10**9
    monkeypatch.setattr(platform, "clock", Clock(elapsed=lambda: later))

    def waits(_: int) -> tuple[Balance, ...]:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(platform, "balance", waits)
    platform.open(caller, id="a", checked=True, **ASK).end(0, 5, 1, 0, "stop")
    with pytest.raises(AssertionError, match="was asked"):
        platform.open(caller, id="b", **ASK)


def test_without_any_key_all_may_ask_and_nobody_owes(platform: Platform, database: Database) -> None:
    assert not platform.required
    caller = platform.caller("whatever an SDK sends")
    assert caller.anonymous
    meter = platform.open(caller, id="r1", model="m", kind="chat", prompt_tokens=1)
    assert meter.progress(0, 10**6, 10**6)
    meter.end(0, 10**6, 10**6, 0, "stop")
    assert platform.flush(5)
    assert Ledger(database).audit() == []


def test_keys_that_do_not_hold_are_refused(database: Database) -> None:
    keys = Keys(database)
    revoked, key = keys.add("ada")
    keys.revoke(key.id)
    expired, _ = keys.add("ada", expires=1)
    platform = Platform(database)
    assert platform.required
    for secret in (None, "", "sk-unknown", "sk-" + "x" * 10_000, "\ud800", revoked, expired):
        with pytest.raises(BadKey) as refusal:
            platform.caller(secret)
        assert not secret or secret not in str(refusal.value)
    platform.close()


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_what_runs_on_a_key_that_ends_ends_soon_and_is_billed(database: Database, how: str) -> None:
    platform, keys = Platform(database, Flat()), Keys(database)
    live = {}
    for name in ("ada", "bob"):
        secret, key = keys.add(name)
        Ledger(database).move(key.account, "USD", "top_up", 1_000_000, 1)
        live[name] = platform.open(platform.caller(secret), id=name, **ASK), key
    meter, key = live["ada"]
    assert meter.progress(0, 5, 1)
    if how == "revoked":
        keys.revoke(key.id)
    else:
        keys.allow(key.id, models=None, expires=platform.clock.now())
    began, output = time.monotonic(), 2
    while meter.progress(0, 5, output):
        assert time.monotonic() - began < 5
        time.sleep(0.05)
        output += 1
    assert isinstance(meter.why, BadKey)
    meter.end(0, 5, output, 0, "cut")
    other, _ = live["bob"]
    assert other.progress(0, 5, 1)
    other.end(0, 5, 1, 0, "stop")
    platform.close()
    rows = {row.id: row for row in Ledger(database).rows()}
    assert (rows["ada"].output, rows["ada"].cost) == (output, 5 * 2 + 8 * output)
    assert Ledger(database).audit() == []


def test_a_secret_is_nowhere_in_the_database(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "accounts.sqlite"))
    secret, _ = Keys(database).add("ada")
    Platform(database).caller(secret)
    assert len(secret) >= 46
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or secret.encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0


def test_models_money_and_limits(database: Database, platform: Platform) -> None:
    keys = Keys(database)
    secret, key = keys.add("ada", models=["small"], limits=Limits(requests_per_minute=2, concurrent=1))
    caller = platform.caller(secret)
    ask = {"kind": "chat", "prompt_tokens": 5}
    with pytest.raises(ModelUnknown):
        platform.open(caller, id="a", model="large", **ask)
    with pytest.raises(Broke):
        platform.open(caller, id="a", model="small", **ask)
    Ledger(database).move(key.account, "USD", "top_up", 50, 1)
    time.sleep(0.11)
    meter = platform.open(caller, id="a", model="small", **ask)
    with pytest.raises(OverLimit) as refusal:
        platform.open(caller, id="b", model="small", **ask)
    assert refusal.value.limit == "concurrent"
    assert meter.progress(0, 5, 4)
    assert not meter.progress(0, 5, 5)
    assert isinstance(meter.why, Broke)
    meter.end(0, 5, 5, 0, "balance")
    assert platform.flush(5)
    with pytest.raises(Broke):
        platform.open(caller, id="b", model="small", **ask)


def test_a_locked_database_refuses_and_loses_nothing(url: str, tmp_path: Path) -> None:
    database = open_database(url, busy_seconds=0.05, environ={"XDG_DATA_HOME": str(tmp_path)})
    platform = Platform(database, Flat(), patience=0.2)
    caller = platform.caller(None)
    first, second = (platform.open(caller, id=id, **ASK) for id in "ab")
    with database.writing() as other:
        if database.dialect == "postgresql":
            other.exec_driver_sql("LOCK TABLE requests IN ACCESS EXCLUSIVE MODE")
        first.end(0, 5, 1, 0, "stop")
        assert not platform.flush(0.8)
        with pytest.raises(LedgerDown):
            platform.open(caller, id="c", **ASK)
        assert not second.progress(0, 5, 2)
        assert isinstance(second.why, LedgerDown)
        second.end(0, 5, 2, 0, "error")
    assert platform.flush(5)
    assert [row.id for row in Ledger(database).rows()] == ["a", "b"]
    platform.close()
    database.close()


def test_connections_that_break_lose_nothing(cluster: Path, database: Database) -> None:
    if database.dialect == "sqlite":
        return
    import psycopg

    platform = Platform(database, Flat())
    caller = platform.caller(None)
    for id in "abc":
        meter = platform.open(caller, id=id, **ASK)
        with psycopg.connect(f"host={cluster} user=tests dbname=postgres", autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%'")
        meter.end(0, 5, 1, 0, "stop")
        assert platform.flush(10)
    assert [row.id for row in Ledger(database).rows()] == ["a", "b", "c"]
    assert Ledger(database).audit() == []
    platform.close()


def test_names_are_never_commands(database: Database) -> None:
    keys, name = Keys(database), "ada'; DROP TABLE keys; --\" $1 %s :x"
    secret, key = keys.add(name, models=["'); DELETE FROM keys; --"])
    assert Platform(database).caller(secret).name == name
    assert keys.named(name) == key
    assert keys.account_of(name) == key.account
    Ledger(database).append([row(name, account=key.account, model=name, kind=name, reason=name)], 1)
    [found] = Books(database).sums(["account", "model", "kind"])
    assert (found.account, found.model, found.kind) == (name, name, name)


def test_a_new_account_is_welcomed_once(database: Database) -> None:
    keys = Keys(database, welcome=Welcome(10_000_000, "CNY", 30))
    _, key = keys.add("ada")
    keys.add("ada")
    assert keys.account_of("ada") == key.account
    ledger = Ledger(database)
    assert ledger.balances(key.account, key.created) == (Balance("CNY", 10_000_000, 0),)
    assert ledger.balances(key.account, key.created + 30 * 86_400_000_000) == (Balance("CNY", 0, 0),)
    ledger.append([row("a", account=key.account, currency="CNY", cost=7)], key.created + 30 * 86_400_000_000)
    assert ledger.balances(key.account, key.created) == (Balance("CNY", 0, -7),)
    assert [(one.kind, one.amount) for one in ledger.movements()] == [("grant", 10_000_000), ("expiry", -10_000_000)]
    assert ledger.audit() == []
