"""V4.1: V4 with a token before system texts, which stay where they were said, and effort as a number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from deepwell.chat.conversation import Conversation, Message
from deepwell.chat.formats.base import ASSISTANT, BOS, CHAT_AND_REASONER, USER, Format, Layout
from deepwell.chat.formats.dsml import DSML, END_OF_THINK, THINK, V41, call_syntax, offered, response_format, thinks
from deepwell.chat.formats.v4 import LATEST_REMINDER, SYSTEM, check, level, reader, tools_text, turns
from deepwell.errors import RequestError

_EFFORTS = {"low": 50, "high": 75, "max": 100}


def _layout(conversation: Conversation) -> Layout:
    check(conversation.messages)
    messages = [m for m in conversation.messages if m.role != "system" or m.content]
    _check_reminders(messages)
    opening = messages[0].content if messages and messages[0].role == "system" else ""
    efforts = thinks(conversation, by_habit=True) and bool(messages or offered(conversation))
    yield BOS
    if opening or efforts or offered(conversation) or response_format(conversation, V41):
        yield SYSTEM
    if efforts:
        number = _EFFORTS[level(conversation)]
        yield f"Reasoning Effort: {number} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
    yield opening
    yield from tools_text(conversation, V41)
    yield response_format(conversation, V41)
    yield from turns(conversation, messages[1:] if opening else messages, V41, list)


def _check_reminders(messages: Sequence[Message]) -> None:
    """V4.1 knows one reminder at a time: DeepSeek's own renderer leaves out all but the first."""
    if any(one.role == other.role == "latest_reminder" for one, other in pairwise(messages)):
        raise RequestError("messages: this model takes one latest_reminder at a time; join their texts", "messages")


DEEPSEEK_V41 = Format(
    name="deepseek-v4.1",
    marks=(USER, ASSISTANT, THINK, END_OF_THINK, DSML, LATEST_REMINDER, SYSTEM),
    layout=_layout,
    reader=reader,
    thinks="choice",
    tools=True,
    calls=call_syntax(V41),
    efforts=True,
    namespaces=True,
    interleaves=True,
    thought_tokens=65_536,
    names=CHAT_AND_REASONER,
    model_types=("deepseek_v41",),
)
