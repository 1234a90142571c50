"""What readers of thoughts and calls share: an answer as states, one of which its marks open after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from deepwell.chat.reading.base import Content, Marked, Piece, Reasoning, Thoughts
from deepwell.chat.reading.joins import Joins, without_joins
from deepwell.chat.reading.marks import END_THINK, THINK, Mark, Marks
from deepwell.weights.tokenizer import Tokenizer


class State(Protocol):
    """Where in an answer a reader is. Several texts in a row are one, wherever they were cut."""

    def text(self, text: str) -> Iterator[Piece]: ...

    def keeps(self, mark: str) -> bool:
        """Whether a mark belongs to it, and does not end it."""
        ...

    def mark(self, mark: str) -> Iterator[Piece]:
        """Take a mark that belongs to it."""
        ...

    def end(self, by: str) -> Iterator[Piece]:
        """It is over, ended `by` a mark or, if that is empty, by the end of the answer."""
        ...


class TurnReader:
    """Reads one answer. White space around a thought and behind calls belongs to neither. An answer has one thought,
    before anything else: what looks like the begin of another one is content."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        opens: Mapping[str, Callable[[], State]],
        inside: Sequence[str] = (),
        *,
        thinking: bool,
        thinks: bool,
        continues: bool,
        state: State | None = None,
    ) -> None:
        """`opens` has the marks of calls with what each opens, `inside` those that mean something in a call alone.

        The prompt ended in an open thought (`thinking`), in the middle of a message that the answer `continues`, in a
        `state`. `thinks` False is for models that have no thoughts.
        """
        self._marks = Marks(tokenizer, [*((THINK, END_THINK) if thinks else ()), *opens, *inside])
        self._joins = Joins(spelling for spelling in self._marks.spelled if spelling != THINK)
        self._opens = opens
        self.thoughts = Thoughts(thinking, thinks and not (thinking or continues), (END_THINK, *opens))
        self._may_think = self.thoughts.may_open
        self._state: State = state or (Thought(gap=not continues) if thinking else Said(gap=False))

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        yield from without_joins(self._read(marked), self._joins)

    def finish(self) -> Iterator[Piece]:
        yield from without_joins(self._rest(), self._joins)
        if held := self._joins.finish():
            yield Content(held)

    def _read(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        for part in self._marks.push(marked):
            if isinstance(part, Mark):
                yield from self._mark(part.spelling)
                self._may_think = self._may_think and part.spelling not in (THINK, *self.thoughts.ends)
            else:
                self._may_think = self._may_think and part.isspace()
                yield from self._state.text(part)

    def _rest(self) -> Iterator[Piece]:
        for text in self._marks.finish():
            yield from self._state.text(text)
        yield from self._state.end("")

    def _mark(self, spelling: str) -> Iterator[Piece]:
        if self._state.keeps(spelling):
            yield from self._state.mark(spelling)
        elif spelling == THINK and not (self._may_think or isinstance(self._state, Thought)):
            yield from self._state.text(THINK)
        elif (following := self._after(spelling)) is not None:
            yield from self._state.end(spelling)
            self._state = following

    def _after(self, spelling: str) -> State | None:
        """The state that a mark opens; None if it changes nothing."""
        thinking = isinstance(self._state, Thought)
        if spelling == THINK:
            return None if thinking else Thought(gap=True)
        if spelling == END_THINK:
            return Said(gap=True) if thinking else None
        opens = self._opens.get(spelling)
        return opens() if opens else None


class _Plain:
    """A state that has no marks of its own."""

    def keeps(self, mark: str) -> bool:
        return False

    def mark(self, mark: str) -> Iterator[Piece]:
        return iter(())


class Said(_Plain):
    """Text of the answer itself; after a `gap`, white space is left out until other text comes."""

    def __init__(self, gap: bool) -> None:
        self._gap = gap

    def text(self, text: str) -> Iterator[Piece]:
        text = text.lstrip() if self._gap else text
        if text:
            self._gap = False
            yield Content(text)

    def end(self, by: str) -> Iterator[Piece]:
        return iter(())


def after_calls() -> State:
    """What follows calls."""
    return Said(gap=True)


class Thought(_Plain):
    """A thought, whose last white space is held back until more of it comes."""

    def __init__(self, gap: bool) -> None:
        self._gap = gap
        self._held = ""

    def text(self, text: str) -> Iterator[Piece]:
        text = self._held + (text.lstrip() if self._gap else text)
        thought = text.rstrip()
        self._held = text[len(thought) :]
        if thought:
            self._gap = False
            yield Reasoning(thought)

    def end(self, by: str) -> Iterator[Piece]:
        if self._held and not by:
            yield Reasoning(self._held)
