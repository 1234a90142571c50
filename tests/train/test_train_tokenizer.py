"""The tokenizer: any text comes back byte for byte, and plain transformers reads the same files the same way."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deepwell.chat import Conversation, Message, detect, find_format, render_chat, trained_to_chat
from deepwell.errors import ConfigError
from deepwell.train.corpus import Corpus
from deepwell.train.tokenizer import (
    BOS,
    END_THINK,
    EOS,
    PAD,
    RESERVED,
    THINK,
    SpecialIds,
    prompt_ids,
    save_tokenizer,
    special_tokens,
    train_tokenizer,
)
from deepwell.weights.tokenizer import Tokenizer as Served

SNIPPET = "def f(x, y=1234567):\n    return {'é': x[0], '你好': y}  # ok\n\n\n\tend\r\n  "


def test_special_tokens_have_the_first_ids_and_deepseek_spellings(tokenizer: Tokenizer) -> None:
    names = special_tokens()
    assert len(names) == len(set(names)) == RESERVED
    assert [tokenizer.token_to_id(name) for name in names] == list(range(RESERVED))
    assert names[:3] == [BOS, EOS, PAD]
    assert {THINK, END_THINK, "<｜User｜>", "<｜Assistant｜>", "<｜fim▁hole｜>", "<｜tool▁sep｜>"} <= set(names)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    assert len({token for token in tokenizer.get_vocab() if len(token) == 1}) == 256


def test_transformers_reads_the_same_tokens_and_the_v3_conversation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 64, chats=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(SNIPPET)["input_ids"] == [SpecialIds(tokenizer).bos, *tokenizer.encode(SNIPPET).ids[1:]]
    assert theirs.decode(theirs(SNIPPET)["input_ids"], skip_special_tokens=True) == SNIPPET
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.model_max_length) == (BOS, EOS, PAD, 64)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    said = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert said == f"{BOS}Be brief.<｜User｜>Hi<｜Assistant｜>Hello.{EOS}<｜User｜>Bye<｜Assistant｜>"
    ours = Conversation(messages=tuple(Message.of(turn["role"], turn["content"]) for turn in turns))  # type: ignore[arg-type]
    served = Served.load(tmp_path)
    assert (
        list(render_chat(ours, served, detect(served)))
        == theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    )
    assert list(render_chat(Conversation(messages=ours.messages[1:2]), served, detect(served))) == prompt_ids(
        "Hi", tokenizer
    )
    assert find_format("deepseek-v3", served) == detect(served)


def test_a_pretrained_model_does_not_claim_to_chat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 64)
    served = Served.load(tmp_path)
    assert not trained_to_chat(detect(served), served)
    save_tokenizer(tokenizer, tmp_path, 64, chats=True)
    served = Served.load(tmp_path)
    assert trained_to_chat(detect(served), served)


def test_special_tokens_are_those_of_every_model_trained_so_far(tokenizer: Tokenizer) -> None:
    """Their ids are in checkpoints, so neither spelling nor order may change with what chat/ knows."""
    named = ["begin▁of▁sentence", "end▁of▁sentence", "▁pad▁", "fim▁hole", "fim▁begin", "fim▁end", "User", "Assistant"]
    of_tools = [f"{what}▁{side}" for what in ("calls", "call", "outputs", "output") for side in ("begin", "end")]
    spelled = [*(f"<｜{name}｜>" for name in named), "<|EOT|>", *(f"<｜tool▁{name}｜>" for name in (*of_tools, "sep"))]
    assert special_tokens()[:20] == [*spelled, "<think>", "</think>"]


def test_the_split_is_deepseek_v3s(tokenizer: Tokenizer) -> None:
    assert tokenizer.pre_tokenizer is not None
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("x.append(y12345)\n    z")]
    assert pieces == ["x", ".append", "(y", "123", "45", ")Ċ", "ĠĠĠ", "Ġz"]


def test_training_twice_gives_the_same_tokens(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert train_tokenizer([d.text for d in corpus.train], 384).to_str() == tokenizer.to_str()


def test_a_vocabulary_that_cannot_be_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="304 is the least"):
        train_tokenizer(["text"], 300)
    with pytest.raises(ConfigError, match="too large"):
        train_tokenizer(["few words"], 1000)
