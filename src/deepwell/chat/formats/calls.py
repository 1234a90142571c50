"""What formats with reasoning and tools share: their template tokens, and the order and the JSON of what they write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from deepwell.chat.conversation import Conversation, Message, Tool
from deepwell.chat.formats.base import Token
from deepwell.errors import RequestError

THINK, END_THINK = Token("<think>", optional=True), Token("</think>", optional=True)
CALLS, END_CALLS = Token("<｜tool▁calls▁begin｜>", optional=True), Token("<｜tool▁calls▁end｜>", optional=True)
CALL, END_CALL = Token("<｜tool▁call▁begin｜>", optional=True), Token("<｜tool▁call▁end｜>", optional=True)
SEP = Token("<｜tool▁sep｜>", optional=True)
OUTPUTS, END_OUTPUTS = Token("<｜tool▁outputs▁begin｜>", optional=True), Token("<｜tool▁outputs▁end｜>", optional=True)
OUTPUT, END_OUTPUT = Token("<｜tool▁output▁begin｜>", optional=True), Token("<｜tool▁output▁end｜>", optional=True)


def offered(conversation: Conversation) -> Sequence[Tool]:
    """The tools that the model gets to see."""
    return () if conversation.choice == "none" else conversation.tools


def forced(conversation: Conversation) -> bool:
    """Whether the answer must be a call, which the prompt then opens."""
    return bool(conversation.tools) and conversation.choice not in ("none", "auto")


def check_forced(conversation: Conversation, thinking: bool) -> None:
    """RequestError if a call is asked for where the prompt cannot open one."""
    if forced(conversation) and (thinking or conversation.messages[-1].prefix):
        why = "while the model thinks" if thinking else "together with prefix"
        raise RequestError(f"tool_choice cannot ask for a call {why}; use auto", "tool_choice")


def check_roles(conversation: Conversation, format: str, allowed: Sequence[str]) -> None:
    """RequestError for a message of a role that the format has no words for."""
    for index, message in enumerate(conversation.messages):
        if message.role not in allowed:
            where = f"messages[{index}].role"
            raise RequestError(
                f"{where}: prompt format {format} has no role {message.role}; allowed: {', '.join(allowed)}", where
            )


def refuse_tools(conversation: Conversation, format: str) -> None:
    """RequestError for tools, calls and results, in formats that have none."""
    if offered(conversation):
        raise RequestError(f"prompt format {format} of this model has no tools; leave tools out", "tools")
    for index, message in enumerate(conversation.messages):
        if message.calls:
            where = f"messages[{index}].tool_calls"
            raise RequestError(f"{where}: prompt format {format} of this model has no tools", where)


def system_text(messages: Sequence[Message]) -> str:
    """All system texts, joined by blank lines; where they stood is lost."""
    return "\n\n".join(message.content for message in messages if message.role == "system")


def in_call_order(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages without system ones, each run of results sorted into the order of the calls that they answer.

    A result of an unknown call comes last.
    """
    order: dict[str | None, int] = {}
    results: list[Message] = []
    for message in messages:
        if message.role == "tool":
            results.append(message)
        elif message.role != "system":
            yield from sorted(results, key=lambda result: order.get(result.answers, len(order)))
            results = []
            order = {call.id: index for index, call in enumerate(message.calls)}
            yield message
    yield from sorted(results, key=lambda result: order.get(result.answers, len(order)))


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as Python writes it, with spaces after , and :, which is how the models saw it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
