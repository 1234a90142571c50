"""Calls as a grammar: how a format writes them, around what the schemas of the tools' arguments allow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepwell.chat import Tool
from deepwell.chat.formats.base import CallSyntax, Token
from deepwell.chat.strict_schemas import ANY_OBJECT, strict_schema
from deepwell.errors import RequestError
from deepwell.grammar.source import json_part
from deepwell.weights.tokenizer import Tokenizer


class Calls:
    """Writes the rules of calls to `tools`. `parts` are grammars of their own that the rules name: those of JSON.

    Raises RequestError, naming the field, for what cannot be held to.
    """

    def __init__(self, syntax: CallSyntax, tokenizer: Tokenizer, tools: Mapping[str, Tool]) -> None:
        """`tools` by the field that each came in."""
        self.syntax, self._tokenizer = syntax, tokenizer
        self.rules: list[str] = []
        self.parts: list[dict[str, Any]] = []
        self.fields: list[str] = []
        self._names = [tool.name for tool in tools.values()]
        for number, (field, tool) in enumerate(tools.items()):
            schema = strict_schema(tool.parameters or ANY_OBJECT) if tool.strict else ANY_OBJECT
            inside = self._tags(schema, field) if syntax.tags else self._json(schema, field)
            self.rules.append(f"arguments_{number}: {inside}")
            head, tail = self.spelled(syntax.head(tool.name)), self.spelled(syntax.tail)
            self.rules.append(f"call_{number}: {head} arguments_{number} {tail}")
        self.rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))

    def whole(self, begun: str = "") -> str:
        """The expression of calls from their very beginning, but for a text that was `begun`."""
        begin = without(self.syntax.begin, (begun,)) if begun else self.syntax.begin
        return f"{self.spelled(begin or ())} call {self._rest(True)}"

    def opened(self, given: Sequence[str | Token], several: bool) -> str:
        """The expression of calls of which the prompt has `given` the beginning."""
        ways = []
        for number, name in enumerate(self._names):
            after = without((*self.syntax.begin, *self.syntax.head(name)), given)
            if after is not None:
                ways.append(f"{self.spelled(after)} arguments_{number} {self.spelled(self.syntax.tail)}")
        return f"({' | '.join(ways)}) {self._rest(several)}"

    def spelled(self, parts: Sequence[str | Token]) -> str:
        """Texts and template tokens of a layout as an expression; tokens that the model lacks are texts."""
        words: list[str] = []
        for part in parts:
            id = self._tokenizer.special(part.spelling) if isinstance(part, Token) else None
            text = part.spelling if isinstance(part, Token) else part
            words += [f"<[{id}]>"] if id is not None else [json.dumps(text, ensure_ascii=False)] if text else []
        return " ".join(words)

    def _rest(self, several: bool) -> str:
        more = f"({self.spelled(self.syntax.between)} call)* " if several else ""
        return more + self.spelled(self.syntax.end)

    def _json(self, schema: dict[str, Any], field: str) -> str:
        name = f"json_{len(self.parts)}"
        self.parts.append({"name": name, "json_schema": json_part(schema, field)})
        self.fields.append(field)
        return f"@{name}"

    def _tags(self, schema: dict[str, Any], field: str) -> str:
        """Arguments as tags, one for each property, in order."""
        if schema == ANY_OBJECT:
            self._define("NAME", r'/[^"\n]+" string="/')
            free = f"NAME ({self._text(0, None)} | {self._json_value({}, field)})"
            return f"({self.spelled(self.syntax.parameter)} {free} {self.spelled(self.syntax.parameter_end)})*"
        strange = schema.keys() - {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
        strange -= {"title", "description", "$schema", "$id", "$comment", "examples", "default"}
        if strange:
            raise RequestError(
                f"{field}: the keyword {min(strange)} at # is not supported in strict tools of this model", field
            )
        for ref in references(schema):
            if not ref.startswith(("#/$defs/", "#/definitions/")):
                raise RequestError(
                    f"{field}: $ref {ref} is not supported in strict tools of this model; refer to #/$defs", field
                )
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        words = []
        for name, inner in schema.get("properties", {}).items():
            if '"' in name or "\n" in name:
                raise RequestError(f"{field}: the property {name!r} cannot be written by this model", field)
            value = self._value({**shared, **inner} if isinstance(inner, dict) else inner, field)
            begin = (*self.syntax.parameter, f'{name}" string="')
            words.append(f"{self.spelled(begin)} {value} {self.spelled(self.syntax.parameter_end)}")
        return " ".join(words) or self.spelled(self.syntax.nothing)

    def _value(self, schema: Any, field: str) -> str:
        """A value up to the `</` of its end: text as it is, or JSON."""
        if isinstance(schema, dict) and schema.get("type") == "string" and not schema.keys() & _NO_PLAIN:
            if texts := [text for text in _texts(schema) if "</" not in text]:
                return "(" + " | ".join(self.spelled((f'true">{text}</',)) for text in texts) + ")"
            if not schema.keys() & {"enum", "const"}:
                return self._text(schema.get("minLength", 0), schema.get("maxLength"))
        return self._json_value(schema, field)

    def _text(self, least: int, most: int | None) -> str:
        name = f"TEXT_{least}_{'' if most is None else most}"
        self._define(name, rf'/true">(?s:.{{{least},{"" if most is None else most}}})<\//')
        return name

    def _json_value(self, schema: Any, field: str) -> str:
        begin, end = self.spelled(('false">',)), self.spelled(("</",))
        return f"{begin} {self._json(schema, field)} {end}"

    def _define(self, name: str, pattern: str) -> None:
        if (rule := f"{name}: {pattern}") not in self.rules:
            self.rules.append(rule)


_NO_PLAIN = frozenset(["pattern", "format", "anyOf", "oneOf", "allOf", "$ref"])


def _texts(schema: dict[str, Any]) -> list[str]:
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return [value for value in values if isinstance(value, str)]


def references(schema: Any) -> Iterator[str]:
    """All `$ref` in a schema."""
    if isinstance(schema, dict):
        if isinstance(ref := schema.get("$ref"), str):
            yield ref
        for inner in schema.values():
            yield from references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from references(inner)


def without(parts: Sequence[str | Token], given: Sequence[str | Token]) -> list[str | Token] | None:
    """What follows `given` in parts of a layout; None if they do not begin with it."""
    left = list(parts)
    for part in given:
        while left and left[0] == "":
            left.pop(0)
        if not left:
            return None
        first = left.pop(0)
        if isinstance(first, str) and isinstance(part, str) and first.startswith(part):
            left.insert(0, first[len(part) :])
        elif first != part:
            return None
    return left
