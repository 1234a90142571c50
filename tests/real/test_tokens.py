"""SmolLM2's own tokens: as llama.cpp makes them of its file, and as the tokenizer was trained."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from recorded import expected, fingerprint
from smollm import odd_strings
from tokenizers import models, pre_tokenizers

from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.folder import tokenizer_files
from deepwell.weights.gguf.vocabulary import tokenizer_metadata
from deepwell.weights.tokenizer import Tokenizer

LOST = "\x04\x06\x13\x14\x16\x1d"
"""Control characters that the vocabulary has no token for."""


def test_odd_strings_have_the_tokens_of_llama_cpp(tokenizer: Tokenizer) -> None:
    wrong = [
        text
        for text, wanted in zip(odd_strings(), expected()["odd"], strict=True)
        if fingerprint(tokenizer.encode(text)) != wanted
    ]
    assert wrong == []


def test_odd_strings_have_the_tokens_of_the_tokenizer_that_was_trained(file: Path, tokenizer: Tokenizer) -> None:
    """Digits one by one, then GPT-2's words by the library's own code: no expression of ours is in it."""
    keys = GgufCheckpoint(file).metadata
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    trained = tokenizers.Tokenizer(
        models.BPE({text: id for id, text in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    )
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    strings = odd_strings()
    assert [tokenizer.encode(text) for text in strings] == [trained.encode(text).ids for text in strings]


def test_text_is_kept_but_for_what_has_no_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.notes) == 1
    assert "no token for 8 of the 256 bytes (0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xf1, 0xf2)" in tokenizer.notes[0]
    for text in odd_strings():
        assert tokenizer.decode(tokenizer.encode(text)) == text.translate(dict.fromkeys(map(ord, LOST)))


def test_a_folder_made_of_the_file_and_a_file_made_of_that(file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Both ways keep the tokens, and the name of how they are split."""
    source = GgufCheckpoint(file)
    for name, content in tokenizer_files(source, tokenizer).items():
        (tmp_path / name).write_bytes(content)
    from_folder = Tokenizer.load(tmp_path)
    strings = odd_strings()
    assert [from_folder.encode(text) for text in strings] == [tokenizer.encode(text) for text in strings]
    assert (from_folder.bos, from_folder.opening, from_folder.ends) == (tokenizer.bos, (), tokenizer.ends)
    assert (from_folder.template, from_folder.notes) == (tokenizer.template, tokenizer.notes)
    again = tokenizer_metadata(tmp_path, source.config.vocab)
    kept = ("pre", "tokens", "merges", "add_bos_token", "bos_token_id", "eos_token_id", "padding_token_id")
    for key in (f"tokenizer.ggml.{name}" for name in kept):
        assert again[key] == source.metadata[key], key
    assert again["tokenizer.ggml.token_type"].tolist() == source.metadata["tokenizer.ggml.token_type"].tolist()
