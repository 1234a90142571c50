"""Where the chance of the attackers comes from: DEEPWELL_SEED, and always the same one where none is given."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

SEED = int(os.environ.get("DEEPWELL_SEED") or 1)


def rounds(count: int) -> Iterator[random.Random]:
    """Sources of chance, one a round, each different."""
    return (random.Random(f"{SEED} {number}") for number in range(count))
