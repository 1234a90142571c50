"""What formats with reasoning and tools share: their template tokens, and the order and the JSON of what they write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deepwell.chat.conversation import BLANK_LINE, Conversation, Message, Tool
from deepwell.chat.formats.base import Layout, Token
from deepwell.errors import RequestError


def _token(name: str) -> Token:
    return Token(f"<｜tool▁{name}｜>", may_be_text=True)


THINK, END_THINK = Token("<think>", may_be_text=True), Token("</think>", may_be_text=True)
CALLS, END_CALLS = _token("calls▁begin"), _token("calls▁end")
CALL, SEP, END_CALL = _token("call▁begin"), _token("sep"), _token("call▁end")
OUTPUTS, END_OUTPUTS = _token("outputs▁begin"), _token("outputs▁end")
OUTPUT, END_OUTPUT = _token("output▁begin"), _token("output▁end")
"""Tokens that not every tokenizer of these families has."""


def offered(conversation: Conversation) -> Sequence[Tool]:
    """The tools that the model gets to see."""
    return () if conversation.choice == "none" else conversation.tools


def check_roles(conversation: Conversation, format: str, allowed: Sequence[str]) -> None:
    """RequestError for a message of a role that the format has no words for."""
    for index, message in enumerate(conversation.messages):
        if message.role not in allowed:
            where = f"messages[{index}].role"
            raise RequestError(
                f"{where}: prompt format {format} has no role {message.role}; allowed: {', '.join(allowed)}", where
            )


def system_text(messages: Sequence[Message]) -> str:
    """All system texts, joined by blank lines; where they stood is lost."""
    return BLANK_LINE.join(message.content for message in messages if message.role == "system")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as Python writes it, with spaces after , and :, which is how the models saw it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def tool_list(tools: Sequence[Tool], call: Sequence[str | Token], chained: str) -> Layout:
    """The tools in the words of V3.1's card; `call` shows how a call is written, `chained` says how several are."""
    yield "\n\n## Tools\nYou have access to the following tools:\n"
    for tool in tools:
        yield f"\n### {tool.name}\nDescription: {tool.description or ''}\n\n"
        yield f"Parameters: {as_json(tool.parameters or {})}\n"
    yield "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    yield from (CALLS, *call, "{additional_tool_calls}", END_CALLS)
    yield (
        "\n\nWhere:\n- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        f"- For multiple tool calls, chain them {chained}\n"
    )
