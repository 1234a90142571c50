"""The reader of V2.5 to V3.1 and the distilled models: thoughts between think tokens, calls between call tokens.

Two ways of writing a call are understood, whichever the format teaches: V3.1's `name SEP arguments`, and the older
`function SEP name`, a new line, and the arguments, fenced as a block of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from deepwell.chat.reading.base import CallArguments, CallBegin, Content, Marked, Piece, Reasoning, Thoughts
from deepwell.chat.reading.json_text import JsonText
from deepwell.chat.reading.marks import END_THINK, THINK, Mark, Marks
from deepwell.weights.tokenizer import Tokenizer

CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS = tuple(f"<｜tool▁{what}▁{side}｜>" for what in ("outputs", "output") for side in ("begin", "end"))

HOPELESS = 4096
"""Characters by which a call must have a name and begun arguments."""

_FENCE = re.compile(r"```(?:json)?\s*")
_LAST = " \t\r\n`"
_NAME = re.compile(r"[^\s`{}\"]{1,256}\Z")


class CallReader:
    """Reads one answer.

    White space around a thought and between calls belongs to neither. A call counts if it has a name, and arguments
    that begin an object or are empty, which stands for none. They are given as they come; broken or cut off, they are
    what was written. The texts of any other call are content. An answer has one thought, before anything else: what
    looks like the begin of another one is content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool = False,
        thinks: bool = True,
        calls: bool = True,
        offered: bool = True,
        continues: bool = False,
        called: Sequence[str] | None = None,
    ) -> None:
        """How the prompt ended: in an open thought (`thinking`), in the middle of a message that the answer
        `continues`, in an open call, of which it gave the texts and tokens in `called`.

        `thinks` False is for models that have no thoughts, `calls` False for those that call no tools. Where none is
        `offered`, the tokens of calls do not show, and their texts are content.
        """
        calls = calls and offered
        spellings = [THINK, END_THINK] if thinks else []
        spellings += [CALLS, END_CALLS, CALL, SEP, END_CALL, *OUTPUTS] if calls else []
        self._marks = Marks(tokenizer, spellings)
        may_open = thinks and not (thinking or continues) and called is None
        self.thoughts = Thoughts(
            thinking, may_open, (END_THINK, *((CALLS, END_CALLS, CALL, END_CALL) if calls else ()))
        )
        self._may_think = may_open
        self._state: _State = _Thought(gap=not continues) if thinking else _Said(gap=False)
        if called is not None:
            self._state = _Call(called)

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        for part in self._marks.push(marked):
            if isinstance(part, Mark):
                yield from self._mark(part.spelling)
                self._may_think = self._may_think and part.spelling not in (THINK, *self.thoughts.ends)
            else:
                self._may_think = self._may_think and part.isspace()
                yield from self._state.text(part)

    def finish(self) -> Iterator[Piece]:
        for text in self._marks.finish():
            yield from self._state.text(text)
        yield from self._state.end("")

    def _mark(self, spelling: str) -> Iterator[Piece]:
        if isinstance(self._state, _Call) and spelling not in (CALLS, END_CALLS, CALL, END_CALL):
            yield from self._state.mark(spelling)
        elif spelling == THINK and not (self._may_think or isinstance(self._state, _Thought)):
            yield from self._state.text(THINK)
        elif (following := self._after(spelling)) is not None:
            yield from self._state.end(spelling)
            self._state = following

    def _after(self, spelling: str) -> _State | None:
        """The state that a token opens; None if it changes nothing."""
        thinking = isinstance(self._state, _Thought)
        if spelling == THINK:
            return None if thinking else _Thought(gap=True)
        if spelling == END_THINK:
            return _Said(gap=True) if thinking else None
        if spelling == CALL:
            return _Call()
        return _Said(gap=True) if spelling in (CALLS, END_CALLS, END_CALL) else None


class _Said:
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


class _Thought:
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


class _Call:
    """A call: its head up to the separator, then its body. `given` is what the prompt wrote of it already."""

    def __init__(self, given: Sequence[str] = ()) -> None:
        self._head = ""
        self._body: str | None = None
        self._arguments: JsonText | None = None
        self._content = False
        self._written = ""
        for part in given:
            list(self.mark(part) if part == SEP else self.text(part))
        self._written = ""

    def text(self, text: str) -> Iterator[Piece]:
        if self._content:
            yield Content(text)
        elif self._arguments is not None:
            yield from self._more(text)
        else:
            self._written += text
            yield from self._decide(text)

    def mark(self, spelling: str) -> Iterator[Piece]:
        """A token inside of the call: the separator, or one that has no place here and so is text of its arguments."""
        if self._arguments is not None:
            yield from () if self._arguments.complete else self._more(spelling)
        elif spelling == SEP and self._body is None:
            self._body = ""
        elif not self._content:
            yield from self._decide(spelling)

    def end(self, by: str) -> Iterator[Piece]:
        """The call is over, ended `by` a token or the end of the answer."""
        if self._content or self._arguments is not None:
            return
        name = _named(self._head, self._body, cut=not by)
        if name is None:
            yield from [Content(self._written)] if self._written else []
            return
        yield CallBegin(name)
        yield from [CallArguments("{}")] if by else []

    def _decide(self, more: str) -> Iterator[Piece]:
        """See whether this can be a call; the answer depends on its first characters alone."""
        if self._body is None:
            self._head += more
        else:
            self._body += more
        body = self._body or ""
        if (begun := _begun(self._head, body[:HOPELESS])) is not None:
            self._arguments = JsonText()
            yield CallBegin(begun[0])
            yield from self._more(begun[1] + body[HOPELESS:])
        elif max(len(body), len(self._head)) > HOPELESS:
            self._content = True
            yield Content(self._written)

    def _more(self, text: str) -> Iterator[Piece]:
        """Arguments as they come. What follows them is content, but for the end of a fence."""
        assert self._arguments is not None
        inside, rest = self._arguments.take(text)
        if inside:
            yield CallArguments(inside)
        if self._arguments.complete and (rest := rest.lstrip(_LAST)):
            self._content = True
            yield Content(rest)


_State = _Said | _Thought | _Call


def _begun(head: str, body: str) -> tuple[str, str] | None:
    """Name and what there is of the arguments, once both have begun."""
    name, arguments = head, body.lstrip()
    if arguments and arguments[0] not in "{`":
        name, line, arguments = arguments.partition("\n")
        arguments = arguments.lstrip() if line else ""
    fence = _FENCE.match(arguments)
    arguments = arguments[fence.end() :] if fence else arguments
    name = name.strip()
    return (name, arguments) if arguments.startswith("{") and _NAME.match(name) else None


def _named(head: str, body: str | None, cut: bool) -> str | None:
    """The name of a call that has nothing else; of one that was `cut`, if the name is seen to be complete."""
    words = [head.strip(), *_FENCE.sub("", body or "").split()]
    if words[0] == "function" and not (cut and "\n" not in (body or "")):
        words = words[1:]
    known = body is not None and len(words) == 1 and words[0] != "function" and _NAME.match(words[0])
    return words[0] if known else None
