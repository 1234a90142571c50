"""From the body of a chat request to a conversation, with every rule about messages, tools and thinking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import msgspec

from deepwell.chat import Conversation, Message, Role, Tool, ToolCall
from deepwell.chat.formats.base import Format
from deepwell.errors import RequestError
from deepwell.server.protocol import EFFORTS, ROLES, ChatMessage, ChatRequest, OfferedTool
from deepwell.server.rules import shown

MAX_DEPTH = 64
"""How deep a schema or the arguments of a call may be nested."""

Choice = Literal["none", "auto", "required"] | Tool


def conversation_of(asked: ChatRequest, format: Format) -> Conversation:
    """The conversation that a request holds, for a model of `format`.

    Text parts are joined by a blank line and results stand in the order of their calls. Raises RequestError naming the
    field at fault.
    """
    _check_pairs(asked)
    thinking, effort = _thinking(asked, format)
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ()))
    _check_names(tools)
    choice = _choice(asked, tools, thinking, format)
    messages = _in_call_order([_message(m, f"messages[{index}]", format) for index, m in enumerate(asked.messages)])
    return Conversation(messages=messages, tools=tools, choice=choice, thinking=thinking, effort=effort)


def texts_of(conversation: Conversation) -> list[str]:
    """All that its prompt will have to encode, to tell how long that takes."""
    texts = [text for tool in conversation.tools for text in (tool.name, tool.description or "")]
    texts += [msgspec.json.encode(tool.parameters).decode() for tool in conversation.tools if tool.parameters]
    for message in conversation.messages:
        texts += (message.content, message.reasoning or "")
        texts += [text for call in message.calls for text in (call.name, call.arguments)]
    return texts


def _check_pairs(asked: ChatRequest) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs is only allowed with logprobs: true", "top_logprobs")
    if asked.response_format is not None and asked.response_format.type != "text":
        kind = shown(asked.response_format.type)
        raise RequestError(f"response_format {kind} is not supported yet; allowed: text", "response_format.type")


def _thinking(asked: ChatRequest, format: Format) -> tuple[bool | None, str | None]:
    """Whether to think, None for the format's habit, and how long."""
    kind = None if asked.thinking is None else asked.thinking.type
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise RequestError(
            f"thinking.type {shown(kind)} is unknown; allowed: enabled, disabled, adaptive", "thinking.type"
        )
    effort = asked.reasoning_effort
    if effort is not None and effort not in EFFORTS:
        raise RequestError(
            f"reasoning_effort {shown(effort)} is unknown; allowed: {', '.join(EFFORTS)}", "reasoning_effort"
        )
    if kind == "enabled" and format.thinks == "never":
        raise RequestError("this model does not think; thinking.type may be disabled or adaptive", "thinking.type")
    if kind == "disabled" and format.thinks == "always":
        raise RequestError("this model always thinks; thinking.type may be enabled or adaptive", "thinking.type")
    if effort == "none":
        if format.thinks == "always":
            raise RequestError("this model always thinks; reasoning_effort cannot be none", "reasoning_effort")
        return False, None
    thinking = {"enabled": True, "disabled": False}.get(kind or "")
    return thinking, None if effort is None else EFFORTS[effort]


def _tool(tool: OfferedTool, where: str) -> Tool:
    if tool.type != "function":
        raise RequestError(f"{where}.type {shown(tool.type)} is not supported; allowed: function", f"{where}.type")
    function = tool.function
    if function is None:
        raise RequestError(f"{where}.function is missing; it needs at least a name", f"{where}.function")
    _check_depth(function.parameters, f"{where}.function.parameters")
    return Tool(
        name=function.name,
        description=function.description,
        parameters=function.parameters,
        strict=function.strict,
    )


def _check_names(tools: Sequence[Tool]) -> None:
    names: dict[str, int] = {}
    for index, tool in enumerate(tools):
        if tool.name in names:
            where = f"tools[{index}].function.name"
            first = names[tool.name]
            raise RequestError(f"{where}: tools[{first}] is called {shown(tool.name)} too; names are unique", where)
        names[tool.name] = index


def _choice(asked: ChatRequest, tools: Sequence[Tool], thinking: bool | None, format: Format) -> Choice:
    wanted = asked.tool_choice
    choice: Choice = "auto"
    if wanted in ("none", "auto", "required"):
        choice = cast(Choice, wanted)
    elif isinstance(wanted, str):
        raise RequestError(
            f"tool_choice {shown(wanted)} is unknown; allowed: none, auto, required, or an object naming a function",
            "tool_choice",
        )
    elif wanted is not None:
        name = wanted.function.name
        found = next((tool for tool in tools if tool.name == name), None)
        if wanted.type != "function" or found is None:
            offered = ", ".join(tool.name for tool in tools[:8]) or "there is none"
            raise RequestError(
                f"tool_choice names {shown(name)}, which is not a function in tools ({offered})", "tool_choice"
            )
        choice = found
    if tools and choice != "none" and not format.tools:
        raise RequestError(f"prompt format {format.name} of this model has no tools; leave tools out", "tools")
    forced = choice not in ("none", "auto")
    if forced and not tools:
        raise RequestError("tool_choice asks for a call, and tools offers none", "tool_choice")
    if forced and (thinking or format.thinks == "always"):
        raise RequestError("tool_choice cannot ask for a call while the model thinks; use auto", "tool_choice")
    return choice


def _message(message: ChatMessage, where: str, format: Format) -> Message:
    role = message.role
    if role not in ROLES:
        raise RequestError(f"{where}.role: unknown role {shown(role)}; allowed: {', '.join(ROLES)}", f"{where}.role")
    for field in ("reasoning_content", "tool_calls"):
        if role != "assistant" and getattr(message, field):
            raise RequestError(f"{where}.{field} is only allowed with role assistant", f"{where}.{field}")
    if role == "tool" and message.tool_call_id is None:
        field = f"{where}.tool_call_id"
        raise RequestError(f"{field} is missing; a tool message says which call it answers", field)
    if role != "tool" and message.tool_call_id is not None:
        field = f"{where}.tool_call_id"
        raise RequestError(f"{field} is only allowed with role tool", field)
    calls = _calls(message, where)
    if (calls or role == "tool") and not format.tools:
        raise RequestError(f"{where}: prompt format {format.name} of this model has no tools", where)
    if message.prefix and message.reasoning_content and format.thinks == "never":
        field = f"{where}.reasoning_content"
        raise RequestError(f"{field}: this model does not think, so it has no thought to continue", field)
    if calls and message.prefix:
        raise RequestError(f"{where}.prefix is not allowed together with tool_calls", f"{where}.prefix")
    return Message(
        cast(Role, role),
        _content(message, where, optional=bool(calls or (message.prefix and message.reasoning_content))),
        reasoning=message.reasoning_content,
        calls=calls,
        answers=message.tool_call_id,
        prefix=bool(message.prefix),
    )


def _content(message: ChatMessage, where: str, optional: bool) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None and not optional:
        or_calls = " or tool_calls" if message.role == "assistant" else ""
        raise RequestError(
            f"{where}.content{or_calls} is missing; content must be a text or a list of text parts", f"{where}.content"
        )
    texts = []
    for index, part in enumerate(content or ()):
        field = f"{where}.content[{index}]"
        if part.type != "text":
            raise RequestError(f"{field}.type {shown(part.type)} is not supported; allowed: text", f"{field}.type")
        if part.text is None:
            raise RequestError(f"{field}.text is missing", f"{field}.text")
        texts.append(part.text)
    return "\n\n".join(texts)


def _calls(message: ChatMessage, where: str) -> tuple[ToolCall, ...]:
    calls: dict[str, ToolCall] = {}
    for index, call in enumerate(message.tool_calls or ()):
        field = f"{where}.tool_calls[{index}]"
        if call.type != "function":
            raise RequestError(f"{field}.type {shown(call.type)} is not supported; allowed: function", f"{field}.type")
        if call.id in calls:
            raise RequestError(f"{field}.id {shown(call.id)} is the id of another call in this message", f"{field}.id")
        if not call.function.name:
            raise RequestError(f"{field}.function.name is empty", f"{field}.function.name")
        arguments = call.function.arguments if call.function.arguments.strip() else "{}"
        _check_arguments(arguments, f"{field}.function.arguments")
        calls[call.id] = ToolCall(name=call.function.name, arguments=arguments, id=call.id)
    return tuple(calls.values())


def _check_arguments(arguments: str, where: str) -> None:
    """An object as JSON text."""
    try:
        value = msgspec.json.decode(arguments)
    except RecursionError:
        raise RequestError(f"{where} is nested too deeply", where) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RequestError(f"{where} must be the text of a JSON object: {error}", where) from None
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be the text of a JSON object, not of {_kind(value)}", where)
    _check_depth(value, where)


def _check_depth(value: Any, where: str) -> None:
    """Formats write JSON by recursion, which must end early enough."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
        if not level:
            return
    raise RequestError(f"{where} is nested deeper than {MAX_DEPTH} levels", where)


def _inside(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)


def _kind(value: Any) -> str:
    return (
        "null"
        if value is None
        else {"list": "an array", "str": "a text", "bool": "a boolean"}.get(type(value).__name__, "a number")
    )


def _in_call_order(messages: list[Message]) -> tuple[Message, ...]:
    """The messages, each run of results sorted into the order of the calls that they answer."""
    ordered: list[Message] = []
    open_calls: dict[str, int] = {}
    results: dict[str, Message] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool":
            _check_result(message, f"{where}.tool_call_id", open_calls, results)
            results[message.answers or ""] = message
            continue
        _check_answered(open_calls, results, where)
        ordered += _sorted(results, open_calls)
        open_calls = {call.id: number for number, call in enumerate(message.calls)}
        results = {}
        ordered.append(message)
    _check_answered(open_calls, results, "messages")
    return (*ordered, *_sorted(results, open_calls))


def _sorted(results: dict[str, Message], open_calls: dict[str, int]) -> list[Message]:
    return [results[id] for id in sorted(results, key=lambda id: open_calls[id])]


def _check_result(message: Message, where: str, open_calls: dict[str, int], results: dict[str, Message]) -> None:
    id = message.answers
    if not open_calls:
        raise RequestError(f"{where}: a tool message must follow an assistant message with tool_calls", where)
    if id not in open_calls:
        raise RequestError(
            f"{where} {shown(id or '')} is no call of the assistant message before; its calls: {_listed(open_calls)}",
            where,
        )
    if id in results:
        raise RequestError(f"{where} {shown(id)} has been answered already by an earlier tool message", where)


def _check_answered(open_calls: dict[str, int], results: dict[str, Message], where: str) -> None:
    missing = [id for id in open_calls if id not in results]
    if missing:
        continues = "end" if where == "messages" else "goes on"
        raise RequestError(
            f"{where} {continues} before tool messages answered every call; missing: {_listed(missing)}", where
        )


def _listed(ids: Sequence[str] | dict[str, int]) -> str:
    some = ", ".join(shown(id) for id in list(ids)[:4])
    return some if len(ids) <= 4 else f"{some} and {len(ids) - 4} more"
