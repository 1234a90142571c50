"""What shape a request wants its answer to have: `response_format`, and the names that other servers have for it."""

from __future__ import annotations

from typing import Any

from deepwell.chat import Structure
from deepwell.errors import RequestError, shown
from deepwell.server.protocol import ChatRequest, ResponseFormat

KINDS = ("text", "json_object", "json_schema", "regex", "grammar")


def structure_of(asked: ChatRequest) -> Structure | None:
    """What the answer must be, None if it is free. Raises RequestError, naming the field."""
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return None
    field = "response_format"
    if wanted.type == "json_object":
        return Structure(kind="json", field=field, schema=wanted.schema)
    if wanted.type == "json_schema":
        schema, field = _json_schema(wanted)
        return Structure(kind="json", field=field, schema=schema)
    if wanted.type == "regex":
        field += ".regex"
        return Structure(kind="regex", field=field, text=_text(wanted.regex or wanted.pattern, field))
    if wanted.type == "grammar":
        field += ".grammar"
        return Structure(kind="lark", field=field, text=_text(wanted.grammar, field))
    raise RequestError(
        f"response_format {shown(wanted.type)} is unknown; allowed: {', '.join(KINDS)}", "response_format.type"
    )


def _json_schema(wanted: ResponseFormat) -> tuple[dict[str, Any], str]:
    """The schema and where it stands: in `json_schema.schema`, as OpenAI has it, or in `schema`."""
    if wanted.json_schema is None and wanted.schema is not None:
        return wanted.schema, "response_format.schema"
    field = "response_format.json_schema.schema"
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise RequestError(f"{field} is missing; it must be a JSON schema", field)
    return wanted.json_schema.schema, field


def _text(value: str | None, field: str) -> str:
    if not value:
        raise RequestError(f"{field} is missing; it must be a text", field)
    return value
