"""Turns spelled in words: LLM, MoE, Math, V2, Coder-V2 and Coder V1, and any tokenizer without template tokens.

What differs from the templates in the checkpoints, on purpose: the turn that the model continues (`prefix`), which they
do not know, and no space after "Assistant:" where such a turn is still empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepwell.chat.conversation import BLANK_LINE, Conversation, Message
from deepwell.chat.formats.base import BOS, EOS, Format, Layout, Token
from deepwell.chat.formats.calls import check_roles
from deepwell.chat.reading import PlainReader, Reader
from deepwell.weights.tokenizer import Tokenizer

EOT = Token("<|EOT|>")
ROLES = ("system", "user", "assistant")

CODER_SYSTEM = (
    "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, and you "
    "only answer questions related to computer science. For politically sensitive questions, security and privacy "
    "issues, and other non-computer science questions, you will refuse to answer\n"
)
"""What opens a conversation without a system message of its own."""


def _deepseek_llm(conversation: Conversation) -> Layout:
    check_roles(conversation, "deepseek-llm", ROLES)
    yield BOS
    yield from _text_turns(conversation.messages, [EOS])


def _plain(conversation: Conversation) -> Layout:
    check_roles(conversation, "plain", ROLES)
    yield BOS
    yield from _text_turns(conversation.messages, [BLANK_LINE])


def _text_turns(messages: Sequence[Message], end_of_answer: Sequence[str | Token]) -> Layout:
    for message in messages:
        if message.role == "system":
            yield message.content + BLANK_LINE
        elif message.role == "user":
            yield f"User: {message.content}{BLANK_LINE}"
        else:
            yield "Assistant:" if message.prefix and not message.content else f"Assistant: {message.content}"
            if not message.prefix:
                yield from end_of_answer
    if not messages[-1].prefix:
        yield "Assistant:"


def _coder(conversation: Conversation) -> Layout:
    check_roles(conversation, "deepseek-coder", ROLES)
    messages = conversation.messages
    yield BOS
    if not any(message.role == "system" for message in messages):
        yield CODER_SYSTEM
    for message in messages:
        if message.role == "system":
            yield message.content
        elif message.role == "user":
            yield f"### Instruction:\n{message.content}\n"
        else:
            yield f"### Response:\n{message.content}"
            yield from () if message.prefix else ("\n", EOT, "\n")
    if not messages[-1].prefix:
        yield "### Response:\n"


def _after_colon(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    """Of an answer that begins with the blank which stands between "Assistant:" and what it says."""
    return PlainReader(first="" if conversation.messages[-1].content and conversation.messages[-1].prefix else " ")


def _before_end(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    """Of an answer that ends with the line break before `<|EOT|>`."""
    return PlainReader(last="\n")


DEEPSEEK_LLM = Format(name="deepseek-llm", marks=(BOS, EOS), layout=_deepseek_llm, reader=_after_colon)
DEEPSEEK_CODER = Format(name="deepseek-coder", marks=(EOT,), layout=_coder, reader=_before_end, ends=(EOT, EOS))
PLAIN = Format(name="plain", marks=(), layout=_plain, reader=_after_colon)
