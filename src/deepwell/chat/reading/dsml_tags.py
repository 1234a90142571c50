"""The tags of DSML in a text that may not be complete yet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from deepwell.chat.reading.json_text import JsonText

MARK = "｜DSML｜"
END_OF_THINK = "\udfff"
"""Stands for the token `</think>`. No text holds a lone surrogate, so what spells the token stays text."""

_BLOCK_NAMES = ("tool_calls", "function_calls", " calls")


def _tags(start: str, names: Iterable[str], end: str, marks: Iterable[str] = (MARK, "")) -> tuple[str, ...]:
    return tuple(f"{start}{mark}{name}{end}" for mark in marks for name in names)


TAG, END_TAG = f"<{MARK}", f"</{MARK}"
"""What every marked tag begins with."""

_TAG = re.compile(rf"\s*</?{MARK}[^<>\n]{{0,256}}(>)?")

OPENERS = (TAG, *_tags("<", _BLOCK_NAMES, ">", [""]))
"""What may begin a block of calls, or a call without a block."""

BLOCK_ENDS = _tags("</", _BLOCK_NAMES, ">")
_BLOCKS = _tags("<", _BLOCK_NAMES, ">")
_CALLS = _tags("<", ("invoke", " invoke"), ' name="')
_CALL_ENDS = _tags("</", ("invoke", " invoke"), ">")
_PARAMETERS = _tags("<", ("parameter", " parameter"), ' name="')
_PARAMETER_ENDS = _tags("</", ("parameter", " parameter"), ">")


class Broken(Exception):
    """The text cannot become a call."""


class Unfinished(Exception):
    """The text may become a call with more of it."""


class Parameter(msgspec.Struct, frozen=True):
    """A value begins. `ends` are the tags of which the first ends it."""

    name: str
    is_text: bool
    ends: tuple[str, ...]


class CallEnd(msgspec.Struct, frozen=True):
    """A call is complete; `body` are its arguments if they were written as JSON."""

    body: str = "{}"


class BlockEnd(msgspec.Struct, frozen=True):
    """No more calls."""


class Call(msgspec.Struct, frozen=True):
    """A call begins, and what is in it."""

    name: str
    inside: Parameter | CallEnd


class _Scan:
    """A place in a text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    @property
    def rest(self) -> str:
        return self.text[self.at :]

    def blanks(self) -> None:
        self.at = len(self.text) - len(self.rest.lstrip())

    def take(self, *choices: str) -> str:
        """The one of `choices` that comes next."""
        for choice in choices:
            if self.text.startswith(choice, self.at):
                self.at += len(choice)
                return choice
        if any(choice.startswith(self.rest) for choice in choices):
            raise Unfinished
        raise Broken

    def until(self, end: str, without: str) -> str:
        """The text up to `end`, which is passed over too; it may not hold `without`, nor end a thought."""
        found = self.text.find(end, self.at)
        text = self.text[self.at :] if found < 0 else self.text[self.at : found]
        if without in text or END_OF_THINK in text:
            raise Broken
        if found < 0:
            raise Unfinished
        self.at = found + len(end)
        return text


def read_call(text: str, in_block: bool) -> tuple[Call | BlockEnd, str]:
    """A call that begins `text`, or the end of the block, and the text after it. Raises Broken or Unfinished."""
    scan = _Scan(text)
    tag = _opened(scan, in_block)
    if tag in BLOCK_ENDS:
        return BlockEnd(), scan.rest
    name = _name(scan)
    scan.take(">")
    scan.blanks()
    inside = scan.take(*_PARAMETERS, *_CALL_ENDS, "{")
    if inside == "{":
        return Call(name, _json_body(scan, _only_marked(_CALL_ENDS, tag))), scan.rest
    return Call(name, CallEnd() if inside in _CALL_ENDS else _parameter(scan, inside)), scan.rest


def read_cut(text: str, in_block: bool) -> tuple[str, str] | None:
    """Name and what came of a JSON body, of a call that the end of the answer cut off once it had its name."""
    scan = _Scan(text)
    try:
        name = None if _opened(scan, in_block) in BLOCK_ENDS else _name(scan)
    except (Broken, Unfinished):
        return None
    body = scan.rest.removeprefix(">").lstrip()
    return None if name is None else (name, json_text(body) if body.startswith("{") else "")


def _opened(scan: _Scan, in_block: bool) -> str:
    """The tag that opens a call, the end of a block, after what may stand before it."""
    scan.blanks()
    if in_block:
        return scan.take(*_CALLS, *BLOCK_ENDS)
    tag = scan.take(*_BLOCKS, *(call for call in _CALLS if MARK in call))
    if tag in _BLOCKS:
        scan.blanks()
        tag = scan.take(*_CALLS)
    return tag


def _name(scan: _Scan) -> str:
    name = scan.until('"', without="\n")
    if not name:
        raise Broken
    return name


def read_further(text: str) -> tuple[Parameter | CallEnd, str]:
    """What follows a value: its end, then the next parameter or the end of the call. Raises Broken or Unfinished."""
    scan = _Scan(text)
    tag = scan.take(*_PARAMETER_ENDS, *_CALL_ENDS)
    if tag in _PARAMETER_ENDS:
        scan.blanks()
        tag = scan.take(*_PARAMETERS, *_CALL_ENDS)
    return (CallEnd() if tag in _CALL_ENDS else _parameter(scan, tag)), scan.rest


def after_tag(text: str) -> str | None:
    """What follows a marked tag that begins `text`, whole or broken; None if more of it may come."""
    found = _TAG.match(text)
    unsure = found is None or (found.end() == len(text) and found[1] is None)
    return None if found is None or unsure else text[found.end() :]


def without_end(text: str) -> str:
    """The text after the end of a value, if that is complete."""
    end = next((end for end in _PARAMETER_ENDS if text.startswith(end)), "")
    return text[len(end) :].lstrip()


def _parameter(scan: _Scan, tag: str) -> Parameter:
    name = scan.until('" string="', without=MARK)
    kind = scan.take('true">', 'false">')
    return Parameter(name, kind.startswith("true"), (f"</{MARK}", *_only_marked(_PARAMETER_ENDS, tag)))


def _only_marked(ends: Iterable[str], tag: str) -> tuple[str, ...]:
    """The ends of a tag: without the mark only if it began so, for its text may spell such a tag."""
    return tuple(end for end in ends if MARK in end or MARK not in tag)


def _json_body(scan: _Scan, ends: tuple[str, ...]) -> CallEnd:
    found = first_of(scan.text, ends, scan.at)
    if found is None:
        raise Unfinished
    at, end = found
    body = json_text(spelled(scan.text[scan.at - 1 : at].strip()))
    scan.at = at + len(end)
    return CallEnd(body)


def json_text(written: str) -> str:
    """Arguments as they were written, with what JSON does not know in its texts made sound."""
    inside, rest = JsonText().take(written)
    return inside + rest


def first_of(text: str, marks: Iterable[str], start: int = 0) -> tuple[int, str] | None:
    """Where the first of `marks` in `text` is, and which one."""
    found = ((at, mark) for mark in marks if (at := text.find(mark, start)) >= 0)
    return min(found, default=None)


def held_back(text: str, marks: Iterable[str]) -> int:
    """How many characters at the end of `text` may begin one of `marks`."""
    start = text.rfind("<")
    return len(text) - start if start >= 0 and any(mark.startswith(text[start:]) for mark in marks) else 0


def is_block_end(text: str) -> bool:
    """Whether a rest of an answer is blank or the beginning of a block's end."""
    return any(end.startswith(text.strip()) for end in BLOCK_ENDS)


def is_cut_tag(text: str) -> bool:
    """Whether a rest of an answer is a marked tag, or so much of one that it can be nothing else."""
    return any(part in text or ("｜" in text and part.startswith(text.strip())) for part in (TAG, END_TAG))


def spelled(text: str) -> str:
    """The text with its tokens spelled out: those of a value mean nothing."""
    return text.replace(END_OF_THINK, "</think>")


def quoted(text: str) -> str:
    """A text as JSON."""
    return json.dumps(text, ensure_ascii=False)


def argument(written: str) -> str:
    """A value that is not said to be text, as JSON: as it was written, or as text if that is no JSON."""
    return quoted(written) if _value(written) is _NO_JSON else written


_NO_JSON = object()


def _value(text: str) -> Any:
    def refuse(name: str) -> float:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return _NO_JSON
