"""A process that meters requests and is killed with SIGKILL at random moments, and the reckoning afterwards.

    python tests/accounts/metered.py URL FOLDER     the process: it says on standard output what it hands to clients

Used by the tests and by benchmarks/ledger_kills.py.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from deepwell.accounts import Database, Keys, Ledger, Platform, Prices, open_database, recover
from deepwell.accounts.money import Price

THREADS = 8
STEP = 3
"""Tokens between two times that a request is counted."""


class Flat(Prices, frozen=True):
    """A dollar for a million tokens of any kind."""

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        return Price(1_000_000, 1_000_000, 1_000_000)


def killed(url: str, folder: Path, seconds: float) -> dict[str, tuple[int, bool]]:
    """Run the process and kill it `seconds` after it was ready (before, if negative): by request, how many tokens its
    client had, and whether it had the end."""
    with subprocess.Popen([sys.executable, __file__, url, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if seconds >= 0:
            assert process.stdout.readline() == "ready\n"
            time.sleep(seconds)
        else:
            time.sleep(-seconds)
        process.kill()
        lines = process.stdout.read().split("\n")[:-1]
    handed: dict[str, tuple[int, bool]] = {}
    for id, count, end in (line.split() for line in lines if line != "ready"):
        handed[id] = int(count), end == "end"
    return handed


def reckon(url: str, folder: Path, handed: dict[str, tuple[int, bool]]) -> list[str]:
    """What is wrong, in sentences: every token that a client had is billed once, and at most a step more."""
    database = opened(url, folder)
    recover(database)
    ledger = Ledger(database)
    wrong = ledger.audit()
    billed = {row.id: row for row in ledger.rows()}
    for id, (count, end) in handed.items():
        row = billed.get(id)
        if row is None:
            wrong.append(f"{id}: {count} tokens were handed out and none is billed")
        elif not count <= row.output <= count + (0 if end else STEP):
            wrong.append(f"{id}: {count} tokens were handed out and {row.output} are billed")
        elif end and row.reason != "stop":
            wrong.append(f"{id}: its end is {row.reason}")
    for id in billed.keys() - handed.keys():
        if billed[id].output > STEP:
            wrong.append(f"{id}: {billed[id].output} tokens are billed and none was handed out")
    spent = sum(row.cost for row in billed.values())
    [balance] = ledger.balances(next(iter(billed.values())).account, 0) if billed else [None]
    if balance and balance.total != _PAID - spent:
        wrong.append(f"the balance is {balance.total}, and {_PAID} less {spent} was paid")
    database.close()
    return wrong


_PAID = 10**12


def opened(url: str, folder: Path) -> Database:
    return open_database(url, environ={"XDG_DATA_HOME": str(folder)})


def prepare(url: str, folder: Path) -> None:
    """A database with one account that has money; its key is in the folder."""
    database = opened(url, folder)
    secret, key = Keys(database).add("ada")
    (folder / "key").write_text(secret)
    Ledger(database).move(key.account, "USD", "grant", 5_000, 1)
    Ledger(database).move(key.account, "USD", "top_up", _PAID - 5_000, 1)
    database.close()


def main(url: str, folder: Path) -> None:
    platform = Platform(opened(url, folder), Flat())
    secret = (folder / "key").read_text()
    os.write(1, b"ready\n")
    threads = [threading.Thread(target=_requests, args=(platform, secret)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()


def _requests(platform: Platform, secret: str) -> None:
    dice = random.Random()
    while True:
        id = uuid.uuid4().hex
        meter = platform.open(platform.caller(secret), id=id, model="m", kind="chat", prompt_tokens=10)
        length = dice.randrange(1, 60)
        for output in range(STEP, length, STEP):
            assert meter.progress(4, 6, output)
            os.write(1, f"{id} {output} -\n".encode())
            time.sleep(dice.random() * 0.002)
        meter.end(4, 6, length, 0, "stop")
        os.write(1, f"{id} {length} end\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
