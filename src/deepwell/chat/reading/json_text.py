"""JSON as a model writes it, piece by piece: where a value ends, with what is no JSON in its strings made sound."""

from __future__ import annotations

import json
import re
from typing import Any

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\\x00-\x1f]')
_ANY = re.compile(".", re.DOTALL)


class JsonText:
    """Follows one object or array from its first bracket to the one that closes it.

    Raw control characters in strings, which models write and JSON does not know, are escaped. All else is given as it
    was written: numbers of any size, lone surrogates, and what is no JSON at all.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = False
        self.in_string = self.complete = False

    def take(self, text: str) -> tuple[str, str]:
        """More of the text: what of it belongs to the value, and what follows the value."""
        if self.complete:
            return "", text
        given: list[str] = []
        at = 0
        while (found := self._next(text, at)) is not None:
            given += (text[at : found.start()], self._step(found[0]))
            at = found.end()
            if self.complete:
                return "".join(given), text[at:]
        return "".join(given) + text[at:], ""

    def _next(self, text: str, at: int) -> re.Match[str] | None:
        """The next character that means something."""
        if self._escaped and at < len(text):
            return _ANY.match(text, at)
        return (_INSIDE if self.in_string else _OUTSIDE).search(text, at)

    def _step(self, char: str) -> str:
        """Take such a character; gives how it is written."""
        if self.in_string:
            escaped, self._escaped = self._escaped, char == "\\" and not self._escaped
            self.in_string = escaped or char != '"'
            return json.dumps(char)[2 if escaped else 1 : -1] if char < " " else char
        self.in_string = char == '"'
        self._depth += (char in "{[") - (char in "}]")
        self.complete = self._depth == 0 and not self.in_string
        return char


def object_of(text: str, depth: int) -> dict[str, Any] | None:
    """The object that a text is, if it is one nested no deeper than `depth`, whose numbers and texts can be written
    again: none that is no number or too large, no lone surrogates."""
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not deeper(value, depth) else None


def deeper(value: Any, depth: int) -> bool:
    """Whether a value holds objects and arrays more than `depth` levels deep."""
    level = [value]
    for _ in range(depth):
        nested = [outer for outer in level if isinstance(outer, dict | list)]
        level = [inner for outer in nested for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return False
    return True


def _finite(digits: str) -> float:
    value = float(digits)
    if value - value != 0:
        raise ValueError(f"{digits} is no finite number")
    return value
