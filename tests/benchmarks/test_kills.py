"""The real server, killed at random moments under load, bills what its clients received, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import run


@pytest.mark.slow
def test_after_kills_the_ledger_agrees_with_what_clients_received(tmp_path: Path) -> None:
    counts, faults = run(tmp_path, kills=4, seed=1)
    assert faults == []
    assert counts["whole"] > 0
    assert counts["cut"] > 0
