"""A prompt format with all there is to serve: thoughts, calls, a call opened by the prompt, and an end of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from deepwell.chat import Conversation, Tool
from deepwell.chat.formats.base import ASSISTANT, BOS, EOS, USER, Format, Layout, Token
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning, Thoughts
from deepwell.engine.types import Marked
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

T = tiny_tokenizer()

THINK, END_THINK, EOT = Token("<think>"), Token("</think>"), Token("<|EOT|>")
CALL, SEP, END_CALL = Token("<｜tool▁call▁begin｜>"), Token("<｜tool▁sep｜>"), Token("<｜tool▁call▁end｜>")
RESULT, END_RESULT = Token("<｜tool▁output▁begin｜>"), Token("<｜tool▁output▁end｜>")


def _layout(conversation: Conversation) -> Layout:
    yield BOS
    offered = conversation.tools if conversation.choice != "none" else ()
    yield "".join(f"{tool.name}: {msgspec.json.encode(tool.parameters).decode()}\n" for tool in offered)
    for message in conversation.messages:
        if message.role in ("system", "developer"):
            yield message.content
        elif message.role == "user":
            yield from (USER, message.content)
        elif message.role == "tool":
            yield from (RESULT, message.content, END_RESULT)
        else:
            thinks = message.reasoning is not None
            yield from (ASSISTANT, THINK, message.reasoning or "") if thinks else (ASSISTANT,)
            if message.prefix and thinks and not message.content:
                continue
            yield from (END_THINK, message.content)
            for call in message.calls:
                yield from (CALL, call.name, SEP, call.arguments, END_CALL)
            if not message.prefix:
                yield EOS
    if not conversation.messages[-1].prefix:
        yield from (ASSISTANT, THINK if conversation.thinking else END_THINK)
    if conversation.choice == "required":
        yield CALL
    elif isinstance(conversation.choice, Tool):
        yield from (CALL, conversation.choice.name, SEP)


class _Reader:
    def __init__(self, conversation: Conversation, tokenizer: Tokenizer) -> None:
        self._marks = {tokenizer.special(mark.spelling): mark for mark in (END_THINK, CALL, SEP, END_CALL)}
        self._name = ""
        self._begun: list[Piece] = []
        last = conversation.messages[-1]
        opened = last.prefix and last.reasoning is not None and not last.content
        self._state = "thought" if conversation.thinking or opened else "content"
        self.thoughts = Thoughts(self._state == "thought", ends=(END_THINK.spelling,))
        if conversation.choice == "required":
            self._state = "name"
        elif isinstance(conversation.choice, Tool):
            self._state, self._begun = "arguments", [CallBegin(conversation.choice.name)]

    def push(self, marked: Iterable[Marked]) -> Iterator[Piece]:
        yield from self._begun
        self._begun = []
        for part in marked:
            if isinstance(part, str):
                yield from self._text(part)
            elif (mark := self._marks.get(part)) is not None:
                if mark is SEP and self._state == "name":
                    yield CallBegin(self._name)
                    self._state = "arguments"
                else:
                    self._state = "name" if mark is CALL else "content"
                self._name = ""

    def _text(self, text: str) -> Iterator[Piece]:
        match self._state:
            case "thought":
                yield Reasoning(text)
            case "name":
                self._name += text
            case "arguments":
                yield CallArguments(text)
            case _:
                yield Content(text)

    def finish(self) -> Iterator[Piece]:
        if self._state == "name":
            yield Content(CALL.spelling + self._name)


TOY = Format(
    name="toy", marks=(THINK,), layout=_layout, reader=_Reader, ends=(EOT,), thinks="choice", tools=True
)  # fmt: skip


def ids(*parts: str | Token) -> list[int]:
    """Sampled tokens: texts and special tokens."""
    out: list[int] = []
    for part in parts:
        if isinstance(part, str):
            out += T.encode(part)
        else:
            special = T.special(part.spelling)
            assert special is not None
            out.append(special)
    return out


def called(name: str, arguments: str) -> tuple[str | Token, ...]:
    """What a model samples to call a tool."""
    return (CALL, name, SEP, arguments, END_CALL)
