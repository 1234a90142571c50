"""Whoever kills the process, and whenever: what clients had is billed, once."""

import random
from pathlib import Path

import metered

from deepwell.accounts import Ledger, recover


def test_ten_kills(url: str, tmp_path: Path) -> None:
    metered.prepare(url, tmp_path)
    handed: dict[str, tuple[int, bool]] = {}
    dice = random.Random(1)
    for kill in range(10):
        handed |= metered.killed(url, tmp_path, -0.5 * dice.random() if kill == 5 else 0.3 * dice.random())
    assert metered.reckon(url, tmp_path, handed) == []
    assert len(handed) > 20
    database = metered.opened(url, tmp_path)
    reasons = {row.reason for row in Ledger(database).rows()}
    assert reasons == {"stop", "interrupted"}
    assert recover(database) == 0
    assert not list(database.live.glob("*.slots"))
    database.close()
