"""What every conversation must keep, whatever protocol it came by, said once.

A protocol's translation hands a `Conversation` to `settle`, with the `Fields` that name its parts in the protocol's own
words. `check` is the part of it that every prompt needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from deepwell.chat.conversation import (
    EFFORTS,
    Call,
    Conversation,
    Message,
    Result,
    Text,
    Thought,
    Tool,
    in_call_order,
)
from deepwell.chat.formats.base import Format
from deepwell.chat.reading.json_text import deeper
from deepwell.errors import RequestError, shown

_ROLES = {Thought: "assistant", Call: "assistant", Result: "tool"}
"""Who alone may have a part of a kind."""

MAX_DEPTH = 64
"""How deep a schema may be nested. Arguments that are nested deeper are laid out as the text that they are."""


class Fields:
    """Where a protocol keeps what rules speak of: here the places in DeepSeek's own, which another one overrides."""

    messages = "messages"
    tools = "tools"
    choice = "tool_choice"
    effort = "reasoning_effort"
    call_name, call_id = "function.name", "id"
    tool_name, tool_parameters = "function.name", "function.parameters"
    kinds: ClassVar[dict[type, str]] = {Thought: "reasoning_content", Call: "tool_calls", Result: "tool_call_id"}

    def message(self, index: int) -> str:
        """The message of that number."""
        return f"{self.messages}[{index}]"

    def kind(self, index: int, message: Message, kind: type) -> str:
        """Its parts of one kind."""
        return f"{self.message(index)}.{self.kinds.get(kind, 'content')}"

    def part(self, index: int, message: Message, at: int) -> str:
        """Its part at a position."""
        kind = type(message.parts[at])
        if kind in (Thought, Result):
            return self.kind(index, message, kind)
        before = (type(part) for part in message.parts[:at])
        place = sum(other is Call if kind is Call else other not in (Thought, Call) for other in before)
        return f"{self.kind(index, message, kind)}[{place}]"

    def uses_tools(self, index: int, message: Message) -> str:
        """What shows that it calls tools or answers a call."""
        return f"{self.message(index)}.{self.kinds[Call] if message.calls else 'role'}"


FIELDS = Fields()


def check(conversation: Conversation, format: Format, fields: Fields = FIELDS) -> None:
    """Raise RequestError, naming the field, for what a prompt of `format` cannot say.

    That is an empty conversation, a kind of part, an effort or tools that it does not have, thinking against its habit,
    a `prefix` that is not on a last assistant message, or a call that must come where none can.
    """
    messages = conversation.messages
    if not messages:
        raise RequestError(f"{fields.messages} must hold at least one message", fields.messages)
    for index, message in enumerate(messages):
        _check_kinds(index, message, format, fields)
        if message.prefix and (message.role != "assistant" or index + 1 < len(messages)):
            where = f"{fields.message(index)}.prefix"
            raise RequestError(f"{where} is only allowed on a last message of role assistant", where)
    check_thinking(conversation.thinking, format, "thinking", "leave thinking out")
    if conversation.effort is not None and conversation.effort not in EFFORTS:
        fault = f"{fields.effort} {shown(conversation.effort)} is unknown; allowed: {', '.join(EFFORTS)}"
        raise RequestError(fault, fields.effort)
    _check_choice(conversation, format, fields)
    for index, message in enumerate(messages):
        _check_abilities(index, message, format, fields)


def settle(conversation: Conversation, format: Format, fields: Fields = FIELDS) -> Conversation:
    """The conversation with its results in the order of their calls.

    Raises RequestError for what `check` refuses, and besides for a part in a message of the wrong role, a message
    without content, calls without a name or of one id, that nobody answers or answers twice, and tools of one name or
    nested too deeply. Arguments may be any text: a model's calls may be broken or cut off, and they are history too.
    """
    _check_tools(conversation.tools, fields)
    for index, message in enumerate(conversation.messages):
        _check_parts(index, message, fields)
        _check_calls(index, message, fields)
        _check_abilities(index, message, format, fields)  # before `check`: a missing result is the lesser fault
    _check_results(conversation.messages, fields)
    check(conversation, format, fields)
    return msgspec.structs.replace(conversation, messages=in_call_order(conversation.messages))


def check_thinking(wanted: bool | None, format: Format, field: str, advice: str) -> None:
    """RequestError, with `advice`, if thinking is asked for (or not to think) against the habit of `format`."""
    habit = {"always": True, "never": False}.get(format.thinks)
    if None not in (wanted, habit) and wanted is not habit:
        raise RequestError(f"this model {'always thinks' if habit else 'does not think'}; {advice}", field)


def _check_kinds(index: int, message: Message, format: Format, fields: Fields) -> None:
    for at, part in enumerate(message.parts):
        if type(part) not in format.parts:
            where = fields.part(index, message, at)
            allowed = ", ".join(kind.__name__.lower() for kind in format.parts)
            raise RequestError(
                f"{where}: prompt format {format.name} of this model takes no {type(part).__name__.lower()}; allowed: "
                f"{allowed}",
                where,
            )
        if isinstance(part, Result):
            _check_kinds(index, Message(message.role, part.content), format, fields)


def _check_abilities(index: int, message: Message, format: Format, fields: Fields) -> None:
    """RequestError for a message of what the format does not have, or that cannot be continued."""
    if not format.tools and (message.role == "tool" or message.calls):
        where = fields.uses_tools(index, message)
        raise RequestError(f"{where}: prompt format {format.name} of this model has no tools", where)
    if message.prefix and message.reasoning and format.thinks == "never":
        where = fields.kind(index, message, Thought)
        raise RequestError(f"{where}: this model does not think, so it has no thought to continue", where)
    if message.prefix and message.calls:
        where = f"{fields.message(index)}.prefix"
        raise RequestError(f"{where} is not allowed together with {fields.kinds[Call]}", where)


def _check_choice(conversation: Conversation, format: Format, fields: Fields) -> None:
    if conversation.tools and conversation.choice != "none" and not format.tools:
        raise RequestError(
            f"prompt format {format.name} of this model has no tools; leave {fields.tools} out", fields.tools
        )
    if not conversation.must_call:
        return
    if not conversation.tools:
        raise RequestError(f"{fields.choice} asks for a call, and {fields.tools} offers none", fields.choice)
    thinks = conversation.thinking or format.thinks == "always"
    last = conversation.messages[-1]
    beside = "together with prefix" if last.prefix else "" if last.task is None else "together with a task"
    if why := "while the model thinks" if thinks else beside:
        raise RequestError(f"{fields.choice} cannot ask for a call {why}; use auto", fields.choice)


def _check_tools(tools: Sequence[Tool], fields: Fields) -> None:
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        where = f"{fields.tools}[{index}]"
        _check_depth(tool.parameters, f"{where}.{fields.tool_parameters}")
        if tool.name in names:
            where = f"{where}.{fields.tool_name}"
            first = f"{fields.tools}[{names[tool.name]}]"
            raise RequestError(f"{where}: {first} is called {shown(tool.name)} too; names are unique", where)
        names[tool.name] = index


def _check_parts(index: int, message: Message, fields: Fields) -> None:
    """RequestError for a part that its role cannot have, or lacks; and for no part at all, not even an empty text."""
    said = message.prefix and bool(message.reasoning)
    results = 0
    for part in message.parts:
        role = _ROLES.get(type(part), message.role)
        if message.role != role:
            where = fields.kind(index, message, type(part))
            raise RequestError(f"{where} is only allowed with role {role}", where)
        results += isinstance(part, Result)
        said |= bool(part.content) if isinstance(part, Result) else not isinstance(part, Thought)
    if message.role == "tool" and results != 1:
        where = fields.kind(index, message, Result)
        fault = "is missing" if not results else "names several calls"
        raise RequestError(f"{where} {fault}; a tool message says which call it answers", where)
    if not said:
        where = fields.kind(index, message, Text)
        or_calls = f" or {fields.kinds[Call]}" if message.role == "assistant" else ""
        raise RequestError(f"{where}{or_calls} is missing; content must be a text or a list of text parts", where)


def _check_calls(index: int, message: Message, fields: Fields) -> None:
    ids: set[str] = set()
    for at, call in enumerate(message.parts):
        if not isinstance(call, Call):
            continue
        where = fields.part(index, message, at)
        if call.id in ids:
            where = f"{where}.{fields.call_id}"
            raise RequestError(f"{where} {shown(call.id)} is the id of another call in this message", where)
        ids.add(call.id)
        if not call.name:
            raise RequestError(f"{where}.{fields.call_name} is empty", f"{where}.{fields.call_name}")


def _check_depth(value: Any, where: str) -> None:
    """RequestError for JSON that is nested too deeply: formats write it by recursion, which must end early enough."""
    if deeper(value, MAX_DEPTH):
        raise RequestError(f"{where} is nested deeper than {MAX_DEPTH} levels", where)


def _check_results(messages: Sequence[Message], fields: Fields) -> None:
    """RequestError unless each call has one result, in the messages behind it."""
    calls: list[str] = []
    results: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "tool":
            answered = message.answers or ""
            if answered not in calls or answered in results:
                raise _misplaced(answered, fields.kind(index, message, Result), calls, fields)
            results.add(answered)
            continue
        if missing := [id for id in calls if id not in results]:
            raise _unanswered(f"{fields.message(index)} goes on", missing, fields.message(index))
        calls, results = [part.id for part in message.parts if isinstance(part, Call)], set()
    if missing := [id for id in calls if id not in results]:
        raise _unanswered(f"{fields.messages} end", missing, fields.messages)


def _misplaced(id: str, where: str, calls: Sequence[str], fields: Fields) -> RequestError:
    """What is wrong with a result: there are no calls, it is of none of them, or it is not the first of its call."""
    if not calls:
        follows = f"an assistant message with {fields.kinds[Call]}"
        return RequestError(f"{where}: a tool message must follow {follows}", where)
    if id not in calls:
        whose = f"is no call of the assistant message before; its calls: {_listed(calls)}"
        return RequestError(f"{where} {shown(id)} {whose}", where)
    return RequestError(f"{where} {shown(id)} has been answered already by an earlier tool message", where)


def _unanswered(what: str, calls: Sequence[str], where: str) -> RequestError:
    return RequestError(f"{what} before tool messages answered every call; missing: {_listed(calls)}", where)


def _listed(ids: Sequence[str]) -> str:
    some = ", ".join(shown(id) for id in ids[:4])
    return some if len(ids) <= 4 else f"{some} and {len(ids) - 4} more"
