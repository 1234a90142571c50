"""The reader of V2.5 to V3.1 and the distilled models: thoughts between think tokens, calls between call tokens.

Two ways of writing a call are understood, whichever the format teaches: V3.1's `name SEP arguments`, and the older
`function SEP name`, a new line, and the arguments, fenced as a block of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from deepwell.chat.reading.base import CallArguments, CallBegin, Content, Piece
from deepwell.chat.reading.json_text import JsonText
from deepwell.chat.reading.turns import TurnReader, after_calls
from deepwell.weights.tokenizer import Tokenizer

CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS = tuple(f"<｜tool▁{what}▁{side}｜>" for what in ("outputs", "output") for side in ("begin", "end"))

HOPELESS = 4096
"""Characters by which a call must have a name and begun arguments."""

_FENCE = re.compile(r"```(?:json)?\s*")
_LAST = " \t\r\n`"
_NAME = re.compile(r"[^\s`{}\"]{1,256}\Z")


class CallReader(TurnReader):
    """Reads one answer.

    A call counts if it has a name, and arguments that begin an object or are empty, which stands for none. They are
    given as they come; broken or cut off, they are what was written. The texts of any other call are content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool = False,
        thinks: bool = True,
        offered: bool = True,
        continues: bool = False,
        called: Sequence[str] | None = None,
    ) -> None:
        """How the prompt ended: in an open thought (`thinking`), in the middle of a message that the answer
        `continues`, in an open call, of which it gave the texts and tokens in `called`.

        `thinks` False is for models that have no thoughts. Where no tools were `offered`, the tokens of calls do not
        show, and their texts are content.
        """
        opens = {CALLS: after_calls, END_CALLS: after_calls, END_CALL: after_calls, CALL: _Call}
        super().__init__(
            tokenizer,
            opens if offered else {},
            (SEP, *OUTPUTS) if offered else (),
            thinking=thinking,
            thinks=thinks,
            continues=continues or called is not None,
            state=None if called is None else _Call(called),
        )


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

    def keeps(self, mark: str) -> bool:
        return mark not in (CALLS, END_CALLS, CALL, END_CALL)

    def mark(self, mark: str) -> Iterator[Piece]:
        """A token inside of the call: the separator, or one that has no place here and so is text of its arguments."""
        if self._arguments is not None:
            yield from () if self._arguments.complete else self._more(mark)
        elif mark == SEP and self._body is None:
            self._body = ""
        elif not self._content:
            yield from self._decide(mark)

    def end(self, by: str) -> Iterator[Piece]:
        """The call is over, ended `by` a token or the end of the answer."""
        if self._content or self._arguments is not None:
            return
        words = _words(self._head, self._body)
        known = len(words) == 1 and bool(self._body is not None and _NAME.match(words[0]))
        if known and (by or _is_whole(self._head, self._body)):
            yield CallBegin(words[0])
            yield from [CallArguments("{}")] if by else []
        elif self._written and (by or len(words) > 1):  # what else is cut off is half a name
            yield Content(self._written)

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


def _words(head: str, body: str | None) -> list[str]:
    """What a call says whose arguments did not begin: nothing but its name, if it is one."""
    words = [*head.split(), *_FENCE.sub("", body or "").split()]
    return words[1:] if words[:1] == ["function"] else words


def _is_whole(head: str, body: str | None) -> bool:
    """Whether a name that the end of the answer follows is complete."""
    return head.strip() != "function" or "\n" in (body or "")
