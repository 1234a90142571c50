"""V3.1 and V3.1-Terminus: every turn of the assistant says whether it thinks, and calls are bare JSON.

What differs from the template in the checkpoint, on purpose: the tools are listed (the template leaves them to the
caller; the words are those of the model's card), an answer is asked for after a finished assistant turn too, and a
continued turn keeps its thought.
"""

from __future__ import annotations

from deepwell.chat.conversation import Conversation, Message, Tool, in_call_order
from deepwell.chat.formats.base import ASSISTANT, BOS, CHAT_AND_REASONER, EOS, USER, CallSyntax, Format, Layout, Token
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
    check_roles,
    offered,
    system_text,
    tool_list,
)
from deepwell.chat.reading import Reader
from deepwell.chat.reading.calls import CallReader
from deepwell.weights.tokenizer import Tokenizer

NAME = "deepseek-v3.1"
_CHAINED = "directly without separators or spaces"
ROLES = ("system", "user", "assistant", "tool")


def _layout(conversation: Conversation) -> Layout:
    check_roles(conversation, NAME, ROLES)
    yield BOS
    yield system_text(conversation.messages)
    if tools := offered(conversation):
        yield from tool_list(tools, (CALL, "tool_call_name", SEP, "tool_call_arguments", END_CALL), _CHAINED)
    before = ""
    for message in in_call_order(m for m in conversation.messages if m.role != "system"):
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
    yield message.content if before == "tool" else message.content.split(END_THINK.spelling, 1)[-1]
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
    if conversation.must_call:
        yield from (CALLS, CALL, *_called(conversation))


def _called(conversation: Conversation) -> tuple[str | Token, ...]:
    """What the prompt gives of a call that must come."""
    return (conversation.choice.name, SEP) if isinstance(conversation.choice, Tool) else ()


def _reader(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    last = conversation.messages[-1]
    if last.prefix:
        thinks = not last.content and (last.reasoning is not None or bool(conversation.thinking))
    else:
        thinks = bool(conversation.thinking) and last.role != "tool"
    called = [part if isinstance(part, str) else part.spelling for part in _called(conversation)]
    return CallReader(
        tokenizer,
        thinking=thinks,
        offered=bool(offered(conversation)),
        continues=last.prefix and bool(last.reasoning or last.content),
        called=called if conversation.must_call else None,
    )


DEEPSEEK_V31 = Format(
    name=NAME,
    marks=(USER, ASSISTANT, THINK, END_THINK),
    layout=_layout,
    reader=_reader,
    thinks="choice",
    tools=True,
    calls=CallSyntax(
        begin=(CALLS,),
        head=lambda name: (CALL, name, SEP),
        tail=(END_CALL,),
        end=(END_CALLS,),
        opened=lambda conversation: (CALLS, CALL, *_called(conversation)),
    ),
    names=CHAT_AND_REASONER,
)
