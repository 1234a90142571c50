"""The same request gives the same bits however it is served: the promise of batch invariance, on the real kernels."""

from pathlib import Path

import cases
import pytest
import seeded

from deepwell.loading.load import DType
from deepwell.loading.runner import NativeRunner
from deepwell.ops import native
from deepwell.weights.checkpoint import Checkpoint
from fakes import tiny_tokenizer

LENGTHS = (1, 5, 63, 64, 65, 130, 200)
MODELS: list[tuple[str, DType]] = [
    ("llama-gqa-linear", "float32"),
    ("v2-lite", "int4"),
    ("v3", "float32"),
    ("v3", "bfloat16"),
    ("v3", "int8"),
]


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m))
def build(request: pytest.FixtureRequest, tmp_path: Path) -> cases.Build:
    name, dtype = request.param
    seeded.save(name, tmp_path)
    checkpoint = Checkpoint(tmp_path)
    return lambda: NativeRunner(checkpoint, dtype, blocks=256)


def test_same_bits(build: cases.Build) -> None:
    """Alone, in chunks, among 64 others, after a prefix hit, after preemption, on another number of threads."""
    tokenizer = tiny_tokenizer()
    targets = cases.requests(320, LENGTHS, 70)
    wanted = cases.alone(build, tokenizer, targets)
    assert all(len(answer) == 70 * 6 for answer in wanted.values())
    for budget in (1, 7, 64):
        assert cases.differing_bits(cases.alone(build, tokenizer, targets, budget), wanted) == 0, f"chunks of {budget}"
    assert cases.differing_bits(cases.among(build, tokenizer, targets, 64), wanted) == 0, "among 64 others"
    assert cases.differing_bits(cases.after_prefix_hit(build, tokenizer, targets), wanted) == 0, "after a prefix hit"
    assert cases.differing_bits(cases.after_preemption(build, tokenizer, targets), wanted) == 0, "after preemption"
    before = native.threads()
    try:
        native.set_threads(3 - before if before < 3 else 1)
        assert cases.differing_bits(cases.alone(build, tokenizer, targets), wanted) == 0, "other threads"
    finally:
        native.set_threads(before)


def test_the_comparison_notices_a_difference(build: cases.Build) -> None:
    tokenizer = tiny_tokenizer()
    a = cases.alone(build, tokenizer, cases.requests(320, (40,), 20, seed=0))
    b = cases.alone(build, tokenizer, cases.requests(320, (40,), 20, seed=1))
    assert cases.differing_bits(a, b) > 0
