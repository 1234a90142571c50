"""Prompts without turns: a text to continue, and a gap to fill in the middle."""

from __future__ import annotations

from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def render_text(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The text as token ids, after the begin-of-sequence token if the tokenizer has one."""
    return (*_bos(tokenizer), *tokenizer.encode(text))


def render_fim(prefix: str, suffix: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Token ids that ask for the text between `prefix` and `suffix` (order prefix, suffix, middle).

    Raises RequestError if the tokenizer lacks the fill-in-the-middle tokens.
    """
    begin, hole, end = map(tokenizer.special, FIM_TOKENS)
    if begin is None or hole is None or end is None:
        raise RequestError("this model has no fill-in-the-middle tokens, so suffix is not allowed", "suffix")
    return (*_bos(tokenizer), begin, *tokenizer.encode(prefix), hole, *tokenizer.encode(suffix), end)


def fills_gaps(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the fill-in-the-middle tokens."""
    return None not in map(tokenizer.special, FIM_TOKENS)


def _bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.bos is None else (tokenizer.bos,)
