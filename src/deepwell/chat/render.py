"""Conversations as token ids."""

from __future__ import annotations

from deepwell.chat.conversation import Conversation
from deepwell.chat.formats import detect, find_format
from deepwell.chat.formats.base import Format, splice
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer


def render_chat(
    conversation: Conversation, tokenizer: Tokenizer, format: Format | str | None = None
) -> tuple[int, ...]:
    """Token ids that ask the model for the next assistant turn, in `format` or the one the tokenizer shows.

    Raises RequestError, which names the field, for an empty conversation, a `prefix` that is not on a last assistant
    message, what the format cannot say (tools, thinking, a role), an unknown format, or a format whose template tokens
    the tokenizer lacks.
    """
    if isinstance(format, str):
        format = find_format(format, tokenizer)
    chosen = format or detect(tokenizer)
    _check_messages(conversation)
    _check_wishes(conversation, chosen)
    return tuple(splice(chosen.layout(conversation), chosen.name, tokenizer))


def end_ids(format: Format, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer in `format` besides the tokenizer's own."""
    ids = (tokenizer.special(end.spelling) for end in format.ends)
    return tuple(id for id in ids if id is not None and id not in tokenizer.eos)


def _check_messages(conversation: Conversation) -> None:
    messages = conversation.messages
    if not messages:
        raise RequestError("messages must hold at least one message", "messages")
    for index, message in enumerate(messages):
        if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
            where = f"messages[{index}].prefix"
            raise RequestError(f"{where} is only allowed on a last message of role assistant", where)
        if message.prefix and message.calls:
            where = f"messages[{index}].prefix"
            raise RequestError(f"{where} is not allowed together with tool_calls", where)


def _check_wishes(conversation: Conversation, format: Format) -> None:
    """RequestError for thinking, tools and calls where the format has none."""
    habits = {"always": True, "never": False}
    habit = habits.get(format.thinks, conversation.thinking)
    if conversation.thinking is not None and conversation.thinking is not habit:
        fact = "always thinks" if habit else "does not think"
        raise RequestError(f"a model of prompt format {format.name} {fact}; leave thinking out", "thinking")
    if format.tools:
        return
    if conversation.tools and conversation.choice != "none":
        raise RequestError(f"prompt format {format.name} of this model has no tools; leave tools out", "tools")
    for index, message in enumerate(conversation.messages):
        if message.calls or message.role == "tool":
            where = f"messages[{index}].{'tool_calls' if message.calls else 'role'}"
            raise RequestError(f"{where}: prompt format {format.name} of this model has no tools", where)
