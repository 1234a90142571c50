"""The reader of V2.5 to V3.1 and the distilled models: thoughts between think tokens, calls between call tokens.

Two ways of writing a call are understood, whichever the format teaches: V3.1's `name SEP arguments`, and the older
`function SEP name`, a new line, and the arguments, fenced as a block of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from deepwell.chat.reading.base import CallArguments, CallBegin, Content, Marked, Piece, Reasoning
from deepwell.chat.reading.marks import END_THINK, THINK, Mark, Marks
from deepwell.weights.tokenizer import Tokenizer

CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS = tuple(f"<｜tool▁{what}▁{side}｜>" for what in ("outputs", "output") for side in ("begin", "end"))

HELD = 256
"""Characters of a call that are held until it is seen to be whole. Longer calls are passed on as they come."""
HOPELESS = 4096
"""Characters by which a call must have a name and begun arguments."""

_FENCE = re.compile(r"```(?:json)?\s*")
_LAST = " \t\r\n`"
_NAME = re.compile(r"[^\s`{}\"]{1,256}\Z")


class CallReader:
    """Reads one answer.

    White space around a thought and between calls belongs to neither. A call counts if it has a name and a JSON object
    for arguments, even if its last token is missing; what is held of any other call is content, as it was written. The
    name and the first arguments of a long call are given before its end is known: if it then turns out to be broken or
    is cut off, its arguments are what was written, and not JSON.
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
        `offered`, a call is content, as it was written.
        """
        spellings = [THINK, END_THINK] if thinks else []
        spellings += [CALLS, END_CALLS, CALL, SEP, END_CALL, *OUTPUTS] if calls else []
        self._marks = Marks(tokenizer, spellings)
        self._offered = offered
        self._state: _State = _Thought(gap=not continues) if thinking else _Said(gap=False)
        if called is not None:
            self._state = _Call(offered, called)

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        for part in self._marks.push(marked):
            yield from self._mark(part.spelling) if isinstance(part, Mark) else self._state.text(part)

    def finish(self) -> Iterator[Piece]:
        for text in self._marks.finish():
            yield from self._state.text(text)
        yield from self._state.end("")

    def _mark(self, spelling: str) -> Iterator[Piece]:
        if isinstance(self._state, _Call) and spelling not in (CALLS, END_CALLS, CALL, END_CALL):
            yield from self._state.mark(spelling)
            return
        following = self._after(spelling)
        if following is not None:
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
            return _Call(self._offered)
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
    """A call: its head up to the separator, then its body. `given` is what the prompt wrote of it already.

    One of tools that were not `offered` is no call.
    """

    def __init__(self, offered: bool, given: Sequence[str] | None = None) -> None:
        self._offered = offered
        self._head = ""
        self._body: str | None = None
        self._passing: type[CallArguments | Content] | None = None
        self._written = ""
        for part in given or ():
            list(self.mark(part) if part == SEP else self.text(part))
        self._written = CALL if given is None else ""

    def text(self, text: str) -> Iterator[Piece]:
        if self._passing is Content:
            yield Content(text)
            return
        if self._body is None:
            self._head += text
        else:
            self._body += text
        if self._passing is CallArguments:
            yield from self._more()
        else:
            self._written += text
            yield from self._decide()

    def mark(self, spelling: str) -> Iterator[Piece]:
        """A token inside of the call: the separator, or one that has no place here and so is text."""
        if spelling == SEP and self._body is None and self._passing is None:
            self._written += spelling
            self._body = ""
            return iter(())
        return self.text(spelling)

    def end(self, by: str) -> Iterator[Piece]:
        """The call is over, ended `by` a token or the end of the answer."""
        last = by if by == END_CALL else ""
        if self._passing is Content and last:
            yield Content(last)
        if self._passing is not None:
            return
        call = _begun(self._head, (self._body or "").rstrip(_LAST)) if self._offered else None
        if call is not None and _is_object(call[1]):
            yield CallBegin(call[0])
            yield CallArguments(call[1])
        else:
            yield Content(self._written + last)

    def _decide(self) -> Iterator[Piece]:
        """Of a long call, see whether it can be one; the answer depends on its first characters alone."""
        body = self._body or ""
        if self._offered and len(body) > HELD and (begun := _begun(self._head, body[:HOPELESS])) is not None:
            self._passing = CallArguments
            self._body = begun[1] + body[HOPELESS:]
            yield CallBegin(begun[0])
            yield from self._more()
        elif max(len(body), len(self._head)) > HOPELESS:
            self._passing = Content
            yield Content(self._written)

    def _more(self) -> Iterator[Piece]:
        """Arguments as they come, but for what may be the end of a fence."""
        assert self._body is not None
        certain = self._body.rstrip(_LAST)
        self._body = self._body[len(certain) :]
        if certain:
            yield CallArguments(certain)


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


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
