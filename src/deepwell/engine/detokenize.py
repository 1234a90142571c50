"""Token bytes to text, piece by piece: whole characters only, and cut before the first stop text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from deepwell.weights.added_tokens import Marked, Tag


class Detokenizer:
    """The growing text of one answer, with the added tokens that stand in it.

    The pieces joined are `bytes.decode("utf-8", "replace")` of all bytes, wherever the borders fall. With stop texts,
    they end before the stop text that is completed first (of several completed at one character, the longest), as if
    characters came one by one; what could still become a stop text is held back. A stop text may spell added tokens:
    tags as the text that they are, special tokens whole or not at all, since nobody sees a part of them. No character
    reaches across an added token.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._text = ""
        """What is held, its added tokens spelled out."""
        self._tokens: list[tuple[int, int, Marked]] = []
        """Begin, end and mark of each added token in it."""
        self.stopped: str | None = None
        """The stop text that was found."""

    def push(self, data: bytes) -> list[Marked]:
        """Add a token's bytes and return what is certain now. Returns nothing once `stopped`."""
        self._text += self._decoder.decode(data)
        return self._cut(final=False)

    def mark(self, mark: Marked, spelling: str) -> list[Marked]:
        """Add an added token, which is spelled so, in the same way."""
        self._text += self._decoder.decode(b"", True)
        begin = len(self._text)
        self._text += spelling
        self._tokens.append((begin, len(self._text), mark))
        return self._cut(final=False)

    def flush(self) -> list[Marked]:
        """What is held, where nothing follows; U+FFFD for a character that stayed incomplete."""
        self._text += self._decoder.decode(b"", True)
        return self._cut(final=True)

    def _cut(self, final: bool) -> list[Marked]:
        if self.stopped is not None:
            return []
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._find(stop)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            return list(self._given(at))
        held = 0 if final else max(map(self._begun, self._stop), default=0)
        kept = len(self._text) - held
        # a tag is given whole
        kept = next((begin for begin, end, _ in self._tokens if begin < kept < end), kept)
        given = list(self._given(kept))
        self._text = self._text[kept:]
        self._tokens = [(begin - kept, end - kept, mark) for begin, end, mark in self._tokens if begin >= kept]
        return given

    def _given(self, until: int) -> Iterator[Marked]:
        """The text up to a place, parted by its added tokens."""
        at = 0
        for begin, end, mark in self._tokens:
            if end > until:
                break
            if begin > at:
                yield self._text[at:begin]
            yield mark
            at = end
        if until > at:
            yield self._text[at:until]

    def _find(self, stop: str) -> int:
        """Where `stop` is in the text for the first time, -1 if it is not."""
        at = self._text.find(stop)
        while at >= 0 and not (self._is_border(at) and self._is_border(at + len(stop))):
            at = self._text.find(stop, at + 1)
        return at

    def _begun(self, stop: str) -> int:
        """Length of the longest end of the text that begins `stop`, short of all of it."""
        text = self._text
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]) and self._is_border(len(text) - length):
                return length
        return 0

    def _is_border(self, at: int) -> bool:
        """Whether a stop text may begin or end at a place: anywhere but inside of a special token."""
        return not any(begin < at < end and not isinstance(mark, Tag) for begin, end, mark in self._tokens)
