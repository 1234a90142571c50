"""Speculation changes no bit of any answer: the embedded model, alone, among others, in chunks, hit and preempted."""

import functools

import cases
import numpy as np
import pytest
import torch

from deepwell.engine.core import EngineConfig, EngineCore
from deepwell.engine.types import Request, SamplingParams
from deepwell.loading.runner import NativeRunner
from deepwell.model.decoder import Decoder
from deepwell.model.params import param_specs
from deepwell.ops.base import Batch
from deepwell.ops.torch_ops import TorchOps
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.tokenizer import Tokenizer

CODE = """class Node:
    def __init__(self, left, right):
        self.left = left
        self.right = right

    def walk(self):
        if self.left is not None:
            yield from self.left.walk()
        yield self
        if self.right is not None:
            yield from self.right.walk()

"""


@functools.cache
def checkpoint() -> Checkpoint:
    return Checkpoint(embedded_path())


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(embedded_path())


def build() -> NativeRunner:
    return NativeRunner(checkpoint(), "auto", blocks=128, mtp=True)


@functools.cache
def targets() -> tuple[Request, ...]:
    """Code cut at several places, greedily and by seeded sampling, so that guesses are often right and often wrong."""
    tokens = tokenizer().encode(CODE * 3)
    assert len(tokens) > 150
    found = []
    for index, length in enumerate((3, 63, 64, 65, 129, 150)):
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(max_tokens=80, temperature=temperature, seed=index, ignore_eos=True, logprobs=3)
            found.append(Request(id=f"{length}-{temperature}", prompt=tuple(tokens[:length]), sampling=sampling))
    return tuple(found)


@functools.cache
def plain() -> dict[str, cases.Answer]:
    return cases.alone(lambda: NativeRunner(checkpoint(), "auto", blocks=128), tokenizer(), targets())


@pytest.mark.parametrize(("mode", "draft_tokens"), [("lookup", 4), ("mtp", 1), ("mtp", 3), ("auto", 2)])
def test_same_bits(mode: str, draft_tokens: int) -> None:
    options = {"speculate": mode, "draft_tokens": draft_tokens}
    ways = {
        "alone": cases.alone(build, tokenizer(), targets(), **options),
        "chunks of 7": cases.alone(build, tokenizer(), targets(), 7, **options),
        "among others": cases.among(build, tokenizer(), targets(), 12, **options),
        "after a prefix hit": cases.after_prefix_hit(build, tokenizer(), targets(), **options),
        "after preemption": cases.after_preemption(build, tokenizer(), targets(), blocks=9, **options),
    }
    for way, answers in ways.items():
        assert cases.differing_bits(answers, plain()) == 0, way


@pytest.mark.parametrize("mode", ["lookup", "mtp"])
def test_guesses_are_accepted(mode: str) -> None:
    """The comparison above compares something: many guesses are right, and many are wrong."""
    core = EngineCore(build(), tokenizer(), EngineConfig(speculate=mode, draft_tokens=2))
    cases.serve(core, targets())
    stats = core.stats()
    assert 0.2 * stats.drafted[mode] < stats.accepted[mode] < 0.95 * stats.drafted[mode]
    assert stats.accepted[mode] > 100


def one_sequence(tokens: np.ndarray, start: int, end: int) -> Batch:
    rows = np.arange(end - start, dtype=np.int32)
    pages = np.arange(-(-end // 64), dtype=np.int32)[None]
    return Batch(tokens[start:end], rows + start, np.zeros_like(rows), pages, rows)


def test_the_module_predicts_what_the_decoder_says() -> None:
    """Native module against the decoder on torch, and the same bits in pieces as at once."""
    tokens = np.array(tokenizer().encode(CODE * 3)[:140], np.int32)
    last = len(tokens) - 1
    runner = build()
    _, x_ND = runner.run_with_states(one_sequence(tokens, 0, last))
    logits, states = runner.draft_logits(one_sequence(tokens[1:], 0, last), x_ND)
    pieces = [
        runner.draft_logits(one_sequence(tokens[1:], a, b), x_ND[a:b])
        for a, b in ((0, 50), (50, 51), (51, 128), (128, last))
    ]
    assert np.array_equal(np.concatenate([part for part, _ in pieces]), logits)
    assert np.array_equal(np.concatenate([part for _, part in pieces]), states)

    config = checkpoint().config
    weights = {p.key: torch.from_numpy(checkpoint().whole(p)) for p in param_specs(config, mtp=True)}
    decoder = Decoder(config, weights)
    batch = torch.from_numpy(tokens.astype(np.int64))[None]
    ops = TorchOps(batch[:, :last])
    with torch.no_grad():
        following = TorchOps(batch[:, 1:]).embed(weights["embed"])
        own, wanted = decoder.predict_ahead(ops, decoder.hidden(ops), following)
        _, again = decoder.predict_ahead(ops, own, following, again=True)
    assert np.abs(logits - wanted.numpy()).max() < 0.02
    assert np.abs(states - own.numpy()).max() < 0.02
    repeated, _ = runner.draft_logits(one_sequence(tokens[1:], 0, last), states, again=True)
    assert np.abs(repeated - again.numpy()).max() < 0.05
