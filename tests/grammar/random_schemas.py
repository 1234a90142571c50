"""JSON schemas drawn from a seed, of the features that public corpora of real ones have: nested objects with required,
optional and free properties, arrays and tuples, enums and constants, bounds, patterns, formats, alternatives,
definitions that refer to each other and to themselves, and notes."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("name", "id", "größe", "unit of measure", "a/b", "x", "tags", "when", "状态", 'say "hi"', "on")
PATTERNS = ("^[a-z]{2,5}$", r"^\d{3}-\d{2}$", "^(red|green)?$", "^[A-Z][a-z]*$")
FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "email")


def random_schema(seed: int) -> dict[str, Any]:
    """A schema of an object."""
    draw = random.Random(seed)
    schema = _object(draw, 3) | {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"Case {seed}"}
    node = {"type": "object", "properties": {"value": _leaf(draw), "next": {"$ref": "#/$defs/node"}}}
    node |= {"required": ["value"], "additionalProperties": False}
    return schema | {"$defs": {"node": node, "leaf": _leaf(draw)}}


def _any(draw: random.Random, depth: int) -> dict[str, Any]:
    if depth == 0:
        return _leaf(draw)
    makers = (_object, _array, _alternatives, _reference)
    return draw.choice((*makers, _leaf_of, _leaf_of, _leaf_of))(draw, depth - 1)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(WORDS, draw.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _any(draw, depth) for name in names}}
    schema["required"] = [name for name in names if draw.random() < 0.7]
    free = draw.random()
    if free < 0.75:
        schema["additionalProperties"] = False
    elif free < 0.9:
        schema |= {"additionalProperties": _leaf(draw), "maxProperties": len(names) + 2}
        schema["required"] = names
    else:
        schema |= {"patternProperties": {"^n[0-9]$": {"type": "integer"}}, "additionalProperties": False}
    return schema


def _array(draw: random.Random, depth: int) -> dict[str, Any]:
    if draw.random() < 0.2:
        return {"type": "array", "prefixItems": [_any(draw, depth) for _ in range(2)], "items": False, "minItems": 2}
    least = draw.randint(0, 2)
    return {"type": "array", "items": _any(draw, depth), "minItems": least, "maxItems": least + draw.randint(0, 3)}


def _alternatives(draw: random.Random, depth: int) -> dict[str, Any]:
    kind = draw.randint(0, 2)
    if kind == 0:
        return {"anyOf": [_any(draw, depth), {"type": "null"}], "description": "perhaps"}
    if kind == 1:
        return {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]}
    return {"allOf": [{"type": "integer", "minimum": draw.randint(-9, 9)}, {"maximum": draw.randint(10, 99)}]}


def _reference(draw: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": draw.choice(("#/$defs/node", "#/$defs/leaf"))}


def _leaf_of(draw: random.Random, depth: int) -> dict[str, Any]:
    return _leaf(draw)


def _leaf(draw: random.Random) -> dict[str, Any]:
    low = draw.randint(-1000, 1000)
    return draw.choice(
        (
            {"type": "string", "maxLength": draw.randint(0, 12)},
            {"type": "string", "minLength": 2, "maxLength": 6, "description": "short"},
            {"type": "string", "pattern": draw.choice(PATTERNS)},
            {"type": "string", "format": draw.choice(FORMATS)},
            {"type": "string", "enum": draw.sample(WORDS, 3)},
            {"enum": [1, "a", None, {"x": [1, 2.5]}, True]},
            {"const": draw.choice((7, "é\n", None, [1]))},
            {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)},
            {"type": "integer", "exclusiveMinimum": low, "multipleOf": draw.choice((2, 3, 10)), "maximum": low + 99},
            {"type": "number", "minimum": low / 4, "exclusiveMaximum": low / 4 + 3},
            {"type": "boolean", "default": True},
            {"type": ["string", "null"], "maxLength": 5},
        )
    )
