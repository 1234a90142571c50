"""What metering costs: microseconds of one count, of opening and ending a request, and rows per second of the ledger.

    python benchmarks/ledger.py [--database URL] [--folder PATH]

The database is a new SQLite file in a temporary folder (--folder chooses the disk), unless a URL of an empty one is
given.
Prints a Markdown table; medians of several rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from deepwell.accounts import Caller, Keys, Ledger, Limits, Meter, Platform, Row, open_database

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "accounts"))
from kills import Flat

ROUNDS = 7
COUNTS = 20_000
ROWS = 1_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", default="")
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        database = open_database(
            options.database or f"{folder}/accounts.sqlite", environ={**os.environ, "XDG_DATA_HOME": folder}
        )
        secret, key = Keys(database).add(
            "bench", limits=Limits(budget=10**15, requests_per_minute=10**9, tokens_per_minute=10**12, concurrent=10**6)
        )
        Ledger(database).move(key.account, "USD", "top_up", 10**15, 1)
        platform = Platform(database, Flat())
        caller = platform.caller(secret)
        print(f"{database.dialect}; medians of {ROUNDS} rounds")
        print("| what | |\n|---|--:|")
        meter = _open(platform, caller)
        _line("Meter.progress", _each(COUNTS, lambda: meter.progress(1, 2, 3)), "us")
        meter.end(1, 2, 3, 0, "stop")
        _line("Platform.caller", _each(COUNTS, lambda: platform.caller(secret)), "us")

        def request() -> None:
            _open(platform, caller).end(1, 2, 3, 0, "stop")

        def append() -> None:
            ledger.append([_row(key.account, key.id)], 1)

        ledger = Ledger(database)
        _line("Platform.open and Meter.end", _each(ROWS, request, platform), "us")
        _line("rows in the ledger, as they end", 1e6 / _each(ROWS, request, platform, written=True), "rows/s")
        _line("rows in the ledger, each alone", 1e6 / _each(50, append), "rows/s")
        platform.close()
        database.close()


def _open(platform: Platform, caller: Caller) -> Meter:
    return platform.open(caller, id=uuid.uuid4().hex, model="m", kind="chat", prompt_tokens=3)


def _row(account: int, key: int) -> Row:
    return Row(uuid.uuid4().hex, account, key, "m", "chat", 1, 2, 1, 1, 1, 2, 3, 0, "stop", 1, 1, 1, "USD", 1)


def _each(times: int, call: Callable[[], object], platform: Platform | None = None, written: bool = False) -> float:
    """Microseconds of a call; with `written` until everything stands in the ledger."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            call()
        took = time.perf_counter() - start
        if platform:
            assert platform.flush(60)
        rounds.append((time.perf_counter() - start if written else took) / times * 1e6)
    return statistics.median(rounds)


def _line(what: str, value: float, unit: str) -> None:
    print(f"| {what} | {value:,.{1 if value < 100 else 0}f} {unit} |")


if __name__ == "__main__":
    main()
