"""One assistant turn as it grows: what its format's reader makes of the engine's deltas, in no protocol's words."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from deepwell.chat import Call, Message
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reader, Reasoning
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.engine.types import Delta, TokenLogprob

_LETTERS = string.ascii_letters + string.digits


class Added(msgspec.Struct, frozen=True):
    """What a delta adds to a turn: pieces, and the log-probabilities of its tokens, those of a thought apart."""

    pieces: list[Piece]
    thought: list[TokenLogprob]
    spoken: list[TokenLogprob]


class Turn:
    """Gathers an answer. `one_call` leaves out all calls after the first.

    `ended` is told of a turn that came to its own end and of which nothing was left out. `thinks` is whether the answer
    begins in a thought. `ids` are the tokens sampled so far.
    """

    def __init__(
        self,
        reader: Reader,
        meter: ThoughtMeter,
        one_call: bool = False,
        ended: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self.thinks = meter.thinking
        self.ids: list[int] = []
        self._reader, self._meter, self._one_call, self._ended = reader, meter, one_call, ended
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallBegin, list[str]]] = []
        self._skipped = self._skipping = False

    @property
    def message(self) -> Message:
        """What was said so far. An answer that thought has a reasoning, if only an empty one."""
        reasoning = "".join(self._reasoning)
        return Message.of(
            "assistant",
            "".join(self._content),
            reasoning=reasoning if reasoning or self.thinks else None,
            calls=(Call(id=begin.id, name=begin.name, arguments="".join(text)) for begin, text in self._calls),
        )

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thought, if any of it was shown."""
        return self._meter.tokens if self._reasoning else 0

    def push(self, delta: Delta) -> Added:
        """Take a delta. In what it adds, neighbours of one kind are one piece, and calls have ids."""
        self.ids += delta.token_ids
        pieces = list(self._reader.push(delta.marked))
        if delta.finish_reason is not None:
            pieces += self._reader.finish()
        shown = list(self._kept(_merged(pieces)))
        thinks = self._meter.push(delta.token_ids)
        sides: tuple[list[TokenLogprob], list[TokenLogprob]] = [], []
        for token, thought in zip(delta.logprobs, thinks, strict=bool(delta.logprobs)):
            sides[thought].append(token)
        if delta.finish_reason == "stop" and not self._skipped:
            self._ended(self)
        return Added(shown, thought=sides[True], spoken=sides[False])

    def _kept(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    self._reasoning.append(text)
                    yield piece
                case Content(text):
                    self._content.append(text)
                    yield piece
                case CallBegin(name):
                    self._skipping = self._one_call and bool(self._calls)
                    self._skipped |= self._skipping
                    if not self._skipping:
                        letters = "".join(secrets.choice(_LETTERS) for _ in range(24))
                        begin = CallBegin(name, f"call_{len(self._calls):02}_{letters}")
                        self._calls.append((begin, []))
                        yield begin
                case CallArguments(text):
                    if not self._skipping:
                        self._calls[-1][1].append(text)
                        yield piece


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
