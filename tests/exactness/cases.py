"""Ways of serving the same requests that must not change one bit of their answers.

Used by the tests and by benchmarks/exactness.py, which prints the count of differing bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from deepwell.engine.core import EngineConfig, EngineCore
from deepwell.engine.runner import Runner
from deepwell.engine.types import Request, SamplingParams
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.weights.tokenizer import Tokenizer

Answer = list[tuple[int, float]]
"""Each token with its log-probability."""
Build = Callable[[], Runner]


def requests(vocab: int, lengths: Sequence[int], answer_tokens: int, seed: int = 0) -> list[Request]:
    """Random prompts, answered greedily and by seeded sampling in turn."""
    rng = np.random.default_rng(seed)
    return [
        Request(
            id=f"target-{i}",
            prompt=tuple(int(t) for t in rng.integers(0, vocab, length)),
            sampling=SamplingParams(
                max_tokens=answer_tokens, temperature=i % 2 * 0.8, seed=i, ignore_eos=True, logprobs=5
            ),
        )
        for i, length in enumerate(lengths)
    ]


def others(vocab: int, count: int, answer_tokens: int) -> list[Request]:
    """Neighbours of other lengths, greedy and sampled."""
    lengths = np.random.default_rng(7).integers(1, 150, count)
    made = requests(vocab, [int(n) for n in lengths], answer_tokens, seed=8)
    return [Request(id=f"other-{i}", prompt=r.prompt, sampling=r.sampling) for i, r in enumerate(made)]


def serve(core: EngineCore, wanted: Iterable[Request]) -> dict[str, Answer]:
    """Serve requests together to their ends; check that no block is leaked."""
    answers: dict[str, Answer] = {}
    for request in wanted:
        core.add(request)
        answers[request.id] = []
    while core.live:
        for name, delta in core.step():
            assert delta.error is None, delta.error
            for t in delta.logprobs:
                answers[name] += [(t.token, t.logprob or 0.0), *t.top]
    core.check_integrity()
    return answers


def alone(
    build: Build, tokenizer: Tokenizer, targets: Sequence[Request], budget: int = 512, **config: Any
) -> dict[str, Answer]:
    """Each target in a fresh engine of its own, prefilled in chunks of `budget`."""
    answers: dict[str, Answer] = {}
    for request in targets:
        core = EngineCore(build(), tokenizer, EngineConfig(token_budget=budget, **config))
        answers |= serve(core, [request])
    return answers


def among(
    build: Build, tokenizer: Tokenizer, targets: Sequence[Request], neighbours: int, **config: Any
) -> dict[str, Answer]:
    """All targets at once, in the middle of `neighbours` others."""
    runner = build()
    crowd = others(runner.vocab_size, neighbours, 8)
    core = EngineCore(runner, tokenizer, EngineConfig(max_running=128, max_waiting=128, token_budget=300, **config))
    half = len(crowd) // 2
    answers = serve(core, [*crowd[:half], *targets, *crowd[half:]])
    return {r.id: answers[r.id] for r in targets}


def after_prefix_hit(
    build: Build, tokenizer: Tokenizer, targets: Sequence[Request], **config: Any
) -> dict[str, Answer]:
    """Each target again in an engine that has answered it before; asserts that blocks were reused."""
    core = EngineCore(build(), tokenizer, EngineConfig(**config))
    serve(core, targets)
    answers = serve(core, targets)
    long = sum(len(r.prompt) > BLOCK_TOKENS for r in targets)
    assert core.stats().cached_tokens >= long * BLOCK_TOKENS, "no prefix was reused"
    return answers


def after_preemption(
    build: Build, tokenizer: Tokenizer, targets: Sequence[Request], blocks: int = 0, **config: Any
) -> dict[str, Answer]:
    """All targets in a pool of `blocks`, or one too small for their answers; asserts that some were preempted."""
    need = [-(-(len(r.prompt) + r.sampling.max_tokens) // BLOCK_TOKENS) for r in targets]
    core = EngineCore(build(), tokenizer, EngineConfig(blocks=blocks or max(max(need), sum(need) - 2), **config))
    answers = serve(core, targets)
    assert core.stats().preemptions > 0, "nothing was preempted"
    return answers


def differing_bits(a: dict[str, Answer], b: dict[str, Answer]) -> int:
    """Bits that differ between two sets of answers; a missing token counts as 128 bits."""
    assert a.keys() == b.keys()
    total = 0
    for name in a:
        total += 128 * abs(len(a[name]) - len(b[name]))
        shared = min(len(a[name]), len(b[name]))
        x, y = (np.array(v[name][:shared], dtype=np.float64).view(np.uint64) for v in (a, b))
        total += sum(int(bits).bit_count() for bits in (x ^ y).ravel())
    return total
