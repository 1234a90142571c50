"""Kill a metering process with SIGKILL at random moments and reckon: is what clients had what the ledger says?

    python benchmarks/ledger_kills.py [--kills 200] [--seed 0] [--database URL]

Every kill is of a process of its own with eight requests at a time, on one database (a new SQLite file, or an empty one
by URL); a tenth of them come while it starts, so that recovering is killed too. Prints what is wrong, and exits with 1
if anything is.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "accounts"))
import metered

from deepwell.accounts import Ledger


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", default="")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    handed: dict[str, tuple[int, bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = options.database or str(folder / "accounts.sqlite")
        metered.prepare(url, folder)
        start = time.monotonic()
        for _ in range(options.kills):
            starting = dice.random() < 0.1
            handed |= metered.killed(url, folder, -dice.random() if starting else dice.random() * 0.5)
        wrong = metered.reckon(url, folder, handed)
        database = metered.opened(url, folder)
        rows = list(Ledger(database).rows())
        database.close()
    live = sum(row.reason == "interrupted" for row in rows)
    tokens = sum(count for count, _ in handed.values())
    print(f"{options.kills} kills in {time.monotonic() - start:.0f} s: {len(rows):,} requests, {live} cut off")
    print(f"tokens handed out {tokens:,}, billed {sum(row.output for row in rows):,}")
    print("\n".join(wrong) or "everything adds up")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
