"""V4: turns as in V3.1, tool results inside user turns, calls in DSML, and a text that says how long to think."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from deepwell.chat.conversation import BLANK_LINE, EFFORTS, Conversation, Message, Tool, in_call_order
from deepwell.chat.formats.base import ASSISTANT, BOS, CHAT_AND_REASONER, EOS, USER, Format, Layout, Token
from deepwell.chat.formats.dsml import (
    DSML,
    END_OF_THINK,
    THINK,
    V4,
    Dialect,
    call_syntax,
    calls_text,
    dsml_reader,
    in_thought,
    offered,
    open_block,
    response_format,
    template,
    thinks,
    tool_schemas,
)
from deepwell.chat.reading.dsml import DsmlReader
from deepwell.chat.strict_schemas import parameters_of
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

SYSTEM = Token("<｜System｜>")
LATEST_REMINDER = Token("<｜latest_reminder｜>")
Joined = Callable[[Sequence[str]], list[str]]
TASKS = ("action", "query", "authority", "domain", "title", "read_url")

_EFFORTS = {
    "low": "",
    "high": (
        "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
        "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root "
        "cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial "
        "scenarios.\n"
        "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
        "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
    ),
    "max": (
        "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
        "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively "
        "decompose the problem into its most fundamental components, trace every causal chain to its root, and "
        "resolve the underlying cause rather than any surface symptom.\n"
        "Do not stop reasoning until you have independently verified the solution from multiple angles and are "
        "certain that no assumption remains unchecked and no error remains undiscovered.\n\n"
    ),
}

_TOOLS = """\
## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<｜DSML｜{block}>" block like the following:

<｜DSML｜{block}>
<｜DSML｜{invoke} name="$TOOL_NAME">
<｜DSML｜{parameter} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜{parameter}>
...
</｜DSML｜{invoke}>
<｜DSML｜{invoke} name="$TOOL_NAME2">
...
</｜DSML｜{invoke}>
</｜DSML｜{block}>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> \
BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
_AFTER_SCHEMAS = (
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
)


def _layout(conversation: Conversation) -> Layout:
    check(conversation.messages)
    yield BOS
    if thinks(conversation, by_habit=True):
        yield _EFFORTS[level(conversation)]
    yield BLANK_LINE.join(m.content for m in conversation.messages if m.role == "system" and m.content)
    yield from tools_text(conversation, V4)
    yield response_format(conversation, V4)
    yield from turns(conversation, [m for m in conversation.messages if m.role != "system"], V4, _joined)


def check(messages: Sequence[Message]) -> None:
    """RequestError for a task that V4 and V4.1 do not have."""
    for index, (message, after) in enumerate(zip(messages, (*messages[1:], None), strict=True)):
        where = f"messages[{index}].task"
        if message.task is not None and message.task not in TASKS:
            raise RequestError(f"{where} is {message.task!r}; allowed: {', '.join(TASKS)}", where)
        if message.task is not None and (message.role != "user" or (after is not None and after.role != "assistant")):
            raise RequestError(f"{where} is only allowed on a user message that an answer follows", where)


def level(conversation: Conversation) -> str:
    """How long to think, if at all: low, high or max."""
    return EFFORTS[conversation.effort or "high"] or "high"


def tools_text(conversation: Conversation, dialect: Dialect) -> Layout:
    """What the model is told of its tools, after a blank line; nothing if there are none."""
    tools = offered(conversation)
    if tools:
        names = {"block": dialect.block, "invoke": dialect.invoke, "parameter": dialect.parameter}
        yield BLANK_LINE
        yield from template(_TOOLS.format_map(names))
        yield tool_schemas(tools, _described, dialect)
        yield _AFTER_SCHEMAS


def _described(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description or "", "parameters": parameters_of(tool) or {}}


def turns(conversation: Conversation, messages: Sequence[Message], dialect: Dialect, joined: Joined) -> Layout:
    """All turns and the beginning of the answer. `joined` gives the texts of adjacent user messages as parts."""
    thinking = thinks(conversation, by_habit=True)
    keeps = thinking and bool(offered(conversation))
    task = None
    for turn in _turns(in_call_order(messages)):
        first = turn[0]
        if first.role in ("user", "tool"):
            yield USER
            yield BLANK_LINE.join(_user_parts(turn, joined))
            task = turn[-1].task
            yield from _task(task, thinking)
        elif first.role == "assistant":
            if task is None:
                yield ASSISTANT
                yield from _thought(first, keeps or (thinking and first.prefix))
            yield first.content
            yield from calls_text(first.calls, dialect)
            yield from () if first.prefix else (EOS,)
            task = None
        else:
            yield LATEST_REMINDER if first.role == "latest_reminder" else SYSTEM
            yield first.content
    if not messages or not (messages[-1].prefix or task):
        yield from (ASSISTANT, THINK if thinking else END_OF_THINK)
        yield from open_block(dialect) if conversation.must_call else ()


def _turns(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Messages by turn: adjacent ones of users and tools are one, up to a task."""
    turn: list[Message] = []
    for message in messages:
        merges = message.role in ("user", "tool")
        if turn and not (merges and turn[-1].role in ("user", "tool") and turn[-1].task is None):
            yield turn
            turn = []
        turn.append(message)
    if turn:
        yield turn


def _user_parts(turn: Sequence[Message], joined: Joined) -> Iterator[str]:
    for role, run in groupby(turn, key=lambda message: message.role):
        if role == "tool":
            yield from (f"<tool_result>{result.content}</tool_result>" for result in run)
        else:
            yield from joined([message.content for message in run])


def _joined(texts: Sequence[str]) -> list[str]:
    return [BLANK_LINE.join(filter(None, texts))]


def _task(task: str | None, thinking: bool) -> Layout:
    if task == "action":
        yield from (ASSISTANT, THINK if thinking else END_OF_THINK)
    if task is not None:
        yield Token(f"<｜{task}｜>")


def _thought(message: Message, kept: bool) -> Layout:
    """The thought before an answer, left open if it is what the model continues; thoughts not kept leave their end."""
    if kept:
        yield THINK
        yield message.reasoning or ""
    if not (kept and in_thought(message)):
        yield END_OF_THINK


def reader(conversation: Conversation, tokenizer: Tokenizer) -> DsmlReader:
    """Of answers in V4 and V4.1."""
    return dsml_reader(conversation, tokenizer, thinks(conversation, by_habit=True))


DEEPSEEK_V4 = Format(
    name="deepseek-v4",
    marks=(USER, ASSISTANT, THINK, END_OF_THINK, DSML, LATEST_REMINDER),
    layout=_layout,
    reader=reader,
    thinks="choice",
    tools=True,
    calls=call_syntax(V4),
    efforts=True,
    thought_tokens=65_536,
    names=CHAT_AND_REASONER,
    model_types=("deepseek_v4",),
)
