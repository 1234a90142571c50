"""Whoever kills the process, and whenever: what clients had is billed, once."""

import random
from pathlib import Path

import kills

from deepwell.accounts import Ledger, open_database, recover


def test_ten_kills(tmp_path: Path) -> None:
    place = str(tmp_path / "accounts.sqlite")
    kills.prepare(place)
    handed: dict[str, tuple[int, bool]] = {}
    dice = random.Random(1)
    for kill in range(10):
        handed |= kills.killed(place, -0.5 * dice.random() if kill == 5 else 0.3 * dice.random())
    assert kills.reckon(place, handed) == []
    assert len(handed) > 20
    database = open_database(place)
    reasons = [row.reason for row in Ledger(database).rows()]
    assert {"stop", "interrupted"} == set(reasons)
    assert recover(database) == 0
    assert not list(database.live.glob("*.slots"))
    database.close()
