"""Template tokens in an answer, as ids or, for tokenizers that lack them, as text; and the thoughts between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import AnyStr

import msgspec

from deepwell.chat.reading.base import Marked, Thoughts
from deepwell.weights.added_tokens import token_of
from deepwell.weights.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"


class Mark(msgspec.Struct, frozen=True):
    """A template token in an answer, by its spelling."""

    spelling: str


class Marks:
    """Finds the template tokens of an answer, be they special tokens or tags. Other special tokens do not show; they
    only part texts."""

    def __init__(self, tokenizer: Tokenizer, spellings: Sequence[str]) -> None:
        found = {spelling: tokenizer.special(spelling) for spelling in spellings}
        self._by_id: dict[int | None, Mark] = {id: Mark(spelling) for spelling, id in found.items() if id is not None}
        self._spelled = [Mark(spelling) for spelling, id in found.items() if id is None]
        self._held = ""

    @property
    def spelled(self) -> tuple[str, ...]:
        """Those that come as text."""
        return tuple(mark.spelling for mark in self._spelled)

    def push(self, marked: Iterable[Marked]) -> Iterator[str | Mark]:
        """Texts and template tokens. The end of a text that may begin a spelled token is held back."""
        for part in marked:
            mark = self._by_id.get(token_of(part))
            if mark is not None:
                yield from self.finish()
                yield mark
            elif isinstance(part, str):
                yield from self._text(part)
            else:
                yield from self.finish()

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
    """Tells thoughts apart from the answer as its tokens are sampled, by where its reader says that they may be.

    `thinking` is whether the answer thinks now, `tokens` how many tokens it thought so far, those that begin and end
    the thought left out.
    """

    def __init__(self, thoughts: Thoughts, tokenizer: Tokenizer) -> None:
        self.thinking = thoughts.open
        self.tokens = 0
        self._may_open = thoughts.may_open
        self._bytes, self._special = tokenizer.token_bytes, tokenizer.is_special
        self._begin, self._end = _Found([THINK], tokenizer), _Found(thoughts.ends, tokenizer)

    def push(self, ids: Iterable[int]) -> list[bool]:
        """Take more of the answer; for each of its tokens, whether it belongs to a thought, its marks included."""
        return [self._one(id) for id in ids]

    def _one(self, id: int) -> bool:
        if self.thinking:
            ended = self._end.completed_by(id)
            self.tokens += not ended
            self.thinking = not ended
            return True
        if not self._may_open:
            return False
        self.thinking = self._begin.completed_by(id)
        silent = self._begin.begun or self._special(id) or self._bytes(id).isspace()
        self._may_open = silent and not (self.thinking or self._end.completed_by(id))
        return self.thinking and self._bytes(id) == THINK.encode()


class _Found:
    """Looks for marks in tokens: as ids, or spelled where the tokenizer lacks them."""

    def __init__(self, spellings: Iterable[str], tokenizer: Tokenizer) -> None:
        ids = {spelling: tokenizer.special(spelling) for spelling in spellings}
        self._ids = {id for id in ids.values() if id is not None}
        self._spelled = [spelling.encode() for spelling, id in ids.items() if id is None]
        self._tokenizer = tokenizer
        self._tail = b""

    @property
    def begun(self) -> bool:
        """Whether the tokens so far end in the begin of a spelled mark."""
        return bool(self._tail)

    def completed_by(self, id: int) -> bool:
        """Take a token; whether a mark is complete with it."""
        if id in self._ids or self._tokenizer.is_special(id):
            self._tail = b""
            return id in self._ids
        tail = self._tail + self._tokenizer.token_bytes(id)
        found = any(spelling in tail for spelling in self._spelled)
        self._tail = b"" if found else tail[len(tail) - max((begun(tail, s) for s in self._spelled), default=0) :]
        return found


def begun(text: AnyStr, mark: AnyStr) -> int:
    """Length of the longest end of `text` that begins `mark`, short of all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
