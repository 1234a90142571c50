"""The attackers use the servers of tests/server."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
for folder in (TESTS, TESTS / "server"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
