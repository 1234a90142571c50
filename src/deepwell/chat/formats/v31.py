"""V3.1 and V3.1-Terminus: every turn of the assistant says whether it thinks, and calls are bare JSON.

What differs from the template in the checkpoint, on purpose: the tools are listed (the template leaves them to the
caller; the words are those of the model's card), an answer is asked for after a finished assistant turn too, and a
continued turn keeps its thought.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepwell.chat.conversation import Conversation, Message, Tool
from deepwell.chat.formats.base import ASSISTANT, BOS, EOS, USER, Format, Layout, Token
from deepwell.chat.formats.calls import (
    CALL,
    CALLS,
    END_CALL,
    END_CALLS,
    END_OUTPUT,
    END_THINK,
    OUTPUT,
    SEP,
    THINK,
    as_json,
    check_forced,
    check_roles,
    forced,
    in_call_order,
    offered,
    system_text,
)
from deepwell.chat.reading import Reader
from deepwell.chat.reading.calls import CallReader
from deepwell.weights.tokenizer import Tokenizer

NAME = "deepseek-v3.1"
ROLES = ("system", "user", "assistant", "tool")


def _layout(conversation: Conversation) -> Layout:
    check_roles(conversation, NAME, ROLES)
    check_forced(conversation, thinking=bool(conversation.thinking))
    yield BOS
    yield system_text(conversation.messages)
    yield from _tool_list(offered(conversation))
    before = ""
    for message in in_call_order(conversation.messages):
        if message.role == "user":
            yield from (USER, message.content)
        elif message.role == "tool":
            yield from (OUTPUT, message.content, END_OUTPUT)
        else:
            yield from _answer(message, before, bool(conversation.thinking))
        before = message.role
    if not conversation.messages[-1].prefix:
        yield from _opening(conversation, before)


def _answer(message: Message, before: str, thinking: bool) -> Layout:
    if before != "tool":
        yield ASSISTANT
    if message.prefix and (message.reasoning is not None or (thinking and not message.content)):
        yield from (THINK, message.reasoning or "")
        yield from (END_THINK, message.content) if message.content else ()
        return
    yield from () if before == "tool" else (END_THINK,)
    yield message.content
    if message.calls:
        yield CALLS
        for call in message.calls:
            yield from (CALL, call.name, SEP, call.arguments, END_CALL)
        yield END_CALLS
    if not message.prefix:
        yield EOS


def _opening(conversation: Conversation, before: str) -> Layout:
    """What asks for the answer. After results the model goes on without a turn of its own, and does not think."""
    if before != "tool":
        yield from (ASSISTANT, THINK if conversation.thinking else END_THINK)
    if forced(conversation):
        yield from (CALLS, CALL, *_called(conversation))


def _called(conversation: Conversation) -> tuple[str | Token, ...]:
    """What the prompt gives of a call that must come."""
    return (conversation.choice.name, SEP) if isinstance(conversation.choice, Tool) else ()


def _tool_list(tools: Sequence[Tool]) -> Layout:
    if not tools:
        return
    yield "\n\n## Tools\nYou have access to the following tools:\n"
    for tool in tools:
        yield f"\n### {tool.name}\nDescription: {tool.description or ''}\n\n"
        yield f"Parameters: {as_json(tool.parameters or {})}\n"
    yield "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    yield from (CALLS, CALL, "tool_call_name", SEP, "tool_call_arguments", END_CALL)
    yield from ("{additional_tool_calls}", END_CALLS)
    yield (
        "\n\nWhere:\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n"
    )


def _reader(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    last = conversation.messages[-1]
    if last.prefix:
        thinks = not last.content and (last.reasoning is not None or bool(conversation.thinking))
    else:
        thinks = bool(conversation.thinking) and last.role != "tool"
    called = [part if isinstance(part, str) else part.spelling for part in _called(conversation)]
    return CallReader(
        tokenizer, thinking=thinks, continues=last.prefix, called=called if forced(conversation) else None
    )


DEEPSEEK_V31 = Format(
    name=NAME, marks=(USER, ASSISTANT, THINK, END_THINK), layout=_layout, reader=_reader, thinks="choice", tools=True
)
