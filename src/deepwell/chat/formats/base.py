"""Prompt formats: how a conversation is laid out for a model that was trained on that layout.

A layout is a list of texts and template tokens; ../render.py makes token ids of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from deepwell.chat.conversation import Call, Conversation, Result, Text, Thought
from deepwell.chat.reading import PlainReader, Reader
from deepwell.weights.tokenizer import Tokenizer


class Token(msgspec.Struct, frozen=True):
    """A template token by its spelling. One that `may_be_text` is written as text for a model that lacks it."""

    spelling: str
    may_be_text: bool = False


BOS = Token("<｜begin▁of▁sentence｜>")
EOS = Token("<｜end▁of▁sentence｜>")
"""Begin and end of a sequence. Where they are spelled otherwise, what the tokenizer names stands for them."""

USER = Token("<｜User｜>")
ASSISTANT = Token("<｜Assistant｜>")

CHAT_AND_REASONER = {"deepseek-chat": False, "deepseek-reasoner": True}
"""What DeepSeek's API calls one model that answers at once and thinks first."""

Layout = Iterator[str | Token]


def plain_reader(conversation: Conversation, tokenizer: Tokenizer) -> Reader:
    """Of formats without reasoning and tools."""
    return PlainReader()


Parts = tuple[str | Token, ...]


class CallSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """How a format writes the calls of a turn, for grammars: what stands before the first and after the last, between
    two, and before and after the arguments of one. `opened` is what the prompt gives of a call that must come.

    Arguments are JSON, or else `tags`: for each, `parameter` up to its name, and `parameter_end` behind `</`; `nothing`
    stands for none. What `spelled` has, as regular expressions, opens a call even in letters, for a lenient reader.
    """

    head: Callable[[str], Parts]
    opened: Callable[[Conversation], Parts]
    begin: Parts = ()
    tail: Parts = ()
    between: Parts = ()
    end: Parts = ()
    tags: bool = False
    parameter: Parts = ()
    parameter_end: Parts = ()
    nothing: Parts = ()
    spelled: tuple[str, ...] = ()


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt format.

    `marks` are the template tokens a tokenizer must have for it; `ends` those that end an answer besides the
    tokenizer's own. `layout` gives the prompt, and raises RequestError for what the format cannot say. `reader` reads
    the answer to that prompt, knowing how it ended (in an open thought, in the middle of a call, ...).
    `thinks`: "never", "always", or "choice" if a conversation may say. `tools`: whether the format can offer tools.
    `developers`: whether it has words for what developers say, which elsewhere is a system text. `interleaves`:
    whether system texts stay where they were said, and are not moved to the front. `efforts`: whether it knows
    degrees of thinking. `namespaces`: whether names of functions may be `space::name`. `foreign`: whether `layout`
    runs a stranger's code, which may take a second and must not run where others wait. `thought_tokens` is how long
    an answer that thinks may be where nobody says, None for as long as fits. `names` are those that DeepSeek's API
    has for such models, and whether a model that may choose thinks under them. `parts` are the kinds of part that
    its messages may have. `model_types` are the `model_type`s of config.json whose checkpoints were trained on it
    if they bring no template. `calls` is how it writes calls.
    """

    name: str
    marks: tuple[Token, ...]
    layout: Callable[[Conversation], Layout]
    reader: Callable[[Conversation, Tokenizer], Reader] = plain_reader
    ends: tuple[Token, ...] = ()
    thinks: str = "never"
    tools: bool = False
    developers: bool = False
    interleaves: bool = False
    efforts: bool = False
    namespaces: bool = False
    foreign: bool = False
    thought_tokens: int | None = None
    names: dict[str, bool] = {}
    parts: tuple[type, ...] = (Text, Thought, Call, Result)
    model_types: tuple[str, ...] = ()
    calls: CallSyntax | None = None


def lacks(format: Format, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The template tokens that `format` cannot do without and `tokenizer` does not have."""
    needed = (mark for mark in format.marks if mark not in (BOS, EOS) and not mark.may_be_text)
    return tuple(mark.spelling for mark in needed if tokenizer.special(mark.spelling) is None)
