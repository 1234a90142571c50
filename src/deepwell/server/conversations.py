"""From the body of a chat request to a conversation. What must hold of any conversation is in chat/rules.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import msgspec

from deepwell.chat import Call, Conversation, Message, Result, Role, Text, Thought, Tool
from deepwell.chat.formats.base import Format
from deepwell.chat.rules import Fields, check_thinking, settle
from deepwell.errors import RequestError, shown
from deepwell.server.protocol import (
    ROLES,
    CalledTool,
    ChatMessage,
    ChatRequest,
    ContentPart,
    OfferedTool,
    TemplateOptions,
)
from deepwell.server.structure import structure_of

Choice = Literal["none", "auto", "required"] | Tool


class ChatFields(Fields):
    """The fields of a chat request, whose texts, thoughts, calls and call ids lie apart."""

    def uses_tools(self, index: int, message: Message) -> str:
        return self.message(index)


FIELDS = ChatFields()


def conversation_of(asked: ChatRequest, format: Format) -> Conversation:
    """The conversation that a request holds, for a model of `format`, settled (see rules.py).

    Raises RequestError naming the field at fault.
    """
    _check_pairs(asked)
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ()))
    choice = _choice(asked, tools)
    thinking, effort = thinking_of(
        _said_of_thinking(asked, format),
        asked.reasoning_effort,
        asked.model,
        format,
        must_call=choice not in ("none", "auto"),
        field="reasoning_effort",
    )
    told = Conversation(
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(asked.messages)),
        tools=tools,
        choice=choice,
        thinking=thinking,
        effort=effort,
        structure=structure_of(asked),
    )
    return settle(told, format, FIELDS)


def texts_of(conversation: Conversation) -> list[str]:
    """All that its prompt will have to encode, to tell how long that takes."""
    texts = [text for tool in conversation.tools for text in (tool.name, tool.description or "")]
    texts += [msgspec.json.encode(tool.parameters).decode() for tool in conversation.tools if tool.parameters]
    for message in conversation.messages:
        texts += (message.content, message.reasoning or "")
        texts += [text for call in message.calls for text in (call.name, call.arguments)]
    return texts


def given(value: str | None, where: str) -> str:
    """The text of a field that must be there. Raises RequestError."""
    if value is None:
        raise RequestError(f"{where} is missing", where)
    return value


def chosen_tool(name: str | None, tools: Sequence[Tool], field: str) -> Tool:
    """The tool of that name, which `field` demands. Raises RequestError that lists those there are."""
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        offered = ", ".join(tool.name for tool in tools[:8]) or "there is none"
        raise RequestError(f"{field} names {shown(name)}, which is not a function in tools ({offered})", field)
    return found


def _check_pairs(asked: ChatRequest) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs is only allowed with logprobs: true", "top_logprobs")


def thinking_of(
    wanted: bool | None, effort: str | None, model: str | None, format: Format, must_call: bool, field: str
) -> tuple[bool | None, str | None]:
    """Whether to think, None for the format's habit, and how long.

    What is `wanted` of thinking itself comes before the effort, which stands in `field`, and the effort, but for
    "none", before the model's name. The latter two do not stand in the way of a demanded call.
    """
    if effort == "none":
        check_thinking(False, format, field, f"{field} cannot be none")
        return False, None
    if wanted is not None:
        return wanted, effort
    if format.thinks != "choice" or must_call:
        return None, effort
    if effort is not None:
        return effort != "minimal" or format.efforts, effort
    return format.names.get(model or ""), None


def thinking_said(kind: str | None, format: Format) -> bool | None:
    """What `thinking.type` asks for; None leaves it to the model."""
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise RequestError(
            f"thinking.type {shown(kind)} is unknown; allowed: enabled, disabled, adaptive", "thinking.type"
        )
    wanted = {"enabled": True, "disabled": False}.get(kind or "")
    other = "disabled" if wanted else "enabled"
    check_thinking(wanted, format, "thinking.type", f"thinking.type may be {other} or adaptive")
    return wanted


def _said_of_thinking(asked: ChatRequest, format: Format) -> bool | None:
    """By `thinking`, or else by the names that other servers have for it."""
    if asked.thinking is not None:
        return thinking_said(asked.thinking.type, format)
    told = asked.chat_template_kwargs or TemplateOptions()
    for field, wanted in (
        ("chat_template_kwargs.thinking", told.thinking),
        ("chat_template_kwargs.enable_thinking", told.enable_thinking),
        ("enable_thinking", asked.enable_thinking),
    ):
        if wanted is not None:
            check_thinking(wanted, format, field, f"leave {field} out")
            return wanted
    return None


def _tool(tool: OfferedTool, where: str) -> Tool:
    if tool.type != "function":
        raise RequestError(f"{where}.type {shown(tool.type)} is not supported; allowed: function", f"{where}.type")
    function = tool.function
    if function is None:
        raise RequestError(f"{where}.function is missing; it needs at least a name", f"{where}.function")
    return Tool(
        name=function.name,
        description=function.description,
        parameters=function.parameters,
        strict=function.strict,
    )


def _choice(asked: ChatRequest, tools: Sequence[Tool]) -> Choice:
    wanted = asked.tool_choice
    if wanted is None:
        return "auto"
    if isinstance(wanted, str):
        if wanted not in ("none", "auto", "required"):
            raise RequestError(
                f"tool_choice {shown(wanted)} is unknown; allowed: none, auto, required, or an object naming a "
                "function",
                "tool_choice",
            )
        return cast(Choice, wanted)
    if wanted.type != "function":
        raise RequestError(f"tool_choice.type {shown(wanted.type)} is not supported; allowed: function", "tool_choice")
    return chosen_tool(wanted.function.name, tools, "tool_choice")


def _message(message: ChatMessage, where: str) -> Message:
    role, thought = message.role, message.reasoning_content
    if role not in ROLES:
        raise RequestError(f"{where}.role: unknown role {shown(role)}; allowed: {', '.join(ROLES)}", f"{where}.role")
    texts = _texts(message.content, f"{where}.content")
    said = texts if message.tool_call_id is None else (Result(message.tool_call_id, texts),)
    thoughts = (Thought(thought),) if thought or (thought is not None and role == "assistant") else ()
    calls = tuple(_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls or ()))
    return Message(cast(Role, role), (*thoughts, *said, *calls), bool(message.prefix))


def _texts(content: str | list[ContentPart] | None, where: str) -> tuple[Text, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),)
    for index, part in enumerate(content):
        if part.type != "text":
            field = f"{where}[{index}].type"
            raise RequestError(f"{field} {shown(part.type)} is not supported; allowed: text", field)
    texts = (Text(given(part.text, f"{where}[{index}].text")) for index, part in enumerate(content))
    return tuple(texts) or (Text(""),)


def _call(call: CalledTool, where: str) -> Call:
    if call.type != "function":
        raise RequestError(f"{where}.type {shown(call.type)} is not supported; allowed: function", f"{where}.type")
    arguments = call.function.arguments
    return Call(name=call.function.name, arguments=arguments if arguments.strip() else "{}", id=call.id)
