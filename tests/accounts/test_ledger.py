"""Rows and movements are only added, and add up to the balances, whatever comes in which order."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import row

from deepwell.accounts import Database, Keys, Ledger, Platform, open_database, recover
from deepwell.accounts.clock import month_start
from deepwell.accounts.money import MAX_AMOUNT
from deepwell.errors import DeepwellError, LedgerDown


@pytest.fixture
def account(database: Database) -> int:
    return Keys(database).add("ada")[1].account


def test_grants_that_end_soonest_are_spent_first(database: Database, account: int) -> None:
    ledger = Ledger(database)
    ledger.move(account, "USD", "grant", 100, 1)
    ledger.move(account, "USD", "grant", 100, 1, expires=1000)
    ledger.move(account, "USD", "grant", 100, 1, expires=500)
    ledger.move(account, "USD", "top_up", 1000, 1)
    ledger.append([row("a", account=account, cost=150)], 10)
    assert ledger.balances(account, 499)[0].granted == 150
    assert ledger.balances(account, 500)[0].granted == 150, "what ends first was spent"
    assert ledger.balances(account, 1000)[0].granted == 100
    ledger.append([row("b", account=account, cost=170)], 2000)
    [balance] = ledger.balances(account, 2000)
    assert (balance.granted, balance.topped_up) == (0, 930)
    assert [(one.from_granted, one.from_topped_up) for one in ledger.rows()] == [(150, 0), (100, 70)]
    assert ledger.audit() == []


def test_a_row_is_billed_once_and_an_id_of_another_request_is_kept_beside_it(database: Database, account: int) -> None:
    ledger = Ledger(database)
    first, other = row("a", account=account, cost=5, started=7), row("a", account=account, cost=3, started=8)
    ledger.append([first, first, other], 1)
    ledger.append([other, first], 1)
    assert [(one.id, one.cost) for one in ledger.rows()] == [("a", 5), ("a.8", 3)]
    assert ledger.balances(account, 1)[0].topped_up == -8
    assert ledger.audit() == []


def test_a_group_is_written_whole_or_not_at_all(database: Database, account: int) -> None:
    with pytest.raises(Exception, match=r"(?i)foreign"):
        Ledger(database).append([row("a", account=account, cost=5), row("b", account=99, cost=5)], 1)
    assert list(Ledger(database).rows()) == []
    assert Ledger(database).balances(account, 1) == ()


@pytest.mark.parametrize(
    ("kind", "amount", "expires", "said"),
    [
        ("grant", 0, None, "a grant must be above 0"),
        ("top_up", -1, None, "a top_up must be above 0"),
        ("top_up", MAX_AMOUNT + 1, None, "up to 1000000000.00"),
        ("adjustment", -MAX_AMOUNT - 1, None, "an adjustment must not be 0, and up to"),
        ("adjustment", 0, None, "must not be 0"),
        ("top_up", 5, 100, "only a grant may end"),
        ("grant", 5, 1, "only a grant may end, and only in the future"),
    ],
)
def test_movements_have_bounds(
    database: Database, account: int, kind: str, amount: int, expires: int | None, said: str
) -> None:
    with pytest.raises(DeepwellError) as refusal:
        Ledger(database).move(account, "USD", kind, amount, 1, expires=expires)  # type: ignore[arg-type]
    assert said in str(refusal.value)


def test_a_balance_stays_within_64_bits(database: Database, account: int) -> None:
    ledger = Ledger(database)
    with database.writing() as connection:
        connection.exec_driver_sql(f"INSERT INTO balances VALUES ({account}, 'USD', 0, {2**62})")
    with pytest.raises(DeepwellError, match="a balance cannot be more than"):
        ledger.move(account, "USD", "top_up", 1, 1)


def test_the_audit_names_what_was_changed_behind_its_back(database: Database, account: int) -> None:
    ledger = Ledger(database)
    ledger.move(account, "USD", "grant", 5, 1)
    ledger.append([row("a", account=account, cost=3)], 1)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE balances SET granted = 9")
    assert ledger.audit() == [
        f"account {account}: granted is 0.000009 USD, and adds up to 0.000002",
        f"account {account}: granted is 0.000009 USD, and 0.000002 of grants is left",
    ]


def test_spent_counts_one_key_currency_and_month(database: Database, account: int) -> None:
    february = month_start(1_740_000_000_000_000)
    assert february == 1_738_368_000_000_000
    rows = [
        row("a", key=1, cost=1, started=february - 1),
        row("b", key=1, cost=2, started=february),
        row("c", key=2, cost=4, started=february),
        row("d", key=1, cost=8, started=february, currency="CNY"),
    ]
    Ledger(database).append(rows, february)
    assert Ledger(database).spent(1, "USD", february) == 2
    assert Ledger(database).spent(1, "USD") == 3


def test_another_version_and_another_file_are_refused(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "a.sqlite"))
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE about SET value = '99' WHERE name = 'version'")
    database.close()
    with pytest.raises(DeepwellError, match="of version 99, and this Deepwell knows 1"):
        open_database(str(tmp_path / "a.sqlite"))
    (tmp_path / "b.sqlite").write_bytes(b"SQLite? no." * 1000)
    with pytest.raises(DeepwellError, match="not a database"):
        open_database(str(tmp_path / "b.sqlite"))


def test_a_server_that_is_not_there_is_a_sentence_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(LedgerDown) as refusal:
        open_database("postgresql://me:hunter2@127.0.0.1:9199/none", environ={"XDG_DATA_HOME": str(tmp_path)})
    assert "127.0.0.1:9199" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


ROWS = st.builds(
    lambda id, cost, started, currency: {"id": id, "cost": cost, "started": started, "currency": currency},
    st.sampled_from("abcd"), st.integers(0, 50), st.integers(1, 3), st.sampled_from(["USD", "CNY"]),
)  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(ROWS, min_size=1, max_size=4)),
    st.tuples(st.just("grant"), st.integers(1, 60), st.one_of(st.none(), st.integers(1, 9))),
    st.tuples(st.just("top_up"), st.integers(1, 60), st.none()),
    st.tuples(st.just("adjustment"), st.integers(-60, -1), st.none()),
)


@given(st.lists(STEPS, max_size=12))
@settings(max_examples=60)
def test_any_order_adds_up(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"{folder}/a.sqlite")
        account, ledger = Keys(database).add("ada")[1].account, Ledger(database)
        for now, step in enumerate(steps, 1):
            if step[0] == "append":
                ledger.append([row(account=account, **one) for one in step[1]], now)
            else:
                expires = step[2] and now + step[2]
                ledger.move(account, "USD", step[0], step[1], now, expires=expires)
            assert ledger.audit() == []
        rows, moves = list(ledger.rows()), ledger.movements()
        assert len({one.id for one in rows}) == len(rows)
        for balance in ledger.balances(account, 0):
            paid = sum(one.cost for one in rows if one.currency == balance.currency)
            assert balance.total == sum(one.amount for one in moves if one.currency == balance.currency) - paid
            assert balance.granted >= 0
        database.close()


@given(st.lists(st.tuples(st.sampled_from(["open", "progress", "end", "die"]), st.integers(0, 3)), max_size=25))
@settings(max_examples=40)
def test_no_request_is_billed_twice_whenever_a_process_dies(steps: list[tuple[str, int]]) -> None:
    """`die` leaves the journal as a kill at that moment would; the living process goes on beside it."""
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"{folder}/a.sqlite")
        platform = Platform(database)
        meters = {}
        for number, (step, which) in enumerate(steps):
            if step == "open" and which not in meters:
                id = f"{number}"
                meters[which] = platform.open(platform.caller(None), id=id, model="m", kind="chat", prompt_tokens=1)
            elif step == "progress" and which in meters:
                meters[which].progress(0, 1, number)
            elif step == "end" and which in meters:
                meters.pop(which).end(0, 1, number, 0, "stop")
            elif step == "die":
                [file] = [path for path in database.live.glob("*.slots") if "dead" not in path.name]
                shutil.copy(file, database.live / f"dead-{number}.slots")
                recover(database)
        platform.close()
        rows = list(Ledger(database).rows())
        opened = {f"{number}" for number, (step, _) in enumerate(steps) if step == "open"}
        assert len({one.id for one in rows}) == len(rows)
        assert {one.id for one in rows} <= opened
        assert Ledger(database).audit() == []
        assert not list(database.live.glob("*.slots"))
        database.close()
