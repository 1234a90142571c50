"""From the body of a Responses request to a conversation."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import msgspec

from deepwell.chat import Call, Conversation, Message, Result, Role, Structure, Text, Thought, Tool
from deepwell.chat.conversation import Part
from deepwell.chat.formats.base import Format
from deepwell.chat.rules import Fields, settle
from deepwell.errors import RequestError, shown
from deepwell.server.conversations import chosen_tool, given, thinking_of
from deepwell.server.responses.protocol import Item, ItemPart, ResponsesRequest, TextFormat
from deepwell.server.responses.tools import Offered, arguments_of, offered
from deepwell.server.unsupported import check_supported

ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
CARRIED = "thought:"
"""How the content begins that clients carry for us between requests; they call it encrypted."""


_LATER: dict[type, tuple[type, ...]] = {Thought: (Text, Call), Text: (Call,)}
"""Behind which kinds of part another one begins a new turn."""


class ItemFields(Fields):
    """Where things are in a body: an item for each part of a turn. `places` has one for each message and part."""

    messages = "input"
    effort = "reasoning.effort"
    call_name = tool_name = "name"
    call_id = "call_id"
    tool_parameters = "parameters"
    kinds: ClassVar[dict[type, str]] = {
        Thought: "reasoning", Call: "function_call", Result: "function_call_output"
    }  # fmt: skip

    def __init__(self, places: Sequence[Sequence[str]]) -> None:
        self._places = places

    def message(self, index: int) -> str:
        return self._places[index][0]

    def kind(self, index: int, message: Message, kind: type) -> str:
        found = (at for at, part in enumerate(message.parts) if isinstance(part, kind))
        return self.part(index, message, next(found, 0))

    def part(self, index: int, message: Message, at: int) -> str:
        places = self._places[index]
        return places[min(at, len(places) - 1)]

    def uses_tools(self, index: int, message: Message) -> str:
        return self.kind(index, message, Call if message.calls else Result)


class Said(msgspec.Struct):
    """A message in the making, and where each of its parts stood."""

    role: Role
    parts: list[Part]
    places: list[str]

    def add(self, part: Part, place: str) -> None:
        last = self.parts[-1] if self.parts else None
        if isinstance(part, Thought) and isinstance(last, Thought):
            self.parts[-1] = Thought(f"{last.text}\n{part.text}")
            return
        self.parts.append(part)
        self.places.append(place)

    def takes(self, part: Part) -> bool:
        """Whether a part of the model's may belong to the same turn: thoughts come first, and calls last."""
        kinds = {type(part) for part in self.parts}
        return self.role == "assistant" and kinds.isdisjoint(_LATER.get(type(part), ()))


def conversation_of(asked: ResponsesRequest, format: Format) -> Conversation:
    """The conversation that a request holds, for a model of `format`, settled (see chat/rules.py).

    Raises RequestError naming the field at fault.
    """
    if asked.text is not None:
        check_supported(asked.text, "text.")
    tools = offered(asked.tools or (), format)
    choice = _choice(asked, tools.tools)
    thinking, effort = thinking_of(
        None,
        None if asked.reasoning is None else asked.reasoning.effort,
        asked.model,
        format,
        must_call=choice not in ("none", "auto"),
        field=ItemFields.effort,
    )
    said = _messages(asked, tools)
    told = Conversation(
        messages=tuple(Message(one.role, tuple(one.parts)) for one in said),
        tools=tools.tools,
        choice=choice,
        thinking=thinking,
        effort=effort,
        structure=_structure(None if asked.text is None else asked.text.format),
    )
    return settle(told, format, ItemFields([one.places for one in said]))


def carried(thought: str) -> str:
    """A thought as clients carry it that store nothing here and send no thoughts back in clear."""
    return base64.b64encode((CARRIED + thought).encode()).decode()


def _messages(asked: ResponsesRequest, tools: Offered) -> list[Said]:
    found: list[Said] = []
    if asked.instructions:
        found.append(Said("system", [Text(asked.instructions)], ["instructions"]))
    if isinstance(asked.input, str):
        return [*found, Said("user", [Text(asked.input)], ["input"])]
    for index, item in enumerate(asked.input):
        where = f"input[{index}]"
        role, parts = _item(item, where, tools)
        for part in parts:
            if role != "assistant" or not found or not found[-1].takes(part):
                found.append(Said(role, [], []))
            found[-1].add(part, where)
    return [_spoken(one) for one in found]


def _spoken(said: Said) -> Said:
    """A turn that was cut off in its thought has said nothing."""
    if all(isinstance(part, Thought) for part in said.parts):
        said.add(Text(""), said.places[0])
    return said


def _item(item: Item, where: str, tools: Offered) -> tuple[Role, list[Part]]:
    match item.type:
        case "message":
            if item.role not in ROLES:
                fault = f"{where}.role: unknown role {shown(item.role)}; allowed: {', '.join(ROLES)}"
                raise RequestError(fault, f"{where}.role")
            return cast(Role, item.role), [Text(_joined(item.content, f"{where}.content"))]
        case "reasoning":
            thought = _thought(item, where)
            return "assistant", [Thought(thought)] if thought else []
        case "function_call":
            arguments = given(item.arguments, f"{where}.arguments")
            call = Call(
                id=given(item.call_id, f"{where}.call_id"),
                name=tools.function(item.namespace, given(item.name, f"{where}.name")),
                arguments=arguments if arguments.strip() else "{}",
            )
            return "assistant", [call]
        case "custom_tool_call":
            call = Call(
                id=given(item.call_id, f"{where}.call_id"),
                name=given(item.name, f"{where}.name"),
                arguments=arguments_of(given(item.input, f"{where}.input")),
            )
            return "assistant", [call]
        case "function_call_output" | "custom_tool_call_output":
            said = Text(_joined(item.output, f"{where}.output", result=True))
            return "tool", [Result(given(item.call_id, f"{where}.call_id"), (said,))]
        case other:
            allowed = (
                "message, reasoning, function_call, custom_tool_call, and their outputs (function_call_output, ...)"
            )
            raise RequestError(f"{where}.type {shown(other)} is not supported; allowed: {allowed}", f"{where}.type")


def _thought(item: Item, where: str) -> str:
    """The thought of an item, in clear or as it was carried; what others encrypted says nothing to this model."""
    if item.content:
        return _joined(item.content, f"{where}.content")
    try:
        text = base64.b64decode(item.encrypted_content or "", validate=True).decode()
    except ValueError:
        return ""
    return text.removeprefix(CARRIED) if text.startswith(CARRIED) else ""


def _joined(content: str | list[ItemPart] | None, where: str, result: bool = False) -> str:
    """The texts, parted by blank lines. Of what is no text in a result stands that it cannot be shown: nobody chose to
    send it to this model."""
    if isinstance(content, str):
        return content
    if content is None:
        raise RequestError(f"{where} is missing", where)
    texts: list[str] = []
    for at, part in enumerate(content):
        field = f"{where}[{at}]"
        if part.type in TEXT_PARTS:
            texts.append(given(part.text, f"{field}.text"))
        elif result:
            texts.append(f"[Unsupported content: {part.type[:64]}]")
        else:
            allowed = ", ".join(TEXT_PARTS[:2])
            fault = f"{field}.type {shown(part.type)} is not supported; allowed: {allowed}"
            raise RequestError(fault, f"{field}.type")
    return "\n\n".join(texts)


def _choice(asked: ResponsesRequest, tools: Sequence[Tool]) -> Literal["none", "auto", "required"] | Tool:
    wanted = asked.tool_choice
    if wanted is None or wanted in ("none", "auto", "required"):
        return cast(Literal["none", "auto", "required"], wanted or "auto")
    if isinstance(wanted, str) or wanted.type not in ("function", "custom"):
        named = shown(wanted if isinstance(wanted, str) else wanted.type)
        allowed = "none, auto, required, or an object of type function or custom naming one"
        raise RequestError(f"tool_choice {named} is not supported; allowed: {allowed}", "tool_choice")
    return chosen_tool(wanted.name, tools, "tool_choice")


def _structure(wanted: TextFormat | None) -> Structure | None:
    if wanted is None or wanted.type == "text":
        return None
    field = "text.format"
    if wanted.type == "json_object":
        return Structure(kind="json", field=field)
    if wanted.type != "json_schema":
        fault = f"{field}.type {shown(wanted.type)} is unknown; allowed: text, json_object, json_schema"
        raise RequestError(fault, f"{field}.type")
    if wanted.schema is None:
        raise RequestError(f"{field}.schema is missing; it must be a JSON schema", f"{field}.schema")
    return Structure(kind="json", field=f"{field}.schema", schema=wanted.schema)
