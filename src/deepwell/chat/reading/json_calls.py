"""The readers of strangers' models, whose calls are JSON objects of a name and arguments.

Hermes' shape, which Qwen writes too, has them between the tags `<tool_call>` and `</tool_call>`; Llama's is the whole
answer, at most after the token `<|python_tag|>`, and calls the arguments parameters. Several calls follow each other,
in one pair of tags or in a list too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

import msgspec

from deepwell.chat.reading.base import CallArguments, CallBegin, Content, Piece
from deepwell.chat.reading.json_text import JsonText
from deepwell.chat.reading.turns import State, TurnReader, after_calls
from deepwell.weights.tokenizer import Tokenizer


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How a family writes calls: the mark before them, the one after them, what stands between the mark and the object,
    and its name for arguments."""

    begin: str
    end: str = ""
    between: str = ""
    arguments: str
    bare: bool = False
    """Whether an answer may be a call without any mark."""

    def opening(self, name: str | None) -> str:
        """The text that opens a call that must come, up to its name or, if that is given, its arguments."""
        begin = "" if self.bare else self.begin + self.between
        return f'{begin}{{"name": "' + (f'{name}", "{self.arguments}": ' if name is not None else "")


HERMES = Shape(begin="<tool_call>", end="</tool_call>", between="\n", arguments="arguments")
LLAMA = Shape(begin="<|python_tag|>", arguments="parameters", bare=True)

HOPELESS = 4096
"""Characters by which a call must have its name and begun its arguments for these to be given as they come."""

_BETWEEN = " \t\r\n[],;"
"""What may stand between the objects of calls."""
_ARGUMENTS = ("arguments", "parameters")
_NAMES = ("name", "function")
_KNOWN = (*_NAMES, "type", "id", *_ARGUMENTS)
_MEMBER = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*', re.DOTALL)
_NO_MEMBER = re.compile(r'\{\s*[^\s"]')
_DECODER = json.JSONDecoder(strict=False)


class JsonCallReader(TurnReader):
    """Reads one answer.

    An object is a call if it has a name and stands between tags, or else names one of the tools. What its arguments are
    is given as it was written, with raw control characters in texts escaped; none at all are an empty object. The text
    of what is no call is content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        shape: Shape,
        names: Collection[str],
        *,
        thinking: bool = False,
        thinks: bool = True,
        continues: bool = False,
        called: str | None = None,
    ) -> None:
        """`names` are those of the tools on offer, and `called` what the prompt wrote of a call that must come.

        For the rest see `CallReader`. Where no tool is offered, marks are what they are elsewhere: text or nothing.
        """
        opens: dict[str, Callable[[], State]] = {shape.begin: _Calls, shape.end: after_calls} if names else {}
        opens.pop("", None)
        state = None
        if called is not None:
            state = _Calls(given=called.removeprefix(shape.begin))
        elif shape.bare and names and not (thinking or continues):
            state = _Calls(names)
        super().__init__(
            tokenizer, opens, thinking=thinking, thinks=thinks, continues=continues or called is not None, state=state
        )


class _Calls:
    """Objects of calls, one after the other, or a text that is none. With `names`, a call has one of these, and what is
    none is the answer as it was written. `given` is what the prompt wrote of the first one."""

    def __init__(self, names: Collection[str] | None = None, given: str = "") -> None:
        self._names = names
        self._object: _Object | None = None
        self._keeps_blanks = names is not None
        self._blank = ""
        self._content = False
        if given:
            list(self.text(given))
        if self._object is not None:
            self._object.written = ""

    def text(self, text: str) -> Iterator[Piece]:
        while text and not self._content:
            if self._object is None:
                text = self._open(text)
            else:
                text = yield from self._inside(self._object, text)
        if text:
            yield Content(text)

    def keeps(self, mark: str) -> bool:
        return self._object is not None and self._object.in_text

    def mark(self, mark: str) -> Iterator[Piece]:
        return self.text(mark)

    def end(self, by: str) -> Iterator[Piece]:
        written = self._blank
        if self._object is not None:
            if (yield from self._object.end(by)):
                return
            written = written + self._object.written if by or self._names is not None else ""
        if written:
            yield Content(written)

    def _open(self, text: str) -> str:
        """Begin an object; gives what is left."""
        rest = text.lstrip(_BETWEEN)
        if self._keeps_blanks:
            self._blank += text[: len(text) - len(rest)]
        if rest.startswith("{"):
            self._object = _Object(self._names)
        elif rest:
            rest, self._blank, self._content = self._blank + rest, "", True
        return rest

    def _inside(self, call: _Object, text: str) -> Generator[Piece, None, str]:
        """Take what belongs to an object; gives what is left."""
        rest = yield from call.text(text)
        if call.is_none:
            self._content = True
            rest = self._blank + call.written + rest
        if call.over:
            self._object, self._blank, self._keeps_blanks = None, "", False
        return rest


class _Object:
    """One object as it comes. It is `over` once it is complete or seen to be no call, which is `is_none`."""

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = names
        self._whole = JsonText()
        self._arguments: JsonText | None = None
        self._held = ""
        self._late = False
        self.written = ""
        self.is_none = False

    @property
    def over(self) -> bool:
        return self._whole.complete or self.is_none

    @property
    def in_text(self) -> bool:
        """Whether it is in the middle of a text, in which a mark means nothing."""
        return self._whole.in_string

    def text(self, text: str) -> Generator[Piece, None, str]:
        """Take more; gives what does not belong to it."""
        inside, rest = self._whole.take(text)
        if self._arguments is None:
            self.written += text[: len(text) - len(rest)]
            self._held += inside
            yield from self._decide()
        else:
            yield from self._more(inside)
        return rest

    def end(self, by: str) -> Generator[Piece, None, bool]:
        """It ended before it was complete; gives whether it was a call."""
        if self._arguments is not None:
            return True
        name, arguments = _call(self._held)
        if name is None or not self._allows(name):
            return False
        yield CallBegin(name)
        if arguments or by:
            yield CallArguments(arguments or "{}")
        return True

    def _decide(self) -> Iterator[Piece]:
        """See whether it can be a call, by its first characters alone, or is one as a whole."""
        begun = None if self._late else _begun(self._held[:HOPELESS])
        self._late = len(self._held) >= HOPELESS
        if begun is not None and self._allows(begun[0]):
            self._arguments = JsonText()
            yield CallBegin(begun[0])
            yield from self._more(self._held[begun[1] :])
        elif begun is not None or (self._names is not None and _hopeless(self._held)):
            self.is_none = True
        elif self._whole.complete:
            name, arguments = _call(self._held)
            self.is_none = name is None or not self._allows(name)
            if name is not None and not self.is_none:
                yield CallBegin(name)
                yield CallArguments(arguments or "{}")

    def _allows(self, name: str) -> bool:
        return self._names is None or name in self._names

    def _more(self, text: str) -> Iterator[Piece]:
        assert self._arguments is not None
        inside, _ = self._arguments.take(text)
        if inside:
            yield CallArguments(inside)


def _members(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Key, value, begin and end of each member of an object; of a last one that is not complete, `_UNFINISHED`."""
    at = 1
    while at < len(text) and (member := _MEMBER.match(text, at)) is not None:
        begin = member.end()
        try:
            value, at = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            value, at = _UNFINISHED, len(text)
        whole = at < len(text) or isinstance(value, str | dict | list)  # a number may go on
        yield member[1], value if whole else _UNFINISHED, begin, at


_UNFINISHED = object()


def _begun(text: str) -> tuple[str, int] | None:
    """The name of a call and where its arguments begin, if it is named before they do."""
    name = ""
    for key, value, begin, _ in _members(text):
        if name and key in _ARGUMENTS and text.startswith("{", begin):
            return name, begin
        name = value if key in _NAMES and isinstance(value, str) else name
    return None


def _call(text: str) -> tuple[str | None, str]:
    """Name and arguments of an object that may lack its end; no name if it is no call."""
    found = {key: (value, text[begin:end]) for key, value, begin, end in _members(text)}
    function, written = found.get("function", (None, ""))
    if isinstance(function, dict):
        return _call(written)
    name = next((value for key in _NAMES if isinstance(value := found.get(key, (None,))[0], str) and value), None)
    value, written = next((found[key] for key in _ARGUMENTS if key in found), (None, ""))
    return name, value if isinstance(value, str) else "" if value is None else written


def _hopeless(text: str) -> bool:
    """Whether a text that begins as an object is none that a call could be."""
    first = _MEMBER.match(text, 1)
    unknown = first is not None and first[1] not in _KNOWN
    return unknown or _NO_MEMBER.match(text) is not None or len(text) > HOPELESS
