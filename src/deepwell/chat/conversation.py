"""What a conversation is, whatever protocol it came by."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool", "developer", "latest_reminder"]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is a JSON schema, kept in the order it came in."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the model made. `arguments` is JSON text, as the model or the client wrote it."""

    name: str
    arguments: str
    id: str = ""


class _Said(msgspec.Struct, frozen=True):
    role: Role
    content: str = ""


class Message(_Said, frozen=True, kw_only=True):
    """One turn.

    `reasoning` is what the model thought before `content`; `calls` the tools it called after it. A message of role
    tool `answers` the call of that id. `prefix` marks a last assistant turn that the model continues. `task` is a quick
    instruction that V4 and V4.1 know by a token of its own ("title", "query", ...): it asks for a label of what was
    said up to this turn instead of an answer.
    """

    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    answers: str | None = None
    prefix: bool = False
    task: str | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is rendered from.

    `thinking` None leaves it to the format's own habit. `effort` is how long to think ("low", "high", ...), None the
    format's habit. `choice` says which tools the model may call: none, any it likes ("auto"), at least one
    ("required"), or the one of that `Tool`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] | Tool = "auto"
    thinking: bool | None = None
    effort: str | None = None
