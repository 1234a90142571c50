"""The books add up what the ledger has, group by group."""

from rows import row

from deepwell.accounts import Database, Keys, Ledger
from deepwell.accounts.books import BY, Books, Latency
from deepwell.accounts.clock import HOUR


def test_sums_by_everything(database: Database) -> None:
    _, key = Keys(database).add("ada")
    of_ada = {"account": key.account, "key": key.id, "hit": 30, "miss": 10, "output": 5, "cost": 7}
    rows = [row(f"a{n}", started=HOUR * 5 + n, first_us=100 + n, whole_us=1100 + n, **of_ada) for n in range(100)]
    rows.append(row("b", started=HOUR * 29, model="other", reason="interrupted"))
    Ledger(database).append(rows, HOUR * 30)
    books = Books(database)
    [whole] = books.sums()
    assert (whole.requests, whole.hit, whole.miss, whole.output, whole.cost) == (101, 3000, 1000, 500, 700)
    assert whole.interrupted == 1
    assert whole.hit_rate == 0.75
    first, second = books.sums(["hour", "key", "model"])
    assert (first.hour, first.key, first.prefix, first.model) == (HOUR * 5, key.id, key.prefix, "m")
    assert first.first == Latency(149, 189, 198)
    assert first.whole == Latency(1149, 1189, 1198)
    assert first.tokens_per_second == 5 * 1e6 / 1000
    assert (second.hour, second.key, second.prefix, second.requests) == (HOUR * 29, 0, None, 1)
    assert second.first is None
    assert [one.day for one in books.sums(["day"])] == [0, HOUR * 24]
    assert [one.account for one in books.sums(["account"])] == ["", "ada"]
    assert sum(one.requests for one in books.sums(BY)) == 101
    assert [one.requests for one in books.sums(since=HOUR * 5 + 50, until=HOUR * 6)] == [50]
    assert [one.requests for one in books.sums(account=key.account)] == [100]
