"""What a reader gives. It takes an answer as the engine marks it: pieces of text, and ids of special tokens between.

A reader's pieces, joined per kind, do not depend on where the text was cut. What could still become markup is held
back. Markup never shows in content: a call that has no name, or whose arguments never begin, comes back as its texts
alone. Any other call is one, with arguments as they were written, be they broken or cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from deepwell.weights.tokenizer import Marked as Marked


class Reasoning(msgspec.Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class Content(msgspec.Struct, frozen=True):
    """More of the answer."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """A tool call begins; calls are numbered in the order in which they begin. Who keeps the call gives it an `id`."""

    name: str
    id: str = ""


class CallArguments(msgspec.Struct, frozen=True):
    """More of the JSON text of the call that began last. What was given stays true: it is only ever added to."""

    text: str


Piece = Reasoning | Content | CallBegin | CallArguments


class Thoughts(msgspec.Struct, frozen=True):
    """The one thought that an answer may have: it is `open` from the start, or the answer `may_open` it before anything
    else, and the first of the marks `ends`, by spelling, ends it."""

    open: bool = False
    may_open: bool = False
    ends: tuple[str, ...] = ()


class Reader(Protocol):
    """Reads one answer. `thoughts` says where in it a thought may be."""

    thoughts: Thoughts

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        """Take more of the answer; gives what is certain now. To be exhausted before the next call."""
        ...

    def finish(self) -> Iterator[Piece]:
        """The answer has ended, complete or cut off; gives what was held back."""
        ...


class PlainReader:
    """Everything is content, but for one `first` and one `last` character that the layout puts around it.

    Special tokens do not show.
    """

    thoughts = Thoughts()

    def __init__(self, first: str = "", last: str = "") -> None:
        self._first, self._last = first, last
        self._held = ""

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        for part in marked:
            if not isinstance(part, str) or not part:
                continue
            text = self._held + (part.removeprefix(self._first) if self._first else part)
            self._first = ""
            self._held = self._last if self._last and text.endswith(self._last) else ""
            text = text[: len(text) - len(self._held)]
            if text:
                yield Content(text)

    def finish(self) -> Iterator[Piece]:
        return iter(())
