"""Reads answers whose calls are written in DSML: V3.2, V4 and V4.1.

One reader takes the spellings of all three, with or without the token `｜DSML｜` once a block is open, and a call whose
arguments are a JSON object instead of tags. A call begins for the client with its first argument; from then on its
arguments stream. What never becomes a call is given back as it was written, but for its marked tags. A call that breaks
or is cut off after it had its name keeps its arguments unfinished, so that nobody takes them for all of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from enum import Enum, auto

from deepwell.chat.reading.base import CallArguments, CallBegin, Content, Marked, Piece, Reasoning, Thoughts
from deepwell.chat.reading.dsml_tags import (
    BLOCK_ENDS,
    END_OF_THINK,
    END_TAG,
    MARK,
    OPENERS,
    TAG,
    BlockEnd,
    Broken,
    CallEnd,
    Parameter,
    Unfinished,
    after_tag,
    argument,
    first_of,
    held_back,
    is_block_end,
    is_cut_tag,
    quoted,
    read_call,
    read_cut,
    read_further,
    spelled,
    without_end,
)
from deepwell.chat.reading.joins import Joins, without_joins
from deepwell.chat.reading.marks import END_THINK, THINK
from deepwell.weights.added_tokens import token_of
from deepwell.weights.tokenizer import Tokenizer

STRIDE = 4096
"""Characters that are read at a time, so that steps through a long text do not copy all of it."""


class Start(Enum):
    """Where in an answer the prompt ended. Line breaks that come first are left out, except in the middle of a text."""

    THOUGHT = auto()
    MID_THOUGHT = auto()
    CONTENT = auto()
    MID_CONTENT = auto()
    CALLS = auto()


class DsmlReader:
    """See Reader. Steps read the text that has come so far, and say whether there is more to read in what is left."""

    def __init__(self, tokenizer: Tokenizer, start: Start, offers: bool) -> None:
        """`offers` is whether the prompt offered tools; if not, what looks like a call is part of the text."""
        close = tokenizer.special(END_THINK)
        self._end_of_think = END_THINK if close is None else END_OF_THINK
        marks = {tokenizer.special(MARK): MARK, tokenizer.special(THINK): THINK, close: END_OF_THINK}
        self._shown: dict[int | None, str] = {id: mark for id, mark in marks.items() if id is not None}
        self._offers = offers
        self._joins = Joins((TAG, END_TAG) if offers else ())
        self._thinks = start in (Start.THOUGHT, Start.MID_THOUGHT)
        self.thoughts = Thoughts(self._thinks, ends=(END_THINK,))
        self._leading = start in (Start.THOUGHT, Start.CONTENT)
        self._in_block = start is Start.CALLS
        self._step = self._call if self._in_block else self._plain
        self._parameter = Parameter("", True, ())
        self._text = ""

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        yield from without_joins(self._read(marked), self._joins)

    def finish(self) -> Iterator[Piece]:
        yield from without_joins(self._rest(), self._joins)
        if held := self._joins.finish():
            yield Content(held)

    def _read(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        text = "".join(self._shown.get(token_of(part), part if isinstance(part, str) else "") for part in marked)
        for start in range(0, len(text), STRIDE):
            self._text += text[start : start + STRIDE]
            while self._text and (yield from self._step(False)):
                pass

    def _rest(self) -> Iterator[Piece]:
        while self._text and (yield from self._step(True)):
            pass

    def _plain(self, last: bool) -> Generator[Piece, None, bool]:
        """A thought, or content, up to what ends it."""
        if self._leading:
            self._text = self._text.lstrip("\n")
        breaking: tuple[str, ...] = (self._end_of_think,) if self._thinks else ()
        breaking += OPENERS if self._offers else ()
        breaking += (END_TAG,) if self._offers and not self._thinks else ()
        breaking += BLOCK_ENDS if self._in_block else ()
        found = first_of(self._text, {*breaking, self._end_of_think})
        if found is None:
            held = self._held(breaking)
            cut = END_TAG in breaking and is_cut_tag(self._text[len(self._text) - held :])
            yield from self._say(0 if last and not cut else held)
            self._text = "" if last else self._text
            return False
        at, mark = found
        kept = len(self._text[:at].rstrip("\n")) if mark in breaking else at
        yield from self._say(len(self._text) - kept)
        if mark in OPENERS:
            self._step = self._call
        elif mark == END_TAG:
            self._step = self._tag
        else:
            self._text = self._text[at - kept + len(mark) :]
            self._leading = mark in breaking
            self._thinks, self._in_block = False, self._in_block and mark not in BLOCK_ENDS
        return True

    def _held(self, breaking: tuple[str, ...]) -> int:
        """How much at the end may belong to a mark, with the line breaks that would go with it."""
        held = held_back(self._text, {*breaking, self._end_of_think})
        before = self._text[: len(self._text) - held]
        mark = self._text[len(before) :]
        goes = any(each.startswith(mark) for each in breaking)
        return held + (len(before) - len(before.rstrip("\n")) if goes else 0)

    def _say(self, left: int) -> Iterator[Piece]:
        """Give the text but for the last `left` characters."""
        text, self._text = self._text[: len(self._text) - left], self._text[len(self._text) - left :]
        if text:
            self._leading = False
            yield Reasoning(text) if self._thinks else Content(text)

    def _call(self, last: bool) -> Generator[Piece, None, bool]:
        """The beginning of a call, up to its first value; or, in a block, its end."""
        try:
            found, rest = read_call(self._text, self._in_block)
        except Unfinished:
            if last:
                yield from self._cut()
            return False
        except Broken:
            found = None
        if found is None:
            yield from self._give_up()
            return True
        self._text, self._thinks = rest, False
        if isinstance(found, BlockEnd):
            self._in_block, self._leading, self._step = False, True, self._plain
            return True
        self._in_block = True
        yield CallBegin(found.name)
        yield from self._inside(found.inside, "{")
        return True

    def _cut(self) -> Iterator[Piece]:
        """The answer ended before a call had its arguments: it is one if it has its name, and else leaves no markup."""
        call = read_cut(self._text, self._in_block)
        if call is not None:
            yield CallBegin(call[0])
            yield from [CallArguments(call[1])] if call[1] else []
        elif self._thinks or not (is_cut_tag(self._text) or (self._in_block and is_block_end(self._text))):
            yield from self._say(0)
        self._text = ""

    def _give_up(self) -> Iterator[Piece]:
        """What looked like a call is text, in content without its marked tags. Its first mark is passed over, not to be
        tried again."""
        marked = self._text.lstrip().startswith(TAG) and not self._thinks
        self._step = self._tag if marked else self._plain
        blanks = len(self._text) - len(self._text.lstrip())
        mark = next((mark for mark in OPENERS if self._text.startswith(mark, blanks)), None)
        if mark is not None and not marked:
            yield from self._say(len(self._text) - blanks - len(mark))

    def _tag(self, last: bool) -> Generator[Piece, None, bool]:
        """A marked tag that belongs to no call does not show."""
        rest = after_tag(self._text)
        if rest is None and not last:
            return False
        yield from ()
        tag = self._text[: len(self._text) - len(rest or "")].lstrip()
        self._text, self._step = rest or "", self._plain
        if tag in BLOCK_ENDS:
            self._in_block, self._leading = False, True
        return True

    def _inside(self, found: Parameter | CallEnd, before: str) -> Iterator[Piece]:
        """What a call holds next: another value after `before`, or nothing more."""
        if isinstance(found, CallEnd):
            self._step = self._call
            yield CallArguments(found.body if before == "{" else "}")
            return
        self._parameter, self._step = found, self._string if found.is_text else self._value
        yield CallArguments(f"{before}{quoted(found.name)}: " + ('"' if found.is_text else ""))

    def _string(self, last: bool) -> Generator[Piece, None, bool]:
        """A value that is text, as it comes."""
        text, ended = self._up_to_end(last)
        if text:
            yield CallArguments(quoted(text)[1:-1])
        if ended:
            yield CallArguments('"')
        return ended

    def _value(self, last: bool) -> Generator[Piece, None, bool]:
        """A value that is JSON, when it is complete."""
        if not last and first_of(self._text, self._parameter.ends) is None:
            return False
        text, ended = self._up_to_end(last)
        yield CallArguments(argument(text) if ended else text)
        return ended

    def _up_to_end(self, last: bool) -> tuple[str, bool]:
        """What belongs to a value for certain, and whether that is all of it. Half an end is left out of a last one."""
        ends = self._parameter.ends
        found = first_of(self._text, ends)
        at = found[0] if found else len(self._text) - held_back(self._text, ends)
        text, self._text = self._text[:at], "" if last and not found else self._text[at:]
        if found:
            self._step = self._further
        return spelled(text), found is not None

    def _further(self, last: bool) -> Generator[Piece, None, bool]:
        """What follows a value."""
        try:
            found, self._text = read_further(self._text)
        except Unfinished:
            if last:
                self._text = ""
            return False
        except Broken:
            self._text, self._step, self._leading = without_end(self._text), self._plain, False
            return True
        yield from self._inside(found, ", ")
        return True
