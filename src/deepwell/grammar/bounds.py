"""How large what clients send may be: bytes, depth, parts, and how far a regular expression counts."""

from __future__ import annotations

import re

MAX_CHARACTERS = 1 << 18
"""Of a grammar, as llguidance reads it. Schemas of the largest public interfaces have about that many."""
MAX_TRANSLATED = 1 << 15
"""Of a grammar of llama.cpp's kind: about 40 ms."""
MAX_DEPTH = 64
"""Of a schema."""
MAX_PARTS = 20_000
"""Schemas within a schema."""
MAX_PROPERTIES = 2_000
"""Of one object: where all are optional, each may come next, and a token costs as much as there are."""
MAX_COUNT = 10_000
"""Of a repetition in a regular expression: what counts further costs seconds a token."""

_COUNTS = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def large_count(regex: str) -> str | None:
    """What is wrong with a regular expression that counts too far."""
    counts = (int(count[:9]) for pair in _COUNTS.findall(regex) for count in pair if count)
    return f"it repeats more than {MAX_COUNT} times" if max(counts, default=0) > MAX_COUNT else None
