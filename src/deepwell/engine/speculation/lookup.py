"""Guesses from the text itself: what followed the last time the same few tokens were said."""

from __future__ import annotations

from collections.abc import Sequence

NGRAMS = (4, 2)
"""Lengths of the runs that are looked up, the more telling first."""
WINDOW = 32_768
"""Tokens of a prompt, counted from its end, that are indexed: a bound on the time one request can hold up others."""


class LookupIndex:
    """Where the n-grams of one growing sequence stood last (prompt lookup decoding, Saxena 2023)."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, tokens: Sequence[int], count: int) -> tuple[int, ...]:
        """Up to `count` guesses at what follows `tokens`, which begin with those of the call before."""
        self._index(tokens)
        for length in NGRAMS:
            at = self._ends.get(tuple(tokens[-length:])) if len(tokens) > length else None
            if at is not None:
                return _repeated(tokens, at, count)
        return ()

    def _index(self, tokens: Sequence[int]) -> None:
        """Note the n-grams that something follows, by the place of what follows."""
        first = max(self._indexed, len(tokens) - WINDOW, 1)
        for end in range(first, len(tokens)):
            for length in NGRAMS:
                if end >= length:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._indexed = len(tokens)


def _repeated(tokens: Sequence[int], at: int, count: int) -> tuple[int, ...]:
    """`count` tokens from place `at` on, as if the text went on repeating what stands from there to its end."""
    period = len(tokens) - at
    return tuple(tokens[at + i % period] for i in range(count))
