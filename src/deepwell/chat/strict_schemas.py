"""The schemas of strict tools: every object has all its properties and no others."""

from __future__ import annotations

from typing import Any

from deepwell.chat.conversation import Tool

ANY_OBJECT = {"type": "object"}
_AS_IT_IS = ("enum", "const", "default")


def parameters_of(tool: Tool) -> dict[str, Any] | None:
    """What a model is shown of a tool's parameters: of a strict one the schema that calls are held to."""
    if not tool.strict:
        return tool.parameters
    completed: dict[str, Any] = strict_schema(tool.parameters or ANY_OBJECT)
    return completed


def strict_schema(schema: Any) -> Any:
    """A schema, completed."""
    if isinstance(schema, list):
        return [strict_schema(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: inner if key in _AS_IT_IS else strict_schema(inner) for key, inner in schema.items()}
    if schema.get("type") == "object" and isinstance(properties := schema.get("properties", {}), dict):
        closed |= {"properties": closed.get("properties", {}), "additionalProperties": False, "required": [*properties]}
    return closed
