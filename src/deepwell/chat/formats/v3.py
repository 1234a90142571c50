"""V2.5, V3, R1 and their distilled models: turns between `<｜User｜>` and `<｜Assistant｜>`."""

from __future__ import annotations

from deepwell.chat.conversation import Conversation
from deepwell.chat.formats.base import ASSISTANT, BLANK_LINE, BOS, EOS, USER, Format, Layout


def _layout(conversation: Conversation) -> Layout:
    messages = conversation.messages
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


DEEPSEEK_V3 = Format(name="deepseek-v3", marks=(USER, ASSISTANT), layout=_layout)
