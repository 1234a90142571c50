"""Tokens that a vocabulary was given beside those it learned, and the two questions that each answers: is it shown in
an answer, and what does a text mean that spells it.

A *special* token is not shown. A *tag* is: it is text that happens to be one token, such as `<row>` of a fine-tune.
Most tags may be spelled by anybody; one that has a part in the layout of a conversation, such as `</think>`, is a
*control* like the special tokens, and a message that spells it means its letters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from deepwell.errors import CheckpointError, shown

MAX_ADDED_CHARACTERS, MAX_ADDED_IN_ALL = 1024, 1 << 20
"""Of one added token. Those of published models have a few dozen, and conversations are searched for all of them."""

_TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>")
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>")
_MORE_TURN_ENDS = ("<end_of_turn>", "<turn|>", "<end_of_utterance>", "[EOT]", "<|tool_response>", "[e~[")
_GAP_ENDS = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>")
_MORE_GAP_ENDS = ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
ENDS = frozenset((*_TEXT_ENDS, *_TURN_ENDS, *_MORE_TURN_ENDS, *_GAP_ENDS, *_MORE_GAP_ENDS))
"""What ends a text, a turn or the middle of a gap, in all vocabularies that are known (llama.cpp has the same list)."""

_NO_ENDS = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}, {"<|call|>", "<|flush|>"})),
    ("</s>", ({"<|tool_response>"}, {"<|plamo:eos|>"})),
)
"""Names that mean something else in a vocabulary that has all of one of these."""

_MARKUP = re.compile(
    r"<[|｜].*|.*[|｜]>|｜.*｜|\[/?[A-Z_]+\]|</?(?:s|think|user|human|assistant|bot|system|developer|tool\w*|function\w*)>",
    re.DOTALL,
)
"""The shapes that the marks of conversations have, whether or not the template that came with a model spells them."""


WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""White space as Unicode and the tokenizers library have it; Python's own has four control characters more."""


class Edges(msgspec.Struct, frozen=True):
    """How a text spells an added token: whether the white space in front of it or behind it is a part of it, whether it
    must stand alone as a word, and whether it is looked for after those that are not `normalized`."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Tag(str):
    """The text of a tag in an answer: text to whoever does not look for the token, whose `id` it is."""

    __slots__ = ("id",)

    id: int

    def __new__(cls, text: str, id: int) -> Tag:
        made = super().__new__(cls, text)
        made.id = id
        return made


Marked = str | int
"""A piece of an answer: text, which may be a `Tag`, or the id of a special token that stands between two texts."""


def token_of(part: Marked) -> int | None:
    """The added token that a piece of an answer is; None if it is other text."""
    return part.id if isinstance(part, Tag) else part if isinstance(part, int) else None


def is_text(added: str) -> bool:
    """Whether an added token is a part of words: one character or white space, as in DeepSeek-Coder's vocabulary."""
    return len(added) == 1 or added.isspace()


def is_control(tag: str, template: str | None) -> bool:
    """Whether a tag has a part in the layout of conversations, for a model that brings `template`."""
    return tag in ENDS or _MARKUP.fullmatch(tag) is not None or (template is not None and tag in template)


def named_ends(added: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of those that end an answer by their name."""
    other = {name for name, vocabularies in _NO_ENDS for has in vocabularies if has <= added.keys()}
    return tuple(id for text, id in added.items() if text in ENDS and text not in other)


def read_added(document: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The added tokens of a tokenizer.json and their ids. CheckpointError names `path` if they are none."""
    try:
        added = msgspec.convert(document.get("added_tokens") or [], list[_Added])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: added_tokens: {error}") from error
    for token in added:
        if token.id < 0 or not token.content:
            raise CheckpointError(f"{path}: added_tokens: id {token.id} needs a non-negative id and a content")
    return {token.content: token.id for token in added}


def kinds(document: Mapping[str, Any], added: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The special tokens and the tags of a tokenizer.json whose `added` tokens were read."""
    hidden = {token["content"] for token in document.get("added_tokens") or [] if token.get("special")}
    special = {text: id for text, id in added.items() if text in hidden and not is_text(text)}
    return special, {text: id for text, id in added.items() if text not in hidden and not is_text(text)}


def edges_of(document: Mapping[str, Any]) -> dict[str, Edges]:
    """Those of the added tokens that have any; flags that are no truth values are none."""
    found = {}
    for token in document.get("added_tokens") or []:
        found[token["content"]] = Edges(**{name: token.get(name) is True for name in Edges.__struct_fields__})
    return {text: edges for text, edges in found.items() if edges != Edges()}


def check_lengths(added: Iterable[str]) -> None:
    """CheckpointError for an added token that is longer than one can be, or for more of them than there can be."""
    total = 0
    for text in added:
        total += len(text)
        if total > MAX_ADDED_IN_ALL:
            raise CheckpointError(f"the tokenizer's added tokens have more than {MAX_ADDED_IN_ALL} characters in all")
        if len(text) > MAX_ADDED_CHARACTERS:
            raise CheckpointError(
                f"the tokenizer's added token {shown(text)} has {len(text)} characters; allowed are "
                f"{MAX_ADDED_CHARACTERS}"
            )


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class Finder:
    """Finds added tokens in a text: of those that begin first, the longest, with the white space that is theirs.

    The tokenizers library looks for them, in time that does not grow with their number.
    """

    def __init__(self, added: Mapping[str, int], edges: Mapping[str, Edges]) -> None:
        self._ids = tuple(added.values())
        self._firsts = {text[0] for text in added}
        self._library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
        ways = ((text, msgspec.structs.asdict(edges.get(text, Edges()))) for text in added)
        self._library.add_tokens([tokenizers.AddedToken(text, **found) for text, found in ways])

    def find(self, text: str) -> Collection[tuple[int, int, int]]:
        """(begin, end, id) of each token that `text` spells, in order."""
        if not any(first in text for first in self._firsts):
            return ()
        # of the library's ways to encode, only the one for many texts lets go of the interpreter's lock
        (encoding,) = self._library.encode_batch([text], add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [(begin, end, self._ids[at - 1]) for at, (begin, end) in places if at]
