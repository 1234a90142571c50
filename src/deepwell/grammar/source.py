"""What a document must be, as text that llguidance compiles: JSON of a schema, a regular expression, a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from deepwell.chat import Structure
from deepwell.chat.reading.json_text import deeper
from deepwell.errors import RequestError
from deepwell.grammar.bounds import MAX_CHARACTERS, MAX_DEPTH, MAX_TRANSLATED, large_count

WHITESPACE = r"[ \t]{0,1}\n[ \t]{0,64}|[ \t]{1,64}"
"""What may stand between the parts of a JSON document: as much as laying it out needs, but not white space for ever."""


class Grammar(msgspec.Struct, frozen=True):
    """A grammar as llguidance reads it, and the request's `field` that asked for it. `schemas` are the fields of the
    schemas in it, in order."""

    text: str
    field: str
    schemas: tuple[str, ...] = ()


def of_structure(structure: Structure) -> Grammar:
    """The grammar of a text of that structure."""
    return whole([part_of(structure)], structure.field, [structure.field] if structure.kind == "json" else ())


def part_of(structure: Structure) -> dict[str, Any]:
    """What such a text is, as a part of a grammar. Raises RequestError for what is too large or cannot be read."""
    field = structure.field
    if structure.kind == "json":
        return {"json_schema": json_part({"type": "object"} if structure.schema is None else structure.schema, field)}
    return {"lark_grammar": _lark_of(structure)}


def _lark_of(structure: Structure) -> str:
    """A choice, a regular expression in the syntax of Rust's regex crate, a Lark grammar in llguidance's dialect, or a
    grammar in llama.cpp's, whose first rule is `root`."""
    text, field = structure.text, structure.field
    if structure.kind == "choice":
        return "start: " + " | ".join(map(json.dumps, structure.texts))
    if structure.kind == "regex":
        if fault := large_count(text):
            raise RequestError(f"{field}: {fault}", field)
        return f"start: /{slashed(text)}/"
    return _translated(text, field) if "::=" in text else text


def json_part(schema: dict[str, Any], field: str) -> dict[str, Any]:
    """A schema with how its documents are laid out. Raises RequestError for one that is nested too deeply."""
    if deeper(schema, MAX_DEPTH):
        raise RequestError(f"{field} is nested deeper than {MAX_DEPTH} levels", field)
    return schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}}


def slashed(regex: str) -> str:
    """A regular expression as it stands between slashes."""
    return regex.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")


def whole(parts: Sequence[dict[str, Any]], field: str, schemas: Sequence[str] = ()) -> Grammar:
    """The grammar of which the first part is the start. Raises RequestError for one that is too large."""
    text = msgspec.json.encode({"grammars": parts}).decode()
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"{field} is too large: {len(text)} characters as JSON; allowed are {MAX_CHARACTERS}", field)
    return Grammar(text, field, tuple(schemas))


def _translated(gbnf: str, field: str) -> str:
    """llama.cpp's kind of grammar as a Lark grammar."""
    from llguidance.gbnf_to_lark import any_to_lark

    if len(gbnf) > MAX_TRANSLATED:
        raise RequestError(f"{field} has {len(gbnf)} characters; allowed are {MAX_TRANSLATED} of this kind", field)
    try:
        return str(any_to_lark(gbnf))
    except Exception as error:  # whatever the library runs into is the grammar's fault
        raise RequestError(f"{field}: {error}", field) from None
