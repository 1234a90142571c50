"""Schemas that no answer can be held to are refused, with the keyword and its path; hostile ones in bounded time."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from deepwell.chat import Structure
from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.source import Grammar, of_structure
from deepwell.grammar.vocabulary import Vocabulary
from fakes import tiny_tokenizer

V = Vocabulary(tiny_tokenizer(), 320)
NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


def of_schema(schema: dict[str, Any], field: str) -> Grammar:
    return of_structure(Structure(kind="json", field=field, schema=schema))


def of_regex(text: str, field: str) -> Grammar:
    return of_structure(Structure(kind="regex", field=field, text=text))


def of_lark(text: str, field: str) -> Grammar:
    return of_structure(Structure(kind="lark", field=field, text=text))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"not": {}}}}, "not at #/properties/a"),
        ({"properties": {"a/b": {"items": {"uniqueItems": True}}}}, "uniqueItems at #/properties/a~1b/items"),
        ({"anyOf": [{}, {"contains": {}}]}, "contains at #/anyOf/1"),
        ({"$defs": {"x": {"if": {}}}, "$ref": "#/$defs/x"}, "if at #/$defs/x"),
        ({"properties": {"a": {"type": "string", "format": "iri"}}}, "'iri' at #/properties/a/format"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "pattern at #/properties/a/pattern"),
        ({"patternProperties": {"(?=a)": {}}}, "pattern at #/patternProperties/(?=a)"),
        ({"type": "object", "minProperties": 3}, "minProperties at #"),
        ({"$ref": "#"}, "# holds itself"),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, "#/$defs/node"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
            "itself",
        ),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "holds itself"),
        ({"$ref": "http://elsewhere/x"}, "elsewhere"),
        ({"type": "strnig"}, "strnig"),
        ({"oneOf": [{"type": "string"}, {"type": "string"}]}, "oneOf"),
        (nested(70), "nested deeper than 64"),
        ({"properties": {f"p{n}": {} for n in range(2_001)}}, "properties at # has 2001"),
        ({"anyOf": [{"properties": {f"p{n}": {} for n in range(2_000)}}] * 11}, "parts"),
        ({"title": "x" * 400_000}, "too large"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "f"),
    ],
)
def test_what_cannot_be_held_to_is_named(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as fault:
        Compiled(of_schema(schema, "f"), V)
    assert words in str(fault.value)
    assert fault.value.param == "f"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"type": "array", "minItems": 1, "items": {"$ref": "#"}}]},
        {"$ref": "#/$defs/node", "$defs": {"node": NODE | {"required": []}}},
        {"type": "integer", "format": "int64", "x-note": 1, "default": 3},
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        nested(50),
    ],
)
def test_what_recurses_and_ends_is_taken(schema: dict[str, Any]) -> None:
    Compiled(of_schema(schema, "f"), V)


HOSTILE = {
    "counts": "((a{1,1000}){1,1000}){1,1000}",
    "many dots": "(.{0,5000}x){5000}",
    "huge count": "x{100000000}",
    "alternatives": "|".join(f"a{n}.*b" for n in range(3000)),
    "blow-up": "(a|b)*a(a|b){500}",
    "classes": r"[\w\W]{99999}",
    "brackets": "(" * 5000 + "a" + ")" * 5000,
}


@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", [of_regex, lambda text, field: of_schema({"pattern": text}, field)])
def test_hostile_regexes_take_bounded_time_at_the_start_and_at_each_token(pattern: str, kind: Any) -> None:
    begun = time.perf_counter()
    try:
        constraint = Compiled(kind(pattern, "f"), V).constraint()
    except RequestError:
        assert time.perf_counter() - begun < 5
        return
    assert time.perf_counter() - begun < 5
    begun = time.perf_counter()
    for _ in range(20):
        place = constraint.allowed(())[0]
        assert place.mask is not None
        token = next((id for id in range(20, 320) if place.mask[id // 32] >> (id % 32) & 1), None)
        if token is None:
            break
        constraint.accept([token])
    assert time.perf_counter() - begun < 5


def test_hostile_grammars_take_bounded_time() -> None:
    begun = time.perf_counter()
    for text in ("start: start start", "start: a\na: a | b\nb: a b |", "start: " + "x " * 50_000 + '\nx: "y"'):
        with suppress(RequestError):
            Compiled(of_lark(text, "f"), V).constraint().allowed(())
    assert time.perf_counter() - begun < 10
