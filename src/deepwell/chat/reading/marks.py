"""Template tokens in an answer, as ids or, for tokenizers that lack them, as text; and the thoughts between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from deepwell.chat.reading.base import Marked
from deepwell.weights.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


class Mark(msgspec.Struct, frozen=True):
    """A template token in an answer, by its spelling."""

    spelling: str


class Marks:
    """Finds the template tokens of an answer. Other special tokens do not show; they only part texts."""

    def __init__(self, tokenizer: Tokenizer, spellings: Sequence[str]) -> None:
        found = {spelling: tokenizer.special(spelling) for spelling in spellings}
        self._by_id = {id: Mark(spelling) for spelling, id in found.items() if id is not None}
        self._spelled = [Mark(spelling) for spelling, id in found.items() if id is None]
        self._held = ""

    def push(self, marked: Iterable[Marked]) -> Iterator[str | Mark]:
        """Texts and template tokens. The end of a text that may begin a spelled token is held back."""
        for part in marked:
            if isinstance(part, str):
                yield from self._text(part)
            else:
                yield from self.finish()
                if part in self._by_id:
                    yield self._by_id[part]

    def finish(self) -> Iterator[str]:
        """What was held back, where no text follows."""
        held, self._held = self._held, ""
        if held:
            yield held

    def _text(self, new: str) -> Iterator[str | Mark]:
        text = self._held + new
        while (found := self._first(text)) is not None:
            at, mark = found
            if at:
                yield text[:at]
            yield mark
            text = text[at + len(mark.spelling) :]
        held = max((begun(text, mark.spelling) for mark in self._spelled), default=0)
        self._held = text[len(text) - held :]
        if len(text) > held:
            yield text[: len(text) - held]

    def _first(self, text: str) -> tuple[int, Mark] | None:
        places = ((text.find(mark.spelling), mark) for mark in self._spelled)
        return min(((at, mark) for at, mark in places if at >= 0), key=lambda place: place[0], default=None)


class ThoughtMeter:
    """Tells thoughts apart from the answer by the tokens around them, as they are sampled.

    An answer thinks if its prompt ends in an open thought, or if it opens one with its first token. `thinking` is
    whether it does now, `tokens` how many tokens it thought so far, those around the thought left out.
    """

    def __init__(self, prompt: Sequence[int], tokenizer: Tokenizer) -> None:
        self._open, self._close = tokenizer.special(THINK), tokenizer.special(END_THINK)
        marks = (id for id in reversed(prompt) if id in (self._open, self._close))
        self.thinking = self._open is not None and next(marks, None) == self._open
        self.tokens = 0
        self._first = True

    def push(self, ids: Iterable[int]) -> list[bool]:
        """Take more of the answer; for each of its tokens, whether it belongs to a thought, its marks included."""
        thoughts: list[bool] = []
        for id in ids:
            closes = self.thinking and id == self._close
            thoughts.append(self.thinking or (self._first and id == self._open))
            self.tokens += self.thinking and not closes
            self.thinking = thoughts[-1] and not closes
            self._first = False
        return thoughts


def begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`, short of all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
