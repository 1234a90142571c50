"""How many tokens a step may compute so that it takes about so long. Pure: seconds are passed in."""

from __future__ import annotations

FIRST = 64
"""Tokens of the first step that others wait for, while nothing has been measured."""
LEAST = 16
"""Fewer tokens at once would read the weights too often for what they compute."""
_MOST_CHANGE = 2.0
"""A step says this much about the next one and no more: one pause of the machine is no measure."""


class Pace:
    """The token budget of a step during which others wait, from the steps seen so far.

    What a step takes grows with its tokens, but not from zero and not alike at every depth; so nothing is modelled:
    each step that used its budget moves it, by at most a factor, to where that step would have taken `seconds`.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._tokens = float(min(FIRST, most))

    @property
    def budget(self) -> int:
        """Tokens: a multiple of `LEAST` below `most`."""
        return self._most if self._tokens >= self._most else max(LEAST, int(self._tokens) // LEAST * LEAST)

    def learn(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long. One that was quick and below the budget says nothing."""
        if tokens < self.budget and seconds <= self._seconds:
            return
        fits = tokens * self._seconds / max(seconds, 1e-9)
        nearby = min(self._tokens * _MOST_CHANGE, max(self._tokens / _MOST_CHANGE, fits))
        self._tokens = min(float(self._most), max(float(LEAST), nearby))
