"""One assistant turn as it grows: what the reader of its format makes of the engine's deltas."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Iterator, Sequence

from deepwell.chat import Call, Message
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reader, Reasoning
from deepwell.chat.thinking import ThoughtMeter
from deepwell.engine.types import Delta
from deepwell.server.replies import CallDelta, ChatDelta, FunctionDelta

_LETTERS = string.ascii_letters + string.digits


class Turn:
    """Gathers an answer. `one_call` leaves out all calls after the first.

    `thinks` is whether the answer begins in a thought. `ids` are the tokens sampled so far; `whole` whether nothing
    of them was left out.
    """

    def __init__(self, reader: Reader, meter: ThoughtMeter, one_call: bool = False) -> None:
        self.thinks = meter.thinking
        self.ids: list[int] = []
        self.whole = True
        self._reader, self._meter, self._one_call = reader, meter, one_call
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._skipping = False

    @property
    def message(self) -> Message:
        """What was said so far. An answer that thought has a reasoning, if only an empty one."""
        reasoning = "".join(self._reasoning)
        return Message.of(
            "assistant",
            "".join(self._content),
            reasoning=reasoning if reasoning or self.thinks else None,
            calls=tuple(Call(id=id, name=name, arguments="".join(text)) for id, name, text in self._calls),
        )

    @property
    def calls(self) -> bool:
        return bool(self._calls)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thought, if any of it was shown."""
        return self._meter.tokens if self._reasoning else 0

    def push(self, delta: Delta) -> tuple[list[ChatDelta], list[bool]]:
        """Take a delta: what it adds to the answer, and for each of its tokens whether it belongs to the thought."""
        self.ids += delta.token_ids
        pieces = list(self._reader.push(delta.marked))
        if delta.finish_reason is not None:
            pieces += self._reader.finish()
        return list(self._worded(_merged(pieces))), self._meter.push(delta.token_ids)

    def _worded(self, pieces: Iterable[Piece]) -> Iterator[ChatDelta]:
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    self._reasoning.append(text)
                    yield ChatDelta(content=None, reasoning_content=text)
                case Content(text):
                    self._content.append(text)
                    yield ChatDelta(content=text, reasoning_content=None) if self._thought else ChatDelta(content=text)
                case CallBegin(name):
                    self._skipping = self._one_call and self.calls
                    self.whole = self.whole and not self._skipping
                    if not self._skipping:
                        yield self._begin(name)
                case CallArguments(text):
                    if not self._skipping:
                        self._calls[-1][2].append(text)
                        function = FunctionDelta(arguments=text)
                        yield ChatDelta(tool_calls=[CallDelta(index=len(self._calls) - 1, function=function)])

    @property
    def _thought(self) -> bool:
        return self.thinks or bool(self._reasoning)

    def _begin(self, name: str) -> ChatDelta:
        index = len(self._calls)
        id = f"call_{index:02}_" + "".join(secrets.choice(_LETTERS) for _ in range(24))
        self._calls.append((id, name, []))
        function = FunctionDelta(name=name, arguments="")
        return ChatDelta(tool_calls=[CallDelta(index=index, id=id, type="function", function=function)])


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind as one; empty ones left out."""
    held: Piece | None = None
    for piece in pieces:
        if isinstance(piece, CallBegin):
            if held is not None:
                yield held
            yield piece
            held = None
        elif held is not None and type(held) is type(piece):
            held = _added(held, piece.text)
        elif piece.text:
            if held is not None:
                yield held
            held = piece
    if held is not None:
        yield held


def _added(piece: Piece, text: str) -> Piece:
    assert not isinstance(piece, CallBegin)
    return type(piece)(piece.text + text)
