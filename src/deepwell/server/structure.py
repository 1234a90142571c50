"""What shape a request wants its answer to have: `response_format`, and the names that other servers have for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deepwell.chat import Structure
from deepwell.errors import RequestError, shown
from deepwell.server.protocol import ChatRequest, ResponseFormat, SamplingFields

KINDS = ("text", "json_object", "json_schema", "regex", "grammar")


def structure_of(asked: SamplingFields) -> Structure | None:
    """What the answer must be, None if it is free. Raises RequestError, naming the field, also for two that ask."""
    found = [*_by_format(asked), *_by_names(asked)]
    if len(found) > 1:
        raise RequestError(
            f"{found[0].field} and {found[1].field} both say what the answer must be; send one", found[1].field
        )
    return found[0] if found else None


def _by_format(asked: SamplingFields) -> Iterator[Structure]:
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return
    field = "response_format"
    if wanted.type == "json_object":
        if isinstance(asked, ChatRequest) and wanted.schema is None:
            _check_json_is_asked_for(asked)
        yield Structure(kind="json", field=field, schema=wanted.schema)
    elif wanted.type == "json_schema":
        schema, field = _json_schema(wanted)
        yield Structure(kind="json", field=field, schema=schema)
    elif wanted.type == "regex":
        field += ".regex"
        yield Structure(kind="regex", field=field, text=_text(wanted.regex or wanted.pattern, field))
    elif wanted.type == "grammar":
        field += ".grammar"
        yield Structure(kind="lark", field=field, text=_text(wanted.grammar, field))
    else:
        raise RequestError(
            f"response_format {shown(wanted.type)} is unknown; allowed: {', '.join(KINDS)}", "response_format.type"
        )


def _by_names(asked: SamplingFields) -> Iterator[Structure]:
    """What vLLM, SGLang and llama.cpp call it. An empty value asks for nothing."""
    own = asked.structured_outputs
    schemas = {"json_schema": asked.json_schema, "guided_json": asked.guided_json}
    regexes = {"regex": asked.regex, "guided_regex": asked.guided_regex}
    choices = {"guided_choice": asked.guided_choice}
    grammars = {"grammar": asked.grammar, "guided_grammar": asked.guided_grammar, "ebnf": asked.ebnf}
    if own is not None:
        schemas["structured_outputs.json"] = own.json
        regexes["structured_outputs.regex"] = own.regex
        choices["structured_outputs.choice"] = own.choice
        grammars["structured_outputs.grammar"] = own.grammar
        if own.json_object:
            yield Structure(kind="json", field="structured_outputs.json_object")
    for field, schema in schemas.items():
        if schema:
            yield Structure(kind="json", field=field, schema=_schema(schema, field))
    for field, text in regexes.items():
        if text:
            yield Structure(kind="regex", field=field, text=text)
    for field, texts in choices.items():
        if texts:
            yield Structure(kind="choice", field=field, texts=tuple(texts))
    for field, text in grammars.items():
        if text:
            yield Structure(kind="lark", field=field, text=text)


def _check_json_is_asked_for(asked: ChatRequest) -> None:
    """DeepSeek's rule, and OpenAI's: a model that is not told to say JSON, and may say nothing else, says blanks."""
    if b"json" not in msgspec.json.encode([message.content for message in asked.messages]).lower():
        raise RequestError(
            "messages must contain the word 'json' in some form to use response_format of type 'json_object'",
            "messages",
        )


def _json_schema(wanted: ResponseFormat) -> tuple[dict[str, Any], str]:
    """The schema and where it stands: in `json_schema.schema`, as OpenAI has it, or in `schema`."""
    if wanted.json_schema is None and wanted.schema is not None:
        return wanted.schema, "response_format.schema"
    field = "response_format.json_schema.schema"
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise RequestError(f"{field} is missing; it must be a JSON schema", field)
    return wanted.json_schema.schema, field


def _schema(value: dict[str, Any] | str, field: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError(f"{field} must be a JSON schema, as an object or as its text", field)
    return found


def _text(value: str | None, field: str) -> str:
    if not value:
        raise RequestError(f"{field} is missing; it must be a text", field)
    return value
