"""Clocks that jump, disks that are full, databases that are away: a clear error, and a ledger that is exact."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from metered import Flat

from deepwell.accounts import Clock, Database, Keys, Ledger, Limits, Platform, open_database, recover
from deepwell.accounts.journal import SLOTS, Journal, Live, leftovers
from deepwell.accounts.money import Price
from deepwell.errors import BadKey, Broke, LedgerDown, OverLimit

ASK: dict[str, Any] = {"model": "m", "kind": "chat", "prompt_tokens": 5}
DAY = 86_400_000_000


class Clocks:
    """Both clocks in the test's hand."""

    def __init__(self) -> None:
        self.wall = 20_000 * DAY
        self.ticks = 10**12
        self.clock = Clock(lambda: self.wall, lambda: self.ticks)

    def pass_(self, seconds: float) -> None:
        self.ticks += int(seconds * 1e9)
        self.wall += int(seconds * 1e6)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "accounts.sqlite")


@pytest.fixture
def sqlite(place: str) -> Iterator[Database]:
    made = open_database(place, busy_seconds=0.05)
    yield made
    made.close()


@pytest.mark.parametrize("jump", [-(10**18), -DAY, DAY, 10**18, -(1 << 62)])
def test_a_wall_clock_that_jumps(sqlite: Database, clocks: Clocks, jump: int) -> None:
    """No row is lost, no span or price is negative, and no window sticks."""
    secret, key = Keys(sqlite).add("ada", limits=Limits(requests_per_minute=1, budget=10**9))
    Ledger(sqlite).move(key.account, "USD", "top_up", 10**9, 1)
    platform = Platform(sqlite, Flat(), clock=clocks.clock)
    caller = platform.caller(secret)
    meter = platform.open(caller, id="a", **ASK)
    clocks.pass_(1)
    assert meter.progress(0, 5, 1)
    clocks.wall += jump
    clocks.pass_(2)
    meter.end(0, 5, 3, 0, "stop")
    with pytest.raises(OverLimit) as refusal:
        platform.open(caller, id="b", **ASK)
    assert refusal.value.retry_after == 57
    clocks.pass_(57)
    platform.open(platform.caller(secret), id="b", **ASK).end(0, 5, 1, 0, "stop")
    platform.close()
    rows = {one.id: one for one in Ledger(sqlite).rows()}
    assert (rows["a"].first_us, rows["a"].whole_us) == (1_000_000, 3_000_000)
    assert all(one.ended >= one.started and one.cost > 0 for one in rows.values())
    assert set(rows) == {"a", "b"}
    assert Ledger(sqlite).audit() == []


def test_limits_of_a_key(sqlite: Database, clocks: Clocks) -> None:
    secret, _ = Keys(sqlite).add("ada", limits=Limits(tokens_per_minute=100))
    platform = Platform(sqlite, clock=clocks.clock)
    caller = platform.caller(secret)
    ask = ASK | {"prompt_tokens": 40}
    first = platform.open(caller, id="a", **ask)
    first.progress(0, 40, 30)
    with pytest.raises(OverLimit) as refusal:
        platform.open(caller, id="b", **ask)
    assert (refusal.value.limit, refusal.value.retry_after) == ("tokens_per_minute", 60)
    clocks.pass_(20)
    first.end(0, 40, 50, 0, "stop")
    with pytest.raises(OverLimit) as refusal:
        platform.open(caller, id="b", **ask)
    assert refusal.value.retry_after == 40, "the prompt leaves the window first"
    clocks.pass_(40)
    platform.open(caller, id="b", **ask).end(0, 0, 0, 0, "cancelled")
    platform.close()


def test_a_budget_ends_an_answer_and_a_month_renews_it(sqlite: Database, clocks: Clocks) -> None:
    secret, key = Keys(sqlite).add("ada", limits=Limits(budget=10))
    Ledger(sqlite).move(key.account, "USD", "top_up", 10**6, 1)
    platform = Platform(sqlite, Flat(), clock=clocks.clock)
    caller = platform.caller(secret)
    meter = platform.open(caller, id="a", **ASK)
    assert meter.progress(0, 5, 4)
    assert not meter.progress(0, 5, 5)
    assert "this key's budget of 0.00001 USD is used up" in str(meter.why)
    meter.end(0, 5, 5, 0, "balance")
    with pytest.raises(Broke):
        platform.open(caller, id="b", **ASK)
    assert platform.flush(5)
    clocks.pass_(31 * 86_400)
    platform.open(caller, id="b", **ASK).end(0, 1, 1, 0, "stop")
    platform.close()


def test_two_requests_share_a_balance(sqlite: Database) -> None:
    """What one has counted, the other cannot spend, though neither stands in the ledger."""
    secret, key = Keys(sqlite).add("ada")
    Ledger(sqlite).move(key.account, "USD", "top_up", 20, 1)
    platform = Platform(sqlite, Flat())
    caller = platform.caller(secret)
    first, second = platform.open(caller, id="a", **ASK), platform.open(caller, id="b", **ASK)
    assert first.progress(0, 5, 5)
    assert second.progress(0, 5, 4)
    assert not second.progress(0, 5, 5)
    assert not first.progress(0, 5, 5)
    with pytest.raises(Broke):
        platform.open(caller, id="c", **ASK)
    platform.close()


def test_many_prompts_are_not_begun_on_one_penny(sqlite: Database) -> None:
    """What a prompt will cost is held back from others until it is counted; an answer under way is not ended for it."""
    secret, key = Keys(sqlite).add("ada")
    Ledger(sqlite).move(key.account, "USD", "top_up", 20, 1)
    platform = Platform(sqlite, Flat())
    caller = platform.caller(secret)
    first = platform.open(caller, id="a", **ASK)
    assert first.progress(0, 5, 1)
    second = platform.open(caller, id="b", **ASK | {"prompt_tokens": 14})
    with pytest.raises(Broke):
        platform.open(caller, id="c", **ASK)
    assert first.progress(0, 5, 2)
    assert second.progress(10, 2, 0), "what the cache knew costs less"
    platform.open(caller, id="c", **ASK).end(0, 0, 0, 0, "cancelled")
    platform.close()
    assert [tab.held for tab in platform._tabs.values()] == [0]


def test_a_budget_in_another_currency_is_not_forgotten(sqlite: Database) -> None:
    secret, key = Keys(sqlite).add("ada", limits=Limits(budget=10, budget_currency="CNY"))
    Ledger(sqlite).move(key.account, "USD", "top_up", 20, 1)
    platform = Platform(sqlite, Flat())
    with pytest.raises(Broke, match="budget is in CNY, and the price in USD"):
        platform.open(platform.caller(secret), id="a", **ASK)
    platform.close()


def test_money_that_comes_meanwhile_is_seen_within_seconds(sqlite: Database) -> None:
    secret, key = Keys(sqlite).add("ada")
    ledger = Ledger(sqlite)
    ledger.move(key.account, "USD", "top_up", 20, 1)
    platform = Platform(sqlite, Flat())
    meter = platform.open(platform.caller(secret), id="a", **ASK)
    assert not meter.progress(0, 5, 50)
    ledger.move(key.account, "USD", "top_up", 1000, 1)
    until = time.monotonic() + 20
    while not meter.progress(0, 5, 50):
        assert time.monotonic() < until
        time.sleep(0.05)
    platform.close()


def test_a_key_that_ends_is_refused_within_seconds(sqlite: Database, clocks: Clocks) -> None:
    keys = Keys(sqlite)
    secret, key = keys.add("ada", expires=clocks.wall + 10_000_000)
    platform = Platform(sqlite, clock=clocks.clock)
    platform.caller(secret)
    clocks.pass_(10)
    with pytest.raises(BadKey, match="expired"):
        platform.caller(secret)
    keys.allow(key.id, models=None, expires=None)
    keys.revoke(key.id)
    clocks.pass_(3)
    with pytest.raises(BadKey, match="revoked"):
        platform.caller(secret)
    assert platform.required, "no key is left, and still nobody gets in without one"
    with pytest.raises(BadKey):
        platform.caller_of(key.id)
    platform.close()


def test_a_full_disk_refuses_and_loses_nothing(place: str) -> None:
    """The disk is full as far as this process may write: its files may not grow."""
    script = f"""
import os, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from deepwell.accounts import *
from deepwell.errors import LedgerDown
database = open_database(sys.argv[1])
platform = Platform(database, patience=0.2)
caller = platform.caller(None)
def ask(id):
    return platform.open(caller, id=id, model="m" * 200, kind="chat", prompt_tokens=5)
ask("a").end(0, 5, 1, 0, "stop")
assert platform.flush(5)
live, ended = ask("b"), ask("c")
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(sys.argv[1] + "-wal"), resource.RLIM_INFINITY))
ended.end(0, 5, 2, 0, "stop")
assert not platform.flush(1)
try:
    ask("d")
except LedgerDown as error:
    print(error)
assert not live.progress(0, 5, 3)
live.end(0, 5, 3, 0, "error")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert platform.flush(5)
ask("e").end(0, 5, 4, 0, "stop")
platform.close()
assert Ledger(database).audit() == []
print(*((row.id, row.output) for row in Ledger(database).rows()))
"""
    ran = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    refusal, rows = ran.stdout.splitlines()
    assert "cannot be written down" in refusal
    assert rows == "('a', 1) ('b', 3) ('c', 2) ('e', 4)"


def test_no_room_for_the_journal_is_an_error_at_the_start(place: str) -> None:
    script = """
import resource, sys
from deepwell.accounts import Platform, open_database
database = open_database(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    Platform(database)
except OSError as error:
    print(error.filename)
"""
    ran = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith(f"{place}.live/"), ran.stderr
    assert not list(Path(f"{place}.live").iterdir())


def test_more_than_the_journal_holds_is_refused(sqlite: Database) -> None:
    platform = Platform(sqlite)
    caller = platform.caller(None)
    for number in range(SLOTS):
        platform.open(caller, id=f"{number}", **ASK)
    with pytest.raises(LedgerDown, match="too many"):
        platform.open(caller, id="more", **ASK)
    platform.close()
    assert sum(1 for _ in Ledger(sqlite).rows()) == SLOTS


def test_a_torn_slot_and_a_strange_file_are_left_alone(sqlite: Database, caplog: pytest.LogCaptureFixture) -> None:
    """After a loss of power anything may be in the file; what is whole is billed."""
    journal = Journal(sqlite.live, sqlite.id)
    for id in ("torn", "whole"):
        slot = journal.take(Live(id, 0, 0, "m", "chat", 1, Price(1, 1, 1)))
        assert slot
        slot.store(0, 5, 7, 9, 8)
    [file] = sqlite.live.glob("*.slots")
    content = file.read_bytes().replace(b"torn", b"tron")
    (sqlite.live / "1-dead.slots").write_bytes(content)
    (sqlite.live / "2-dead.slots").write_bytes(content[: 4096 + 1024 + 300])
    (sqlite.live / "7-dead.slots").write_bytes(content.replace(b"\5" + b"\0" * 7, b"\xff" * 8))
    (sqlite.live / "3-dead.slots").write_bytes(os.urandom(10_000))
    (sqlite.live / "4-dead.slots").write_bytes(b"")
    (sqlite.live / "5-dead.slots").write_bytes(content.replace(sqlite.id.encode(), b"f" * 32))
    (sqlite.live / "6-dead.slots").symlink_to("/etc/passwd")
    assert recover(sqlite) == 1
    assert [(one.id, one.output, one.reason) for one in Ledger(sqlite).rows()] == [("whole", 7, "interrupted")]
    assert "slot 0 is torn" in caplog.text
    assert "slot 1 is torn" in caplog.text
    kept = sorted(path.name for path in sqlite.live.glob("*dead*"))
    assert kept == ["3-dead.slots", "4-dead.slots", "5-dead.slots", "6-dead.slots"]
    assert not any(left.read(sqlite.id) for left in leftovers(sqlite.live))


def test_many_threads_leave_nothing_behind(database: Database) -> None:
    secret, key = Keys(database).add("ada", limits=Limits(concurrent=64, budget=10**9))
    Ledger(database).move(key.account, "USD", "grant", 3_000, 1)
    Ledger(database).move(key.account, "USD", "top_up", 10**9, 1)
    platform = Platform(database, Flat())

    def work(name: int) -> None:
        for number in range(40):
            meter = platform.open(platform.caller(secret), id=f"{name}.{number}", **ASK)
            for output in range(5):
                meter.progress(1, 4, output)
            meter.end(1, 4, 5, 0, "stop")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert platform.flush(30)
    assert [tab.unsettled for tab in platform._tabs.values()] == [0, 0]
    use = platform._uses[key.id]
    assert (use.live, use.output_live) == (0, 0)
    assert sum(one.cost for one in Ledger(database).rows()) == 8 * 40 * 10
    assert platform.balance(key.account)[0].total == 10**9 + 3_000 - 8 * 40 * 10
    assert Ledger(database).audit() == []
    platform.close()
    assert not list(database.live.glob("*.slots"))


def test_a_row_that_the_database_will_not_have_stops_no_other(sqlite: Database) -> None:
    """It stays in the journal, where it can be looked at."""
    platform = Platform(sqlite)
    caller = platform.caller(None)
    good, bad, better = (platform.open(caller, id=id, **ASK) for id in "abc")
    with sqlite.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON requests WHEN NEW.id = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    for meter in (good, bad, better):
        meter.end(0, 1, 1, 0, "stop")
    assert platform.flush(5)
    assert platform._writer.rejected == 1
    assert [one.id for one in Ledger(sqlite).rows()] == ["a", "c"]
    platform.close()
    assert recover(sqlite) == 0, "the rest is recovered as long as it is refused, and the file is kept"
    with sqlite.writing() as connection:
        connection.exec_driver_sql("DROP TRIGGER refuse")
    assert recover(sqlite) == 1
    assert [one.id for one in Ledger(sqlite).rows()] == ["a", "b", "c"]


def test_a_balance_is_never_counted_twice_while_a_row_is_written(sqlite: Database) -> None:
    """Read after the row's commit and before it is settled, the balance would have its cost taken once more."""
    secret, key = Keys(sqlite).add("ada")
    Ledger(sqlite).move(key.account, "USD", "top_up", 20, 1)
    platform = Platform(sqlite, Flat())
    caller = platform.caller(secret)
    settle, seen = platform._settle, []

    def between(group: Any) -> None:
        [tab] = {tab for meter in group for tab in meter.tabs}
        tab.read_at = 1
        tab.refresh(platform.clock, platform._lock)
        settle(group)
        seen.append((tab.left, tab.unsettled))

    platform._settle = between  # type: ignore[method-assign]
    platform.open(caller, id="a", **ASK).end(0, 5, 5, 0, "stop")
    assert platform.flush(5)
    assert seen == [(10, 0)]
    platform.close()


def test_one_name_made_by_many_at_once_is_one_account(database: Database) -> None:
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.append(Keys(database).add("ada")[1].account)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] * 8
