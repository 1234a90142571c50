"""Sparse attention changes nothing about exactness: a request chooses the same positions however it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import sparse_reference
from safetensors.torch import load_file, save_file

from deepwell.engine.core import EngineConfig, EngineCore
from deepwell.loading.runner import NativeRunner
from deepwell.weights.checkpoint import Checkpoint
from fakes import tiny_tokenizer

LENGTHS = (1, 15, 63, 64, 65, 130, 200)
TOP_K = 16
FORMATS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "int8", "cache_dtype": "bfloat16"},
]


@pytest.fixture(params=FORMATS, ids=lambda f: f["dtype"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> cases.Build:
    """With a prediction module, and few likely tokens, so that guesses are often right and often wrong."""
    config = sparse_reference.random_config(3, mtp=1) | {"index_topk": TOP_K}
    sparse_reference.write(tmp_path, config, 3)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][5:9] *= 8
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.mtp_params
    return lambda: NativeRunner(checkpoint, blocks=256, mtp=True, **request.param)


def test_same_bits(build: cases.Build) -> None:
    """Alone, in chunks, among others, after a prefix hit, after preemption, and with every kind of speculation."""
    tokenizer, targets = tiny_tokenizer(), cases.requests(320, LENGTHS, 70)
    wanted = cases.alone(build, tokenizer, targets)
    assert all(len(answer) == 70 * 6 for answer in wanted.values())
    ways = {
        "chunks of 1": cases.alone(build, tokenizer, targets, 1),
        "chunks of 7": cases.alone(build, tokenizer, targets, 7),
        "among others": cases.among(build, tokenizer, targets, 16),
        "after a prefix hit": cases.after_prefix_hit(build, tokenizer, targets),
        "after preemption": cases.after_preemption(build, tokenizer, targets),
    }
    for mode, count in (("mtp", 1), ("mtp", 3), ("lookup", 4)):
        options = {"speculate": mode, "draft_tokens": count}
        ways[f"{mode} {count}"] = cases.alone(build, tokenizer, targets, **options)
        ways[f"{mode} {count} among others"] = cases.among(build, tokenizer, targets, 8, **options)
    for way, answers in ways.items():
        assert cases.differing_bits(answers, wanted) == 0, way


@pytest.mark.parametrize("mode", ["mtp", "lookup"])
def test_guesses_are_right_and_wrong(build: cases.Build, mode: str) -> None:
    """The comparison above compares something."""
    core = EngineCore(build(), tiny_tokenizer(), EngineConfig(speculate=mode, draft_tokens=2))
    cases.serve(core, cases.requests(320, LENGTHS, 70))
    stats = core.stats()
    assert 0.05 * stats.drafted[mode] < stats.accepted[mode] < 0.95 * stats.drafted[mode]
