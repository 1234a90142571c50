"""What a document must be, as text that llguidance compiles: JSON of a schema, a regular expression, a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

WHITESPACE = r"[ \t]{0,1}\n[ \t]{0,64}|[ \t]{1,64}"
"""What may stand between the parts of a JSON document: as much as laying it out needs, but not white space for ever."""

ANSWER = "answer"


class Grammar(msgspec.Struct, frozen=True):
    """A grammar as llguidance reads it, and the request's `field` that asked for it."""

    text: str
    field: str


def of_schema(schema: dict[str, Any] | bool, field: str) -> Grammar:
    """JSON that a schema describes (see schemas.py for which)."""
    return _whole({"json_schema": json_part(schema)}, field)


def of_regex(regex: str, field: str) -> Grammar:
    """A text that a regular expression matches whole, in the syntax of Rust's regex crate."""
    return _whole({"lark_grammar": f"start: /{slashed(regex)}/"}, field)


def of_lark(grammar: str, field: str) -> Grammar:
    """A text that a Lark grammar derives from `start`, in llguidance's dialect."""
    return _whole({"lark_grammar": grammar}, field)


def of_choice(texts: Sequence[str], field: str) -> Grammar:
    """One of some texts."""
    return _whole({"lark_grammar": "start: " + " | ".join(map(json.dumps, texts))}, field)


def json_part(schema: dict[str, Any] | bool) -> dict[str, Any] | bool:
    """A schema with how its documents are laid out."""
    if isinstance(schema, bool):
        return schema
    return schema | {"x-guidance": {"whitespace_pattern": WHITESPACE}}


def slashed(regex: str) -> str:
    """A regular expression as it stands between slashes."""
    return regex.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")


def _whole(part: dict[str, Any], field: str) -> Grammar:
    return Grammar(msgspec.json.encode({"grammars": [part]}).decode(), field)
