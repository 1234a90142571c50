"""Prompts without turns: a text to continue, and a gap to fill in the middle."""

from __future__ import annotations

from collections.abc import Sequence

from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

FIM_TOKENS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<｜fim_begin｜>", "<｜fim_hole｜>", "<｜fim_end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
)
"""Before the prefix, before the suffix, before the middle: Coder V1, V2 and all later models; Coder V1 as its first
pages spell it; Qwen's vocabulary, in which some distilled models live."""


def render_text(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The text as token ids, after the begin-of-sequence token if the tokenizer puts one there.

    Nobody is quoted in such a text: what spells a special token is one.
    """
    ids = tokenizer.encode(text, controls=True)
    return (*opening(ids, tokenizer), *ids)


def opening(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """What is put in front of a text of these tokens: the begin-of-sequence token, unless it begins with it."""
    begin = tokenizer.opening
    return () if tuple(ids[: len(begin)]) == begin else begin


def render_fim(prefix: str, suffix: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids that ask for the text between `prefix` and `suffix` (order prefix, suffix, middle).

    Raises RequestError if the tokenizer lacks the fill-in-the-middle tokens.
    """
    marks = _marks(tokenizer)
    if marks is None:
        raise RequestError("this model has no fill-in-the-middle tokens, so suffix is not allowed", "suffix")
    return (*tokenizer.opening, *around_gap(tokenizer.encode(prefix), tokenizer.encode(suffix), marks))


def around_gap(prefix: Sequence[int], suffix: Sequence[int], marks: tuple[int, int, int]) -> tuple[int, ...]:
    """Token ids before the middle, between the ids of `FIM_TOKENS`."""
    begin, hole, end = marks
    return (begin, *prefix, hole, *suffix, end)


def fills_gaps(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the fill-in-the-middle tokens."""
    return _marks(tokenizer) is not None


def _marks(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    for spellings in FIM_TOKENS:
        begin, hole, end = map(tokenizer.special, spellings)
        if begin is not None and hole is not None and end is not None:
            return begin, hole, end
    return None
