"""The input of a custom tool out of the arguments of a function of one string, while they come.

Arguments that are no such object are the input as they are: a model that forgot the rules is not cut short.
"""

from __future__ import annotations

import json
import re

_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_WRITTEN = '{"input":"'
_PIECE = re.compile(
    r'[^"\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|\\["\\/bfnrt]'
)
"""Of a JSON string: letters as they are, a pair of surrogates, a letter by its number, an escape."""
_BEGUN = re.compile(r"\\(u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?)?")
"""The beginning of a piece, of which more must come."""
_LONE = re.compile(r"\\u[0-9a-fA-F]{4}")


class CustomInput:
    """Takes the text of arguments, and gives what it adds to the input."""

    def __init__(self) -> None:
        self._held = ""
        self._is_string: bool | None = None
        """None until enough has come to tell."""
        self._over = False

    def push(self, text: str) -> str:
        self._held += text
        if self._is_string is None:
            self._begin()
        if self._is_string is None:
            return ""
        return self._decoded() if self._is_string else self._rest()

    def finish(self) -> str:
        """What is held when no more comes; half an escape is nothing."""
        return "" if self._is_string else self._rest()

    def _begin(self) -> None:
        head = _HEAD.match(self._held)
        if head is not None:
            self._held = self._held[head.end() :]
            self._is_string = True
        elif not _WRITTEN.startswith(compact := "".join(self._held.split())) or len(compact) == len(_WRITTEN):
            self._is_string = False

    def _rest(self) -> str:
        text, self._held = self._held, ""
        return text

    def _decoded(self) -> str:
        found: list[str] = []
        at = 0
        while not self._over and at < len(self._held):
            if piece := _PIECE.match(self._held, at):
                found.append(json.loads(f'"{piece[0]}"', strict=False))
                at = piece.end()
            elif self._held[at] == '"':
                self._over = True
            elif _BEGUN.fullmatch(self._held, at):
                break
            elif lone := _LONE.match(self._held, at):  # half a pair of surrogates is no letter
                found.append("�")
                at = lone.end()
            else:
                found.append(self._held[at])
                at += 1
        self._held = "" if self._over else self._held[at:]
        return "".join(found)
