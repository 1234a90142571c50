"""Turns spelled in words: LLM, MoE, Math, V2 and Coder-V2, and any tokenizer without template tokens."""

from __future__ import annotations

from collections.abc import Sequence

from deepwell.chat.conversation import Conversation
from deepwell.chat.formats.base import BLANK_LINE, BOS, EOS, Format, Layout, Token


def _deepseek_llm(conversation: Conversation) -> Layout:
    yield BOS
    yield from _text_turns(conversation, [EOS])


def _plain(conversation: Conversation) -> Layout:
    yield BOS
    yield from _text_turns(conversation, [BLANK_LINE])


def _text_turns(conversation: Conversation, end_of_answer: Sequence[str | Token]) -> Layout:
    messages = conversation.messages
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


DEEPSEEK_LLM = Format(name="deepseek-llm", marks=(BOS, EOS), layout=_deepseek_llm)
PLAIN = Format(name="plain", marks=(), layout=_plain)
