"""V3.2: turns as in V3.1, calls in DSML, tool results between turns, and a role of developers.

What differs from DeepSeek's encoder, on purpose: a system text behind a question or behind results, which the encoder
writes into the answer that it has opened already, stands before what opens the answer, after a blank line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from deepwell.chat.conversation import BLANK_LINE, Conversation, Message, Tool, in_call_order
from deepwell.chat.formats.base import ASSISTANT, BOS, CHAT_AND_REASONER, EOS, USER, Format, Layout, Token
from deepwell.chat.formats.dsml import (
    DSML,
    END_OF_THINK,
    THINK,
    V32,
    call_syntax,
    calls_text,
    dsml_reader,
    in_thought,
    offered,
    open_block,
    refuse_role,
    response_format,
    template,
    thinks,
    tool_schemas,
)
from deepwell.chat.reading import Reader
from deepwell.chat.strict_schemas import parameters_of
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

_TOOLS = """\
## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the \
user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:
<｜DSML｜function_calls>
...
</｜DSML｜function_calls>
<function_results>
...
</function_results>
<think>...thinking about results</think>
Here are the functions available in JSONSchema format:
<functions>
"""
_FIELDS = ("name", "description", "parameters", "strict")
_AFTER_SCHEMAS = "\n</functions>\n"


def _layout(conversation: Conversation) -> Layout:
    messages = in_call_order(conversation.messages)
    _check(messages)
    thinking = thinks(conversation, by_habit=False)
    asked = max((index for index, m in enumerate(messages) if m.role in ("user", "developer")), default=-1)
    header: Token | None = None
    yield BOS
    if messages[0].role != "system":
        yield from _tools_text(conversation)
    for index, turn in _turns(messages):
        message, reminders = turn[0], [m.content for m in turn if m.role == "system" and m.content]
        begin = THINK if thinking and index >= asked else END_OF_THINK
        if message.role == "system":
            yield message.content
            yield from _tools_text(conversation) if index == 0 else ()
        elif message.role == "assistant":
            yield from () if header else (ASSISTANT, begin)
            if begin is THINK:
                yield message.reasoning or ""
                yield from () if in_thought(message) else (END_OF_THINK,)
            yield message.content
            yield from calls_text(message.calls, V32)
            yield from () if message.prefix else (EOS,)
            header = None
        else:
            yield from _results(turn, reminders) if message.role == "tool" else _asked(message, reminders)
            yield begin
            header = begin
    if not messages[-1].prefix:
        yield from () if header else (ASSISTANT, THINK if thinking else END_OF_THINK)
        yield from open_block(V32) if conversation.must_call else ()


def _check(messages: Sequence[Message]) -> None:
    """RequestError for what V3.2 cannot say."""
    refuse_role(messages, "latest_reminder", "system or user")
    for index, message in enumerate(messages):
        if message.task is not None:
            raise RequestError(f"messages[{index}].task: this model has no tasks", f"messages[{index}].task")


def _turns(messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
    """Messages by turn, with the index of the turn's last one: adjacent tool results are one turn, and the system texts
    behind a question or behind results belong to it."""
    turn: list[Message] = []
    for index, message in enumerate(messages):
        turn.append(message)
        after = messages[index + 1].role if index + 1 < len(messages) else None
        results = message.role == after == "tool"
        if not (results or (after == "system" and turn[0].role not in ("system", "assistant"))):
            yield index, turn
            turn = []


def _asked(message: Message, reminders: Sequence[str]) -> Layout:
    yield USER
    question = f"\n\n# The user's message is: {message.content}" if message.role == "developer" else message.content
    yield BLANK_LINE.join((question, *reminders))
    yield ASSISTANT


def _results(turn: Sequence[Message], reminders: Sequence[str]) -> Layout:
    yield "\n\n<function_results>"
    yield from (f"\n<result>{result.content}</result>" for result in turn if result.role == "tool")
    yield "\n</function_results>\n\n"
    yield "".join(reminder + BLANK_LINE for reminder in reminders)


def _tools_text(conversation: Conversation) -> Layout:
    """What the model is told of its tools, and of what its answer must be."""
    tools = offered(conversation)
    if tools:
        yield BLANK_LINE
        yield from template(_TOOLS)
        yield tool_schemas(tools, _described, V32)
        yield _AFTER_SCHEMAS
    yield response_format(conversation, V32)


def _described(tool: Tool) -> dict[str, Any]:
    shown = msgspec.structs.replace(tool, parameters=parameters_of(tool))
    return {name: value for name in _FIELDS if (value := getattr(shown, name)) is not None}


def _reader(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    return dsml_reader(conversation, tokenizer, thinks(conversation, by_habit=False))


DEEPSEEK_V32 = Format(
    name="deepseek-v3.2",
    marks=(USER, ASSISTANT, THINK, END_OF_THINK, DSML),
    layout=_layout,
    reader=_reader,
    thinks="choice",
    tools=True,
    calls=call_syntax(V32),
    developers=True,
    names=CHAT_AND_REASONER,
    model_types=("deepseek_v32",),
)
