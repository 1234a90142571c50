"""The tools of a Responses request as the functions that prompts know, and back.

A custom tool takes a text instead of JSON: it is a function of one string, `input`. A namespace is a name in front of
its functions' own. deepseek-recipe does the same, but knows no custom tool other than `apply_patch`, which it describes
itself; here the client does, as it does every tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from deepwell.chat import Tool
from deepwell.chat.formats.base import Format
from deepwell.errors import RequestError, shown
from deepwell.server.conversations import given
from deepwell.server.responses.protocol import ItemTool
from deepwell.server.unsupported import check_supported

DROPPED = ("web_search", "web_search_preview", "web_search_2025_08_26", "web_search_preview_2025_03_11")
"""Tools that DeepSeek does not offer to the model either, and takes nobody's request amiss for."""
INPUT = "input"


class Offered(msgspec.Struct, frozen=True):
    """The functions that a request offers, and what their names stand for: custom tools, and names in namespaces."""

    tools: tuple[Tool, ...]
    custom: frozenset[str]
    spaces: dict[str, tuple[str, str]]
    format: Format

    def function(self, space: str | None, name: str) -> str:
        """What the model calls a function of a namespace, or of none."""
        if space is None:
            return name
        return next(
            (own for own, place in self.spaces.items() if place == (space, name)), _joined(space, name, self.format)
        )


def offered(listed: Sequence[ItemTool], format: Format) -> Offered:
    """The tools of a request, for a model of `format`. Raises RequestError, naming the field at fault."""
    plain = {tool.name for tool in listed if tool.type in ("function", "custom") and tool.name}
    tools: list[Tool] = []
    custom: set[str] = set()
    spaces: dict[str, tuple[str, str]] = {}
    for index, tool in enumerate(listed):
        where = f"tools[{index}]"
        match tool.type:
            case "function":
                tools.append(_function(tool, where, given(tool.name, f"{where}.name")))
            case "custom":
                tools.append(_custom(tool, where))
                custom.add(tools[-1].name)
            case "namespace":
                space = given(tool.name, f"{where}.name")
                for inner, at in _inside(tool, where):
                    name = given(inner.name, f"{at}.name")
                    own = _free(_joined(space, name, format), plain | spaces.keys())
                    spaces[own] = space, name
                    about = tool.description if format.namespaces else None
                    tools.append(_function(inner, at, own, about))
            case other if other not in DROPPED:
                allowed = "function, custom, namespace"
                raise RequestError(f"{where}.type {shown(other)} is not supported; allowed: {allowed}", f"{where}.type")
    return Offered(tuple(tools), frozenset(custom), spaces, format)


def arguments_of(text: str) -> str:
    """The input of a custom tool as a function's arguments."""
    return msgspec.json.encode({INPUT: text}).decode()


def _function(tool: ItemTool, where: str, name: str, about: str | None = None) -> Tool:
    """`about` is what its namespace is said to be."""
    check_supported(tool, f"{where}.")
    description = f"{about}\n{tool.description or ''}" if about else tool.description
    return Tool(name=name, description=description, parameters=tool.parameters, strict=tool.strict)


def _custom(tool: ItemTool, where: str) -> Tool:
    """As a function; what its input is like is only said, and not enforced."""
    check_supported(tool, f"{where}.")
    name, description, told = given(tool.name, f"{where}.name"), tool.description, "the whole input, as plain text"
    if tool.format is not None and tool.format.definition is not None:
        rules = f"The input keeps to this {tool.format.syntax or 'lark'} grammar:\n\n{tool.format.definition}"
        description = f"{description}\n\n{rules}" if description else rules
    parameters: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {INPUT: {"type": "string", "description": told}},
        "required": [INPUT],
    }
    return Tool(name=name, description=description, parameters=parameters)


def _inside(space: ItemTool, where: str) -> list[tuple[ItemTool, str]]:
    """The functions of a namespace, and where they are."""
    found = [(tool, f"{where}.tools[{index}]") for index, tool in enumerate(space.tools or ())]
    for tool, at in found:
        if tool.type != "function":
            fault = f"{at}.type {shown(tool.type)} is not supported in a namespace; allowed: function"
            raise RequestError(fault, f"{at}.type")
    if len({tool.name for tool, _ in found}) < len(found):
        raise RequestError(f"{where}.tools has a name twice", f"{where}.tools")
    return found


def _joined(space: str, name: str, format: Format) -> str:
    if format.namespaces:
        return f"{space}::{name}"
    return f"{space}{name}" if space.endswith("_") else f"{space}__{name}"


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered if others have it."""
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
