"""From the body of a Messages request to a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import msgspec

from deepwell.chat import Call, Conversation, Message, Result, Role, Structure, Text, Thought, Tool
from deepwell.chat.conversation import BLANK_LINE, Part
from deepwell.chat.formats.base import Format
from deepwell.chat.formats.calls import as_json
from deepwell.chat.reading.json_text import object_of
from deepwell.chat.rules import MAX_DEPTH, Fields, settle
from deepwell.errors import RequestError, shown
from deepwell.server.anthropic.protocol import Block, Choice, CountRequest, Described, OutputConfig, OutputFormat, Said
from deepwell.server.conversations import chosen_tool, given, thinking_of, thinking_said
from deepwell.server.unsupported import check_supported

BILLING = "x-anthropic-billing-header:"
"""How a text for Anthropic's own accounts begins, which Claude Code puts before its system texts."""
BROKEN_INPUT = "INVALID_JSON"
"""Under which arguments stand that are no JSON object: an input must be one. The name is Anthropic's."""


class MessageFields(Fields):
    """Where things are in a body. Its messages are not ours: system texts lie apart, results in messages of users.

    `places` has a name for each of our messages, and for each of its parts.
    """

    effort = "output_config.effort"
    call_name = tool_name = "name"
    tool_parameters = "input_schema"
    kinds: ClassVar[dict[type, str]] = {Thought: "thinking", Call: "tool_use", Result: "tool_result"}

    def __init__(self, places: list[Place]) -> None:
        self._places = places

    def message(self, index: int) -> str:
        return self._places[index].message

    def kind(self, index: int, message: Message, kind: type) -> str:
        return next(
            (self.part(index, message, at) for at, part in enumerate(message.parts) if isinstance(part, kind)),
            self.message(index),
        )

    def part(self, index: int, message: Message, at: int) -> str:
        parts = self._places[index].parts
        return parts[at] if at < len(parts) else self.message(index)

    def uses_tools(self, index: int, message: Message) -> str:
        return self.kind(index, message, Call if message.calls else Result)


class Place(msgspec.Struct, frozen=True):
    """Where a message of a conversation stood in the body, and each of its parts."""

    message: str
    parts: tuple[str, ...]


Found = tuple[str, Part]
"""A part, and where it stood."""


def conversation_of(asked: CountRequest, format: Format) -> Conversation:
    """The conversation that a request holds, for a model of `format`, settled (see chat/rules.py).

    Raises RequestError naming the field at fault.
    """
    config = asked.output_config or OutputConfig()
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ()))
    choice = _choice(asked.tool_choice, tools)
    thinking, effort = thinking_of(
        thinking_said(None if asked.thinking is None else asked.thinking.type, format),
        config.effort,
        asked.model,
        format,
        must_call=choice not in ("none", "auto"),
        field=MessageFields.effort,
    )
    messages: list[Message] = []
    places: list[Place] = []
    for place, message in _messages(asked, format):
        places.append(place)
        messages.append(message)
    told = Conversation(
        messages=tuple(messages),
        tools=tools,
        choice=choice,
        thinking=thinking,
        effort=effort,
        structure=_structure(config.format),
    )
    return settle(told, format, MessageFields(places))


def returned(said: Message) -> Message:
    """A turn of the model as a client will send it back: arguments have become objects, and texts again."""
    calls = (msgspec.structs.replace(call, arguments=as_json(input_of(call.arguments))) for call in said.calls)
    return Message.of("assistant", said.content, reasoning=said.reasoning, calls=calls)


def input_of(arguments: str) -> dict[str, Any]:
    """The input of a call, of which the model wrote `arguments`."""
    found = object_of(arguments, MAX_DEPTH) if arguments.strip() else {}
    return {BROKEN_INPUT: arguments} if found is None else found


def _messages(asked: CountRequest, format: Format) -> Iterator[tuple[Place, Message]]:
    if asked.system:
        texts = [(where, text) for where, text in _texts(asked.system, "system") if not text.text.startswith(BILLING)]
        if texts:
            yield _message("system", "system", texts)
    for index, said in enumerate(asked.messages):
        where = f"messages[{index}]"
        if said.role == "user":
            yield from _user(said, where)
        elif said.role == "assistant":
            yield _message("assistant", where, _assistant(said, where))
        elif said.role == "system":
            texts = list(_texts(said.content, f"{where}.content"))
            yield _message("system", where, texts) if format.interleaves else _reminder(where, texts)
        else:
            fault = f"{where}.role: unknown role {shown(said.role)}; allowed: user, assistant, system"
            raise RequestError(fault, f"{where}.role")


def _message(role: Role, where: str, found: Iterable[Found]) -> tuple[Place, Message]:
    parts = list(found)
    return Place(where, tuple(place for place, _ in parts)), Message(role, tuple(part for _, part in parts))


def _reminder(where: str, texts: list[tuple[str, Text]]) -> tuple[Place, Message]:
    """A system text among the turns, for formats that would move it to the front: in a user's, marked as DeepSeek
    does."""
    text = Text(f"<system-reminder>\n{BLANK_LINE.join(text.text for _, text in texts)}\n</system-reminder>")
    return _message("user", where, [(where, text)])


def _user(said: Said, where: str) -> Iterator[tuple[Place, Message]]:
    """A user's texts between results as messages of their own, and each result as one."""
    if isinstance(said.content, str) or not said.content:
        yield _message("user", where, _texts(said.content, f"{where}.content"))
        return
    texts: list[Found] = []
    for at, block in enumerate(said.content):
        place = f"{where}.content[{at}]"
        if block.type != "tool_result":
            texts.append((place, _text(block, place, "text, tool_result")))
            continue
        if texts:
            yield _message("user", where, texts)
            texts = []
        yield _message("tool", place, [(place, _result(block, place))])
    if texts:
        yield _message("user", where, texts)


def _assistant(said: Said, where: str) -> list[Found]:
    """The parts of a turn. One that was cut off in its thought has said nothing."""
    if isinstance(said.content, str):
        return list(_texts(said.content, f"{where}.content"))
    found: list[Found] = []
    for at, block in enumerate(said.content):
        place = f"{where}.content[{at}]"
        if block.type == "thinking":
            found.append((place, Thought(given(block.thinking, f"{place}.thinking"))))
        elif block.type == "tool_use":
            call = Call(
                id=given(block.id, f"{place}.id"),
                name=given(block.name, f"{place}.name"),
                arguments=_arguments(block.input or {}, f"{place}.input"),
            )
            found.append((place, call))
        else:
            found.append((place, _text(block, place, "text, thinking, tool_use")))
    return found if any(not isinstance(part, Thought) for _, part in found) else [*found, (where, Text(""))]


def _arguments(input: dict[str, Any], where: str) -> str:
    try:
        return as_json(input)
    except RecursionError:
        raise RequestError(f"{where} is nested too deeply", where) from None


def _result(block: Block, where: str) -> Result:
    """What came of a call. An image in it becomes a text that says so: nobody chose to send it to this model."""
    content = block.content or ""
    parts = [Block(type="text", text=content)] if isinstance(content, str) else content
    texts = tuple(
        _text(part, f"{where}.content[{at}]", "text")
        if part.type == "text"
        else Text(f"[Unsupported content: {part.type[:64]}]")
        for at, part in enumerate(parts)
    )
    return Result(given(block.tool_use_id, f"{where}.tool_use_id"), texts)


def _texts(content: str | list[Block], where: str) -> Iterator[tuple[str, Text]]:
    if isinstance(content, str):
        yield where, Text(content)
        return
    for at, block in enumerate(content):
        yield f"{where}[{at}]", _text(block, f"{where}[{at}]", "text")


def _text(block: Block, where: str, allowed: str) -> Text:
    if block.type != "text":
        raise RequestError(
            f"{where}.type {shown(block.type)} is not supported here; allowed: {allowed}", f"{where}.type"
        )
    return Text(given(block.text, f"{where}.text"))


def _tool(tool: Described, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        fault = f"{where}.type {shown(tool.type)}: tools that run at the server are not supported; allowed: custom"
        raise RequestError(fault, f"{where}.type")
    check_supported(tool, f"{where}.")
    if tool.input_schema is None:
        raise RequestError(f"{where}.input_schema is missing", f"{where}.input_schema")
    return Tool(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict)


def _structure(wanted: OutputFormat | None) -> Structure | None:
    if wanted is None:
        return None
    field = "output_config.format"
    if wanted.type != "json_schema":
        raise RequestError(f"{field}.type {shown(wanted.type)} is unknown; allowed: json_schema", f"{field}.type")
    return Structure(kind="json", field=f"{field}.schema", schema=wanted.schema)


def _choice(wanted: Choice | None, tools: tuple[Tool, ...]) -> Literal["none", "auto", "required"] | Tool:
    match wanted.type if wanted is not None else "auto":
        case "auto":
            return "auto"
        case "none":
            return "none"
        case "any":
            return "required"
        case "tool":
            return chosen_tool(wanted.name if wanted is not None else None, tools, "tool_choice.name")
        case other:
            fault = f"tool_choice.type {shown(other)} is unknown; allowed: auto, any, tool, none"
            raise RequestError(fault, "tool_choice.type")
