"""Vocabularies of every kind are read by their bytes."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers

from deepwell.chat import Structure
from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.source import of_structure
from deepwell.grammar.vocabulary import Vocabulary
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

TEXT = '{"a": "Größe 深度 🐳\\n", "b": [1, 2.5e3, null]}'
JSON = of_structure(Structure(kind="json", field="f"))


def pieces() -> Tokenizer:
    """A vocabulary as SentencePiece has them: pieces with their blank, and bytes for all else."""
    spelled = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", '"', "▁n", "u", "l", "<tag>"]
    model = tokenizers.models.BPE({text: id for id, text in enumerate(spelled)}, [("▁", "a")], byte_fallback=True)
    plain = tokenizers.Tokenizer(model)
    plain.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    special = {"<s>": 0, "</s>": 1}
    return Tokenizer(plain, special, {0: "<s>", 1: "</s>"}, bos=0, eos=[1])


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), pieces()], ids=["byte-level", "pieces"])
def test_json_of_every_script_is_followed_and_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size + 40)
    constraint = Compiled(JSON, vocabulary).constraint()
    for token in tokenizer.encode(TEXT):
        (place,) = constraint.allowed(())
        assert place.mask is not None
        bits = np.unpackbits(place.mask.view(np.uint8), bitorder="little")
        assert bits[token]
        assert not bits[tokenizer.vocab_size :].any(), "an id beyond the vocabulary"
        assert not any(bits[id] for id in range(tokenizer.vocab_size) if tokenizer.is_special(id))
        constraint.accept([token])
    assert constraint.allowed(())[0].may_end


def test_a_model_without_an_end_is_refused() -> None:
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    with pytest.raises(RequestError, match="no token that ends"):
        Vocabulary(Tokenizer(plain, {}, {}), 1)
