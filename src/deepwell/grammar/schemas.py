"""Which JSON schemas answers can be held to, and the sentence for what they cannot: its keyword, and where it stands.

Called beside the event loop: a schema may have many thousand parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llguidance
import msgspec

from deepwell.errors import RequestError, shown
from deepwell.grammar.bounds import MAX_PARTS, MAX_PROPERTIES, large_count

UNSUPPORTED = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "dependentRequired"),
    *("dependentSchemas", "dependencies", "propertyNames", "unevaluatedProperties", "unevaluatedItems"),
    *("$dynamicRef", "$recursiveRef", "contentSchema"),
}
"""Keywords that would change which documents are right, and that no grammar holds. Others that are unknown are notes,
as JSON Schema has it."""
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}

_ONE = ("additionalProperties", "items", "additionalItems")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


class _Part(msgspec.Struct, frozen=True):
    """A schema within a schema, and its JSON pointer."""

    schema: dict[str, Any]
    path: str


def check_schema(schema: dict[str, Any], field: str) -> None:
    """Raise RequestError, naming the keyword and its path in the schema, for one that no answer can be held to: too
    large, of keywords that are not supported, or with no document that ever ends."""
    parts: dict[str, _Part] = {}
    for part in _parts(schema, "#"):
        parts[part.path] = part
        if len(parts) > MAX_PARTS:
            raise RequestError(f"{field} has more than {MAX_PARTS} parts", field)
        if fault := _fault(part):
            raise RequestError(f"{field}: {fault}", field)
    if endless := _endless(parts):
        raise RequestError(
            f"{field}: {endless} holds itself in every document, so none would ever end; make a property optional, or "
            "allow something else in its place",
            field,
        )


def _parts(schema: Any, path: str) -> Iterator[_Part]:
    """All schemas in a schema, the outer before the inner."""
    if not isinstance(schema, dict):
        return
    yield _Part(schema, path)
    for key in _ONE:
        yield from _parts(schema.get(key), f"{path}/{key}")
    for key in _MANY:
        for index, inner in enumerate(_list(schema.get(key))):
            yield from _parts(inner, f"{path}/{key}/{index}")
    if isinstance(items := schema.get("items"), list):
        for index, inner in enumerate(items):
            yield from _parts(inner, f"{path}/items/{index}")
    for key in _NAMED:
        for name, inner in _dict(schema.get(key)).items():
            yield from _parts(inner, f"{path}/{key}/{escaped(name)}")


def escaped(name: str) -> str:
    """A name in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _fault(part: _Part) -> str | None:
    """What is wrong with one schema, its inner ones left aside."""
    schema, path = part.schema, part.path
    for key in UNSUPPORTED & schema.keys():
        return f"the keyword {key} at {path} is not supported"
    if (count := len(_dict(schema.get("properties")))) > MAX_PROPERTIES:
        return f"properties at {path} has {count} of them; allowed are {MAX_PROPERTIES} in one object"
    texts = schema.get("type", "string") == "string" or "string" in _list(schema.get("type"))
    if texts and isinstance(named := schema.get("format"), str) and named not in FORMATS:
        allowed = ", ".join(sorted(FORMATS - {"unknown"}))
        return f"the format {shown(named)} at {path}/format is not supported; allowed: {allowed}"
    patterns = {"pattern": schema.get("pattern")}
    patterns |= {f"patternProperties/{escaped(key)}": key for key in _dict(schema.get("patternProperties"))}
    for key, pattern in patterns.items():
        if isinstance(pattern, str) and (wrong := _wrong_regex(pattern)):
            return f"the pattern at {path}/{key} is not supported: {wrong}"
    return _few_names(schema, path)


def _few_names(schema: dict[str, Any], path: str) -> str | None:
    """A grammar cannot see that a free name came twice, which a reader of JSON counts once."""
    known = [name for name in _list(schema.get("required")) if name in _dict(schema.get("properties"))]
    least = schema.get("minProperties", 0)
    if isinstance(least, int) and least > len(known) + 1 and schema.get("additionalProperties") is not False:
        return (
            f"minProperties at {path} is {least}, more than the {len(known)} required properties and another; that is "
            "not supported"
        )
    return None


def _wrong_regex(pattern: str) -> str | None:
    if fault := large_count(pattern):
        return fault
    grammar = llguidance.LLMatcher.grammar_from_json_schema(msgspec.json.encode({"pattern": pattern}).decode())
    fault = llguidance.LLMatcher.validate_grammar(grammar)
    return " ".join(fault.split())[:300] if fault else None


def _endless(parts: dict[str, _Part]) -> str | None:
    """The path of a schema that every document needs and of which no document ends, None if there is none.

    Schemas whose documents can end are gathered until no more are found.
    """
    ending: set[str] = set()
    waiting = list(reversed(parts.values()))
    while True:
        left = [part for part in waiting if not _ends(part, parts, ending)]
        ending |= {part.path for part in waiting} - {part.path for part in left}
        if "#" in ending:
            return None
        if len(left) == len(waiting):
            return next((part.path for part in left if "$ref" in part.schema), "#")
        waiting = left


def _ends(part: _Part, parts: dict[str, _Part], ending: set[str]) -> bool:
    """Whether a schema has a document that ends, by those that are known to."""
    schema, path = part.schema, part.path

    def inner(where: str) -> bool:
        return where not in parts or where in ending  # what is no part is true, false, or found wrong elsewhere

    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#") and not inner(ref):
        return False
    if not all(inner(f"{path}/allOf/{index}") for index in range(len(_list(schema.get("allOf"))))):
        return False
    for key in ("anyOf", "oneOf"):
        if (choices := _list(schema.get(key))) and not any(
            inner(f"{path}/{key}/{index}") for index in range(len(choices))
        ):
            return False
    kind = schema.get("type", "object" if "properties" in schema else "array" if "minItems" in schema else None)
    if kind == "object":
        return all(
            inner(f"{path}/properties/{escaped(name)}")
            for name in _list(schema.get("required"))
            if isinstance(name, str)
        )
    least = schema.get("minItems")
    if kind == "array" and isinstance(least, int):
        first = [f"{path}/prefixItems/{index}" for index in range(len(_list(schema.get("prefixItems"))))]
        others = [f"{path}/items"] if least > len(first) else []
        return all(map(inner, [*first[: max(least, 0)], *others]))
    return True


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
