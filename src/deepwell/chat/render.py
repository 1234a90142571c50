"""Conversations as token ids."""

from __future__ import annotations

from deepwell.chat.conversation import Conversation
from deepwell.chat.formats import detect, find_format
from deepwell.chat.formats.base import Format, splice
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer


def render_chat(conversation: Conversation, tokenizer: Tokenizer, format: str | None = None) -> tuple[int, ...]:
    """Token ids that ask the model for the next assistant turn, in `format` or the one the tokenizer shows.

    Raises RequestError for an empty conversation, a `prefix` that is not on a last assistant message, an unknown
    format, or a format whose template tokens the tokenizer lacks.
    """
    messages = conversation.messages
    if not messages:
        raise RequestError("messages must hold at least one message", "messages")
    for index, message in enumerate(messages):
        if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
            where = f"messages[{index}].prefix"
            raise RequestError(f"{where} is only allowed on a last message of role assistant", where)
    chosen = find_format(format) if format else detect(tokenizer)
    return tuple(splice(chosen.layout(conversation), chosen.name, tokenizer))


def end_ids(format: Format, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer in `format` besides the tokenizer's own."""
    ids = (tokenizer.special(end.spelling) for end in format.ends)
    return tuple(id for id in ids if id is not None and id not in tokenizer.eos)
