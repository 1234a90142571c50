"""How long those should wait who found no room: as long as what is there needs, by how fast answers have ended."""

from __future__ import annotations

from collections import deque

LONGEST = 60
"""Seconds."""
_SEEN = 64


class Pauses:
    """Knows when the last answers ended; moments in seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_SEEN)

    def note(self, now: float) -> None:
        """An answer has ended."""
        self._ends.append(now)

    def seconds(self, live: int, now: float) -> int:
        """Until `live` requests have ended, as fast as the last ones did: 1 to LONGEST, 1 where none ended of late."""
        ends = [end for end in self._ends if now - end <= LONGEST]
        if len(ends) < 2:
            return 1
        return min(LONGEST, max(1, round(live * (now - ends[0]) / len(ends))))
