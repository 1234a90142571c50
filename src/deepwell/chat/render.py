"""Conversations as token ids."""

from __future__ import annotations

from deepwell.chat.conversation import Conversation
from deepwell.chat.formats.base import Format, splice
from deepwell.chat.rules import check
from deepwell.weights.tokenizer import Tokenizer


def render_chat(conversation: Conversation, tokenizer: Tokenizer, format: Format) -> tuple[int, ...]:
    """Token ids that ask the model for the next assistant turn.

    Raises RequestError, which names the field, for what `check` refuses, what else the format cannot say (a role, an
    order of turns), or a format whose template tokens the tokenizer lacks.
    """
    check(conversation, format)
    return tuple(splice(format.layout(conversation), format.name, tokenizer))


def end_ids(format: Format, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer in `format` besides the tokenizer's own."""
    ids = (tokenizer.special(end.spelling) for end in format.ends)
    return tuple(id for id in ids if id is not None and id not in tokenizer.eos)
