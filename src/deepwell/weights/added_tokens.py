"""Tokens that a vocabulary was given beside those it learned, and the two questions that each answers: is it shown in
an answer, and what does a text mean that spells it.

A *special* token is not shown. A *tag* is: it is text that happens to be one token, such as `<row>` of a fine-tune.
Most tags may be spelled by anybody; one that has a part in the layout of a conversation, such as `</think>`, is a
*control* like the special tokens, and a message that spells it means its letters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

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


class Finder:
    """Finds added tokens in a text: of those that begin first, the longest.

    The tokenizers library looks for them, in time that does not grow with their number.
    """

    def __init__(self, added: Mapping[str, int]) -> None:
        self._ids = tuple(added.values())
        self._firsts = {text[0] for text in added}
        self._library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
        self._library.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])

    def find(self, text: str) -> Collection[tuple[int, int, int]]:
        """(begin, end, id) of each token that `text` spells, in order."""
        if not any(first in text for first in self._firsts):
            return ()
        # of the library's ways to encode, only the one for many texts lets go of the interpreter's lock
        (encoding,) = self._library.encode_batch([text], add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [(begin, end, self._ids[at - 1]) for at, (begin, end) in places if at]
