"""Marks in texts that a stranger's template is given, so that what they spell is told from what it writes itself."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise, product
from typing import Any

_PRIVATE = range(0xF0000, 0xFFFFE)
_IS_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")


def unused_mark(texts: Iterable[str]) -> str:
    """A mark that none of the texts holds: a private-use character or, where they hold all of these, two of them."""
    texts = list(texts)
    used = {char for text in texts for char in _IS_PRIVATE.findall(text)}
    if (mark := next((char for code in _PRIVATE if (char := chr(code)) not in used), None)) is not None:
        return mark
    pairs = {pair for text in texts for pair in pairwise(text)}
    return next(a + b for a, b in product(map(chr, _PRIVATE), repeat=2) if a != b and (a, b) not in pairs)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value, names of members too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)


class Marking:
    """Puts marks where a text spells a token, be it with white space in between that a template may take out, and where
    its begin or end could complete one that the template begins or ends."""

    def __init__(self, spellings: Sequence[str]) -> None:
        self._spellings = [re.sub(r"\s", "", spelling) for spelling in spellings]
        self._firsts = re.compile(f"[{''.join({re.escape(s[:1]) for s in self._spellings})}]") if spellings else None
        self._whole = re.compile(f"(?={any_of(self._spellings)})")
        self._forward = sorted(self._spellings)
        self._backward = sorted(spelling[::-1] for spelling in self._spellings)
        self._longest = max(map(len, self._spellings), default=0)

    def put(self, text: str, mark: str, borders: bool = True) -> str:
        """The text with its marks; without those at its `borders` if the template writes it in quotes."""
        compact = "".join(text.split())
        found = [match.start() for match in self._inside(compact)]
        begin = borders and self._could_end(compact)
        end = borders and any(_begins_one(compact[-n:], self._forward) for n in range(1, self._longest))
        if not (found or begin or end):
            return text
        visible = [at for at, char in enumerate(text) if not char.isspace()]
        marked = {visible[at] + 1 for at in found}
        marked |= {visible[0]} if begin else set()
        marked |= {visible[-1] + 1} if end else set()
        return mark.join(text[start:end] for start, end in pairwise([0, *sorted(marked), len(text)]))

    def put_all(self, value: Any, mark: str, borders: bool = True) -> Any:
        """A JSON value with marks in all of its texts."""
        if isinstance(value, str):
            return self.put(value, mark, borders)
        if isinstance(value, dict):
            members = value.items()
            return {self.put(name, mark, borders): self.put_all(part, mark, borders) for name, part in members}
        return [self.put_all(part, mark, borders) for part in value] if isinstance(value, list) else value

    def _inside(self, compact: str) -> Iterator[re.Match[str]]:
        possible = self._firsts is not None and self._firsts.search(compact)
        return self._whole.finditer(compact) if possible else iter(())

    def _could_end(self, compact: str) -> bool:
        """Whether a token that the template begins could go on with this text, to its end or to that of the text."""
        if not compact:
            return False
        within = len(compact) < self._longest and any(compact in spelling for spelling in self._spellings)
        return within or any(_begins_one(compact[:n][::-1], self._backward) for n in range(1, self._longest))


def _begins_one(text: str, ordered: Sequence[str]) -> bool:
    """Whether `text` begins one of the `ordered` texts, short of all of it."""
    after = bisect_right(ordered, text)
    return bool(text) and after < len(ordered) and ordered[after].startswith(text)


def any_of(spellings: Sequence[str]) -> str:
    """An expression for any of many texts that few first characters tell from other texts quickly."""
    by_first = {first: list(rest) for first, rest in groupby(sorted(spellings), key=lambda text: text[:1])}
    return (
        "|".join(
            f"{re.escape(first)}(?:{'|'.join(re.escape(text[1:]) for text in sorted(rest, key=len, reverse=True))})"
            for first, rest in by_first.items()
        )
        or r"(?!)"
    )
