"""V2.5, V3, R1 and the distilled models: turns between `<｜User｜>` and `<｜Assistant｜>`, calls as fenced JSON.

What differs from the templates in the checkpoints, on purpose (the later templates, of V3-0324 and R1-0528, repaired
most of it):
- all system texts are kept, not only the last one;
- every list of calls ends with its token and the end of the turn (the first templates forget both after a single call,
  and repeat both after every further one), and a turn may hold content before its calls;
- every list of results has its own begin and end;
- the tools are listed (no template does); the words are those of V2.5's card, and for V3 and R1 those that V3.1's card
  and R1's paper use, around V3's own way to write a call. They could not be checked against a template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from deepwell.chat.conversation import Conversation, Message, Tool, in_call_order
from deepwell.chat.formats.base import ASSISTANT, BOS, EOS, USER, CallSyntax, Format, Layout, Token
from deepwell.chat.formats.calls import (
    CALL,
    CALLS,
    END_CALL,
    END_CALLS,
    END_OUTPUT,
    END_OUTPUTS,
    END_THINK,
    OUTPUT,
    OUTPUTS,
    SEP,
    THINK,
    as_json,
    check_roles,
    offered,
    system_text,
    tool_list,
)
from deepwell.chat.reading import Reader
from deepwell.chat.reading.calls import CallReader
from deepwell.weights.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


class _Style(msgspec.Struct, frozen=True):
    """What tells the formats of this family apart.

    `thinks` is whether the model does, `opens` whether its prompt opens the thought for it.
    """

    name: str
    tool_list: Callable[[Sequence[Tool]], Layout]
    thinks: bool = False
    opens: bool = False


def _layout(style: _Style, conversation: Conversation) -> Layout:
    check_roles(conversation, style.name, ROLES)
    yield BOS
    yield system_text(conversation.messages)
    if tools := offered(conversation):
        yield from style.tool_list(tools)
    before = ""
    for message in in_call_order(m for m in conversation.messages if m.role != "system"):
        if before == "tool" != message.role:
            yield END_OUTPUTS
        if message.role == "user":
            yield from (USER, message.content)
        elif message.role == "tool":
            yield "\n" if before == "tool" else OUTPUTS
            yield from (OUTPUT, message.content, END_OUTPUT)
        else:
            yield from () if before == "tool" else (ASSISTANT,)
            yield from _answer(style, message)
        before = message.role
    if before == "tool":
        yield END_OUTPUTS
    if not conversation.messages[-1].prefix:
        yield from _opening(style, conversation, before)


def _answer(style: _Style, message: Message) -> Layout:
    if message.prefix:
        yield from _continued(style, message)
        return
    yield message.content.split(END_THINK.spelling)[-1] if style.thinks else message.content
    for index, call in enumerate(message.calls):
        yield "\n" if index else CALLS
        yield from (CALL, "function", SEP, f"{call.name}\n```json\n{call.arguments}\n```", END_CALL)
    yield from (END_CALLS, EOS) if message.calls else (EOS,)


def _continued(style: _Style, message: Message) -> Layout:
    if style.thinks and (message.reasoning is not None or (style.opens and not message.content)):
        yield from (THINK, "\n", message.reasoning or "")
        yield from ("\n", END_THINK, "\n\n") if message.content else ()
    yield message.content


def _opening(style: _Style, conversation: Conversation, before: str) -> Layout:
    """What asks for the answer. After results the model goes on without a turn of its own."""
    if before != "tool":
        yield ASSISTANT
        yield from (THINK, "\n") if style.opens else ()
    if conversation.must_call:
        yield from (CALLS, CALL, *_called(conversation))


def _called(conversation: Conversation) -> tuple[str | Token, ...]:
    """What the prompt gives of a call that must come."""
    named = (f"{conversation.choice.name}\n```json\n",) if isinstance(conversation.choice, Tool) else ()
    return ("function", SEP, *named)


def _reader(style: _Style, conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    last = conversation.messages[-1]
    if last.prefix:
        thinking = style.thinks and not last.content and (style.opens or last.reasoning is not None)
    else:
        thinking = style.opens and last.role != "tool"
    called = [part if isinstance(part, str) else part.spelling for part in _called(conversation)]
    return CallReader(
        tokenizer,
        thinking=thinking,
        thinks=style.thinks,
        offered=bool(offered(conversation)),
        continues=last.prefix and bool(last.reasoning or last.content),
        called=called if conversation.must_call else None,
    )


def _functions(tools: Sequence[Tool]) -> Layout:
    """The tools as V2.5's card lists them."""
    yield "\n\n## Tools\n\n### Function\n\nYou have the following functions available:\n"
    for tool in tools:
        function = {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or {}}
        yield f"\n- `{tool.name}`:\n```json\n{as_json(function, indent=4)}\n```\n"


def _tools(tools: Sequence[Tool]) -> Layout:
    call = (CALL, "function", SEP, "tool_call_name\n```json\ntool_call_arguments\n```", END_CALL)
    return tool_list(tools, call, "with a newline as separator")


def _format(style: _Style) -> Format:
    return Format(
        name=style.name,
        marks=(USER, ASSISTANT),
        layout=partial(_layout, style),
        reader=partial(_reader, style),
        thinks="always" if style.thinks else "never",
        thought_tokens=32_768 if style.thinks else None,
        names={"deepseek-reasoner": True} if style.thinks else {"deepseek-chat": False},
        tools=True,
        calls=CallSyntax(
            begin=(CALLS,),
            head=lambda name: (CALL, "function", SEP, f"{name}\n```json\n"),
            tail=("\n```", END_CALL),
            between=("\n",),
            end=(END_CALLS,),
            opened=lambda conversation: (CALLS, CALL, *_called(conversation)),
        ),
    )


DEEPSEEK_V25 = _format(_Style("deepseek-v2.5", _functions))
DEEPSEEK_V3 = _format(_Style("deepseek-v3", _tools))
DEEPSEEK_R1 = _format(_Style("deepseek-r1", _tools, thinks=True, opens=True))
DEEPSEEK_R1_0528 = _format(_Style("deepseek-r1-0528", _tools, thinks=True))
