"""What sampling costs: milliseconds of a step's choices in a large vocabulary, in numpy (the tests' reference) and C++.

    python benchmarks/sampling.py [--vocab 129280] [--threads 2]

Medians over rows of random logits that are as peaked as a language model's. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell.ops import native
from deepwell.ops.sampling import Ask, SamplingRules

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))
import sampling_reference

CASES = {
    "greedy": (SamplingRules(temperature=0.0), None),
    "temperature 0.7": (SamplingRules(temperature=0.7), None),
    "top_p 0.95": (SamplingRules(top_p=0.95), None),
    "temperature 0.7, top_p 0.95": (SamplingRules(temperature=0.7, top_p=0.95), None),
    "top_k 50": (SamplingRules(top_k=50), None),
    "top_p 0.95, 5 log-probabilities": (SamplingRules(top_p=0.95), 5),
}
ROWS = (1, 16)
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab", type=int, default=129_280)
    parser.add_argument("--threads", type=int, default=native.threads())
    options = parser.parse_args()
    native.set_threads(options.threads)
    logits_LV = logits(max(ROWS), options.vocab)
    print(f"{native.isa()}, {native.threads()} threads, {options.vocab:,} tokens; milliseconds of a step's sampling")
    print("| rules | " + " | ".join(f"{rows} rows: numpy | C++" for rows in ROWS) + " |")
    print("|---" * (1 + 2 * len(ROWS)) + "|")
    for name, (rules, logprobs) in CASES.items():
        cells = [timed(partial(by, logits_LV[:rows], rules, logprobs)) for rows in ROWS for by in (in_numpy, in_native)]
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


def logits(rows: int, vocab: int) -> NDArray[np.float32]:
    """A steep head over a broad rest: the likeliest token has about a third, a nucleus of 0.95 some hundred tokens."""
    rng = np.random.default_rng(0)
    logits_LV = rng.standard_normal((rows, vocab)) * 2.0
    for row in logits_LV:
        row[rng.permutation(vocab)[:1000]] += 16.0 - 1.5 * np.log(np.arange(1, 1001))
    return logits_LV.astype(np.float32)


def timed(call: Callable[[int], float]) -> float:
    """The median of several rounds, in milliseconds; a call takes a seed and returns its seconds."""
    return statistics.median(call(seed) for seed in range(ROUNDS)) * 1e3


def in_native(rows_LV: NDArray[np.float32], rules: SamplingRules, logprobs: int | None, seed: int) -> float:
    vocab, points = rows_LV.shape[1], np.random.default_rng(seed).random(len(rows_LV)).tolist()
    asks = [
        Ask(sampler=native.sampler(rules, vocab, []), rows=1, points=(point,), logprobs=logprobs) for point in points
    ]
    begun = time.perf_counter()
    native.choose(rows_LV, asks)
    return time.perf_counter() - begun


def in_numpy(rows_LV: NDArray[np.float32], rules: SamplingRules, logprobs: int | None, seed: int) -> float:
    vocab, points = rows_LV.shape[1], np.random.default_rng(seed).random(len(rows_LV)).tolist()
    samplers = [sampling_reference.ReferenceSampler(rules, vocab, []) for _ in points]
    begun = time.perf_counter()
    for row_V, sampler, point in zip(rows_LV, samplers, points, strict=True):
        ask = Ask(sampler=None, rows=1, points=(point,), logprobs=logprobs)
        sampling_reference.choose(row_V[None], ask, sampler)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
