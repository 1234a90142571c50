"""A model's tokens as llguidance knows them: by their bytes, whatever kind of vocabulary they come from."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import llguidance
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer


class Vocabulary:
    """The tokens of a `tokenizer`, padded to the `size` V of the logits; `ends` are those that end an answer.

    Special tokens and the tags that lay out conversations are no text: a grammar speaks of them by id or not at all.
    Ids that are unused are never allowed. Raises RequestError if no token ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Iterable[int] = ()) -> None:
        self.size = size
        self.ends = frozenset((*tokenizer.ends, *ends))
        if not self.ends:
            raise RequestError("this model has no token that ends an answer, so its answers cannot keep to a grammar")
        self.special = tokenizer.special
        tokens = _Tokens(tokenizer, size, self.ends)
        self.tokens = llguidance.LLTokenizer(tokens, n_vocab=size, eos_token=sorted(self.ends))
        is_text = np.array([len(text) > 0 for text in tokens.tokens])
        is_text[tokens.special_token_ids] = False
        bits = np.packbits(np.pad(is_text, (0, -size % 32)), bitorder="little")
        self.text_mask: NDArray[np.uint32] = bits.view(np.uint32)
        """All tokens that are text, as a mask (see Allowed)."""


class _Tokens(llguidance.TokenizerWrapper):
    """What llguidance asks of a tokenizer. It encodes texts only to see which tokens a grammar forces, which nobody
    asks here."""

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Collection[int]) -> None:
        known = range(min(tokenizer.vocab_size, size))
        self.eos_token_id = min(ends)
        self.bos_token_id = tokenizer.bos
        self.tokens = [*map(tokenizer.token_bytes, known), *[b""] * (size - len(known))]
        self.special_token_ids = [id for id in known if id in ends or tokenizer.is_control(id)]
        self.is_tokenizer_wrapper = True
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
