"""Prompt formats: how a conversation is laid out for a model that was trained on that layout.

A layout is a list of texts and template tokens. Template tokens become their ids; everything between two of them is
encoded at once as plain text, so what a user writes can never turn into a template token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import msgspec

from deepwell.chat.conversation import Message
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

BLANK_LINE = "\n\n"


class Token(msgspec.Struct, frozen=True):
    """A template token by its spelling."""

    spelling: str


BOS = Token("<｜begin▁of▁sentence｜>")
EOS = Token("<｜end▁of▁sentence｜>")
"""Begin and end of a sequence. Where they are spelled otherwise, what the tokenizer names stands for them."""

USER = Token("<｜User｜>")
ASSISTANT = Token("<｜Assistant｜>")

Layout = Iterator[str | Token]


class Format(msgspec.Struct, frozen=True):
    """A prompt format; `marks` are the template tokens a tokenizer must have for it."""

    name: str
    marks: tuple[Token, ...]
    layout: Callable[[Sequence[Message]], Layout]


def render_chat(messages: Sequence[Message], tokenizer: Tokenizer, format: str | None = None) -> tuple[int, ...]:
    """Token ids that ask the model for the next assistant turn, in `format` or the one the tokenizer shows.

    Raises RequestError for an empty conversation, a `prefix` that is not on a last assistant message, an unknown
    format, or a format whose template tokens the tokenizer lacks.
    """
    if not messages:
        raise RequestError("messages must hold at least one message", "messages")
    for index, message in enumerate(messages):
        if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
            where = f"messages[{index}].prefix"
            raise RequestError(f"{where} is only allowed on a last message of role assistant", where)
    chosen = FORMATS.get(format) if format else detect(tokenizer)
    if chosen is None:
        raise RequestError(f"unknown prompt format {format!r}; supported: {', '.join(FORMATS)}")
    return tuple(_spliced(chosen.layout(messages), chosen.name, tokenizer))


def detect(tokenizer: Tokenizer) -> Format:
    """The first format whose template tokens the tokenizer has; the last one needs none."""
    return next(f for f in FORMATS.values() if all(tokenizer.special(mark.spelling) is not None for mark in f.marks))


def _deepseek_v3(messages: Sequence[Message]) -> Layout:
    yield BOS
    yield BLANK_LINE.join(message.content for message in messages if message.role == "system")
    for message in messages:
        if message.role == "user":
            yield USER
            yield message.content
        elif message.role == "assistant":
            yield ASSISTANT
            yield message.content
            if not message.prefix:
                yield EOS
    if not messages[-1].prefix:
        yield ASSISTANT


def _deepseek_llm(messages: Sequence[Message]) -> Layout:
    yield BOS
    yield from _text_turns(messages, [EOS])


def _plain(messages: Sequence[Message]) -> Layout:
    yield BOS
    yield from _text_turns(messages, [BLANK_LINE])


def _text_turns(messages: Sequence[Message], end_of_answer: Sequence[str | Token]) -> Layout:
    for message in messages:
        if message.role == "system":
            yield message.content + BLANK_LINE
        elif message.role == "user":
            yield f"User: {message.content}{BLANK_LINE}"
        else:
            yield f"Assistant: {message.content}" if message.content else "Assistant:"
            if not message.prefix:
                yield from end_of_answer
    if not messages[-1].prefix:
        yield "Assistant:"


FORMATS = {
    f.name: f
    for f in (
        Format("deepseek-v3", (USER, ASSISTANT), _deepseek_v3),
        Format("deepseek-llm", (BOS, EOS), _deepseek_llm),
        Format("plain", (), _plain),
    )
}
"""deepseek-v3: V2.5, V3, R1 and their distilled models. deepseek-llm: LLM, MoE, Math, V2, Coder-V2. plain: any
tokenizer without DeepSeek's tokens. Listed from the most to the least demanding."""


def _spliced(layout: Layout, format: str, tokenizer: Tokenizer) -> Iterator[int]:
    for is_text, parts in groupby(layout, key=lambda part: isinstance(part, str)):
        if is_text:
            text = "".join(part for part in parts if isinstance(part, str))
            yield from tokenizer.encode(text) if text else ()
        else:
            for part in parts:
                assert isinstance(part, Token)
                yield from _ids(part, format, tokenizer)


def _ids(token: Token, format: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    if token is BOS:
        return () if tokenizer.bos is None else (tokenizer.bos,)
    id = tokenizer.special(token.spelling)
    if id is None and token is EOS:
        return tokenizer.eos[:1]
    if id is None:
        raise RequestError(f"prompt format {format!r} needs the token {token.spelling}, which this model lacks")
    return (id,)
