"""What a key has used in the last minute. Moments are passed in, in nanoseconds of a clock that never goes back."""

from __future__ import annotations

from collections import deque

MINUTE = 60 * 10**9


class Window:
    """Amounts of the last 60 seconds, and when there will be room for more."""

    def __init__(self) -> None:
        self._amounts: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, now: int, amount: int) -> None:
        self.total(now)  # forgets, so that nothing grows where nobody asks
        self._amounts.append((now, amount))
        self._total += amount

    def total(self, now: int) -> int:
        """What the minute before `now` holds."""
        while self._amounts and self._amounts[0][0] <= now - MINUTE:
            self._total -= self._amounts.popleft()[1]
        return self._total

    def wait(self, now: int, amount: int, limit: int) -> int:
        """Nanoseconds until `amount` more is within `limit`; a minute if it never is."""
        over = self.total(now) + amount - limit
        if over <= 0:
            return 0
        for moment, past in self._amounts:
            over -= past
            if over <= 0:
                return moment + MINUTE - now
        return MINUTE
