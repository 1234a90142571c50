"""A tiny tokenizer with the special tokens of V4.1, and answers read whole or in parts."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from deepwell.chat import Conversation
from deepwell.chat.formats import FORMATS
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reader, Reasoning
from deepwell.weights.tokenizer import Tokenizer
from fakes import SPECIALS, write_tiny_tokenizer

TASKS = ("action", "query", "authority", "domain", "title", "read_url")
DSML_SPECIALS = (*SPECIALS, "｜DSML｜", "<｜latest_reminder｜>", "<｜System｜>", *(f"<｜{task}｜>" for task in TASKS))
Read = tuple[str, str, list[tuple[str, str]]]
"""Reasoning, content, and calls as name and arguments."""


@functools.cache
def tokenizer_json() -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder), 400, DSML_SPECIALS)
        return (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")


@functools.cache
def dsml_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(write_tiny_tokenizer(Path(folder), 400, DSML_SPECIALS))


def reader_of(format: str, conversation: Conversation) -> Reader:
    return FORMATS[format].reader(conversation, dsml_tokenizer())


def read(reader: Reader, answer: Sequence[str | int], borders: Sequence[int] | None = None) -> Read:
    """What a reader gives of an answer that is cut at `borders`; without them, at each of its parts."""
    places = range(len(answer) + 1) if borders is None else sorted({0, *borders, len(answer)})
    pieces = [piece for start, end in pairwise(places) for piece in reader.push(answer[start:end])]
    return joined([*pieces, *reader.finish()])


def joined(pieces: Sequence[Piece]) -> Read:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, CallBegin):
            calls.append((piece.name, ""))
        elif isinstance(piece, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    return reasoning, content, calls


def marked(text: str, ids: Sequence[str] = ("｜DSML｜", "</think>")) -> list[str | int]:
    """An answer as the engine marks it, a character at a time: the tokens that mean something in it as ids."""
    tokenizer, parts, at = dsml_tokenizer(), list[str | int](), 0
    while at < len(text):
        special = next((spelling for spelling in ids if text.startswith(spelling, at)), None)
        id = None if special is None else tokenizer.special(special)
        parts.append(text[at] if id is None else id)
        at += 1 if special is None else len(special)
    return parts


def half_marked(text: str) -> list[str | int]:
    """The same of a model that writes the mark of DSML as text."""
    return marked(text, ("</think>",))
