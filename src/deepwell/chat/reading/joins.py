"""Marks that come about where another one was taken out of a text, as `<tool` and `_call>` around one do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deepwell.chat.reading.base import Content, Piece


class Joins:
    """Passes a text on without the marks in it, nor those that the texts around a removed one make together.

    What may still become part of a mark is held back, so that what comes out does not depend on where the text was cut.
    """

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = frozenset(marks)
        self._begins = {mark[:size] for mark in self._marks for size in range(1, len(mark) + 1)}
        self._firsts = {mark[0] for mark in self._marks}
        self._chars: list[str] = []
        self._given = 0
        # before each held character and after the last: how much there begins a mark, and from where on to hold back
        self._places = [(0, 0)]

    def push(self, text: str) -> str:
        """Take more; gives what is certain now."""
        if not self._chars and not any(first in text for first in self._firsts):
            return text
        for char in text:
            self._add(char)
        return self._take(self._places[-1][1] - self._given)

    def finish(self) -> str:
        """What was held back, where no text follows."""
        return self._take(len(self._chars))

    def _add(self, char: str) -> None:
        self._chars.append(char)
        depth = self._places[-1][0] + 1
        while depth and "".join(self._chars[-depth:]) not in self._begins:
            depth -= 1
        if depth and "".join(self._chars[-depth:]) in self._marks:
            del self._chars[-depth:]
            del self._places[len(self._places) - depth + 1 :]
            return
        end = self._given + len(self._chars)
        hold = min((hold for _, hold in self._places[len(self._places) - depth :]), default=end)
        self._places.append((depth, hold))

    def _take(self, count: int) -> str:
        taken = "".join(self._chars[:count])
        self._given += count
        del self._chars[:count], self._places[:count]
        if not self._chars:
            self._places = [(0, self._given)]
        return taken


def without_joins(pieces: Iterable[Piece], joins: Joins) -> Iterator[Piece]:
    """The pieces, with all content passed through `joins`."""
    for piece in pieces:
        if not isinstance(piece, Content):
            yield piece
        elif text := joins.push(piece.text):
            yield Content(text)
