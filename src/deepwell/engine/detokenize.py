"""Token bytes to text, piece by piece: whole characters only, and cut before the first stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """The growing text of one answer.

    The pieces joined are `bytes.decode("utf-8", "replace")` of all bytes, wherever the borders fall. With stop texts,
    they end before the stop text that is completed first (of several completed at one character, the longest), as if
    characters came one by one; what could still become a stop text is held back. Neither a character nor a stop text
    reaches across a `flush`.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """Add a token's bytes and return the text that is certain now. Returns nothing once `stopped`."""
        return self._cut(self._decoder.decode(data), final=False)

    def flush(self) -> str:
        """What is held, where no text follows directly; U+FFFD for a character that stayed incomplete."""
        rest = self._cut(self._decoder.decode(b"", True), final=True)
        self._held = ""
        return rest

    def _cut(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, short of all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
