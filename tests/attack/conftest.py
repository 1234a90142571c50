"""The attackers use the servers of tests/server and the hub of tests/weights."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
for folder in (TESTS, TESTS / "server", TESTS / "weights", TESTS / "attack"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
