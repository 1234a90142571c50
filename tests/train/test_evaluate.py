"""Bits per byte: every token scored once, against a plain computation; compressors against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from toy import toy_shape

from deepwell.ops.torch_ops import TorchOps
from deepwell.train.corpus import Corpus, Document
from deepwell.train.evaluate import bits_per_byte, compressors, continuation, document_bits, score_windows
from deepwell.train.trainee import IGNORED, Trainee


@settings(max_examples=30, deadline=None)
@given(words=st.integers(0, 120), context=st.sampled_from([2, 8, 16, 64]))
def test_windows_score_every_token_once_with_half_a_window_before(
    tokenizer: Tokenizer, words: int, context: int
) -> None:
    text = " ".join(f"word{n}" for n in range(words))
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, 1]
    scored: list[int] = []
    for inputs, targets in score_windows(tokenizer, text, context):
        assert len(inputs) == len(targets) <= context
        assert inputs[0] == 0
        fresh = [at for at, target in enumerate(targets) if target != IGNORED]
        assert not scored or fresh[0] >= context // 2
        scored += [targets[at] for at in fresh]
    assert scored == ids


def test_bits_of_a_document_in_one_window_are_its_log_probability(tokenizer: Tokenizer) -> None:
    trainee = Trainee(toy_shape(), seed=1)
    text = "def value(x):\n    return x\n"
    ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids, 1]
    ops = TorchOps(torch.tensor([ids[:-1]]))
    logp = trainee.decoder.logits(ops, trainee.decoder.hidden(ops)).double().log_softmax(-1)
    expected = -sum(float(logp[at, token]) for at, token in enumerate(ids[1:])) / math.log(2)
    assert document_bits(trainee, tokenizer, text, 64) == pytest.approx(expected, rel=1e-5)


def test_an_uninformed_model_needs_log2_of_the_vocabulary_per_token(tokenizer: Tokenizer) -> None:
    trainee = Trainee(toy_shape(), seed=1)
    with torch.no_grad():
        trainee.weights["head"].zero_()
    text = "é = 'naïve'\n" * 30
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids) + 1
    expected = tokens * math.log2(384) / len(text.encode())
    assert bits_per_byte(trainee, tokenizer, [Document("a", "code", text)], 32) == pytest.approx(expected, rel=1e-5)


def test_priming_helps_xz_exactly_where_text_was_seen() -> None:
    seen = "".join(f"line {n} of a text with the number {n * n % 1013}\n" for n in range(400))
    fresh = "".join(f"{n * 7919 % 10007} other words {n * n % 997} appear here\n" for n in range(400))
    held = (Document("a.py", "code", seen),)
    primed = compressors(Corpus((Document("b.py", "code", seen),), held, ()))
    unprimed = compressors(Corpus((Document("b.py", "code", fresh),), held, ()))
    assert primed["xz primed"] < 0.05 * primed["xz"]
    assert unprimed["xz primed"] > 0.6 * unprimed["xz"]


def test_continuation_is_greedy_and_stops(tokenizer: Tokenizer) -> None:
    trainee = Trainee(toy_shape(), seed=1)
    made = continuation(trainee, [0, 60, 61], set(), 5)
    ops = TorchOps(torch.tensor([[0, 60, 61, *made[:-1]]]))
    best = trainee.decoder.logits(ops, trainee.decoder.hidden(ops)).argmax(-1).tolist()
    assert best[2:] == made
    assert continuation(trainee, [0, 60, 61], {made[1]}, 5) == made[:2]
