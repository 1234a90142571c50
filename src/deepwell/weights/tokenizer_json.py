"""What a tokenizer.json may ask of the library that runs it: a stranger wrote it, and the library trusts it.

A normaliser can make gigabytes of a word, an expression can try for hours, and some values make the library panic,
which is no Exception in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from typing import Any

import msgspec
import tokenizers

from deepwell.errors import CheckpointError, shown

MOST_GROWTH = 16
"""How many times as long normalising may make a text."""
MOST_PARTS, MOST_EXPRESSION, MOST_PREPENDED = 64, 16_384, 64

_KEEP_LENGTH = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents")
"""Normalisers that make a text longer by a small factor at most, however often they run."""
_SPLITTERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "WhitespaceSplit", "UnicodeScripts")
_PROBES = (
    "a" * 64 + "!",
    " \n\t" * 16,
    "0123456789" * 4,
    "Größe 深度 🐳 e\u0301",
    "<|a|></b>{}[]()'\"\\",
    "\x00\x7f\ufffd",
)


class Pipeline(msgspec.Struct):
    """What is done to a text before merges apply, of a whole tokenizer.json."""

    normalizer: Any = None
    pre_tokenizer: Any = None


@contextmanager
def faults(kind: type[Exception], what: str) -> Iterator[None]:
    """Raises whatever the library fails with as a `kind`, panics included."""
    try:
        yield
    except kind:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise kind(f"{what}: {error}") from None
        raise


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise CheckpointError for what would take more time or memory than reading a text should."""
    growth = 1
    for part in _parts(pipeline.normalizer, "normalizer", "normalizers"):
        growth *= _growth(part)
        if growth > MOST_GROWTH:
            raise CheckpointError(
                f"the tokenizer's normalizer can make a text more than {MOST_GROWTH} times as long, which is the most "
                "allowed"
            )
    levels = 0
    for part in _parts(pipeline.pre_tokenizer, "pre_tokenizer", "pretokenizers"):
        _check_type(part, "pre_tokenizer", _SPLITTERS)
        _expression(part)
        levels += part["type"] == "ByteLevel"
    if levels > 1:
        raise CheckpointError(
            f"the tokenizer's pre_tokenizer writes bytes as characters {levels} times; once is enough"
        )


def made(document: str) -> tokenizers.Tokenizer:
    """The library's tokenizer of a checked document, after it has read a few texts. Raises CheckpointError.

    An expression that tries all ways to part a text, such as (a+)+$, runs into the library's own limit there.
    """
    with faults(CheckpointError, "not a tokenizer"):
        found = tokenizers.Tokenizer.from_str(document)
    with faults(CheckpointError, "the tokenizer fails on a text"):
        for text in _PROBES:
            found.encode(text, add_special_tokens=False)
    return found


def shrinkage(normalizer: tokenizers.normalizers.Normalizer | None) -> int:
    """How many times as short a text's bytes can be after normalising; 0 if that is not known."""
    if normalizer is None:
        return 1
    parts = _parts(msgspec.json.decode(normalizer.__getstate__()), "normalizer", "normalizers")
    # a composed character has at least a third of the bytes that it is composed of
    kinds = {part["type"] for part in parts if part["type"] != "Prepend" and not _lengthens(part)}
    return 1 if not kinds else 3 if kinds == {"NFC"} else 0


def _lengthens(part: Mapping[str, Any]) -> bool:
    """Whether a normaliser puts no shorter text in the place of one, as for SentencePiece's blanks."""
    if part["type"] != "Replace" or (text := part["pattern"].get("String")) is None:
        return False
    return len(part["content"].encode()) >= len(text.encode())


def _parts(value: Any, key: str, within: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre_tokenizer, sequences taken apart."""
    found: list[Mapping[str, Any]] = []
    waiting = [] if value is None else [value]
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise CheckpointError(f"the tokenizer's {key} has {shown(part)}, which names no type")
        if part["type"] == "Sequence":
            inner = part.get(within)
            waiting = [*(inner if isinstance(inner, list) else []), *waiting]
        else:
            found.append(part)
        if len(found) + len(waiting) > MOST_PARTS:
            raise CheckpointError(f"the tokenizer's {key} has more than the {MOST_PARTS} parts allowed")
    return found


def _check_type(part: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    if part["type"] not in allowed:
        raise CheckpointError(
            f"the tokenizer's {key} has a part of type {shown(part['type'])}; supported are {', '.join(allowed)}"
        )


def _growth(part: Mapping[str, Any]) -> int:
    """How many times as long a normaliser can make a text, but for what it puts in front."""
    _check_type(part, "normalizer", (*_KEEP_LENGTH, "Prepend", "Replace"))
    if part["type"] == "Prepend":
        if not isinstance(text := part.get("prepend"), str) or len(text) > MOST_PREPENDED:
            raise CheckpointError(f"the tokenizer's normalizer prepends more than {MOST_PREPENDED} characters")
        return 1
    if part["type"] != "Replace":
        return 1
    content, expression = part.get("content"), _expression(part)
    pattern = part["pattern"].get("String") if expression is None else "x"  # which an expression may match
    if not isinstance(content, str) or not isinstance(pattern, str) or not pattern:
        raise CheckpointError("the tokenizer's normalizer has a Replace without a text to replace, or to put there")
    return max(1, ceil(len(content) / len(pattern)))


def _expression(part: Mapping[str, Any]) -> str | None:
    """The expression of a part, None if it has none. Raises CheckpointError for one that is no text or too long."""
    pattern = part.get("pattern")
    if part["type"] not in ("Split", "Replace") or (isinstance(pattern, dict) and "Regex" not in pattern):
        return None
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(text, str) or len(text) > MOST_EXPRESSION:
        raise CheckpointError(
            f"the tokenizer has an expression that is no text of {MOST_EXPRESSION} characters at most"
        )
    return text
