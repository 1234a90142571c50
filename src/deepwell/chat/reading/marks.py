"""Template tokens in an answer, whether they come as ids or, for tokenizers that lack them, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from deepwell.chat.reading.base import Marked
from deepwell.weights.tokenizer import Tokenizer


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


def begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`, short of all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
