"""Which tokens of an answer are thoughts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deepwell.weights.tokenizer import Tokenizer

THINK, END_OF_THINK = "<think>", "</think>"


class ThoughtMeter:
    """Tells thoughts apart from the answer by the tokens around them, as they are sampled.

    An answer thinks if its prompt ends in an open thought, or if it opens one with its first token. `thinking` is
    whether it does now, `tokens` how many tokens it thought so far, those around the thought left out.
    """

    def __init__(self, prompt: Sequence[int], tokenizer: Tokenizer) -> None:
        self._open, self._close = tokenizer.special(THINK), tokenizer.special(END_OF_THINK)
        marks = (id for id in reversed(prompt) if id in (self._open, self._close))
        self.thinking = self._open is not None and next(marks, None) == self._open
        self.tokens = 0
        self._first = True

    def push(self, ids: Iterable[int]) -> list[bool]:
        """Take more of the answer; for each of its tokens, whether it belongs to a thought, its marks included."""
        return [self._take(id) for id in ids]

    def _take(self, id: int) -> bool:
        opens = self._first and id == self._open
        closes = self.thinking and id == self._close
        belongs = self.thinking or opens
        self.tokens += self.thinking and not closes
        self.thinking = belongs and not closes
        self._first = False
        return belongs
