"""A toy standard library and a toy shape: everything training needs, in a second."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from deepwell.model.config import MlaConfig, ModelConfig, MoeConfig
from deepwell.model.presets import PRESETS
from deepwell.model.rope import RopeConfig
from deepwell.ops.base import Routing
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus

WORDS = ("value", "index", "path", "line", "name", "count", "left", "right", "table", "state", "result", "buffer")


def write_module(root: Path, path: str, size: int) -> None:
    """A module of about `size` bytes that differs from every other in almost every line."""
    source, chance = [f'"""The {path} module, made up for tests of the corpus."""\n'], random.Random(path)
    while sum(map(len, source)) < size:
        a, b, c = chance.sample(WORDS, 3)
        n = chance.randrange(10**6)
        source.append(
            f"def {a}_{n}({b}, {c}):\n"
            f'    """Give the {a} of {b} and {c}, or {n} where there is none."""\n'
            f"    if {b} is None:\n        return {n}\n    return {b}.{a}({c}, {n % 97})\n\n"
        )
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(source), "utf-8")


def write_stdlib(root: Path) -> Path:
    """Twelve modules, of which ten have a size that may be held out, with tests, tables and things to drop."""
    write_module(root, "os.py", 5_000)
    write_module(root, "big/__init__.py", 60_000)
    for n in range(10):
        write_module(root, f"mod{n}.py", 25_000)
        write_module(root, f"test/test_mod{n}.py", 3_000)
    write_module(root, "encodings/cp0.py", 1_000)
    write_module(root, "idlelib/window.py", 1_000)
    write_module(root, "site-packages/foreign.py", 1_000)
    (root / "latin.py").write_bytes(b"# caf\xe9\n" * 100)
    (root / "numbers_table.py").write_text("x = [\n" + "    1, 2, 3, 4, 5, 6, 7,\n" * 50 + "]\n")
    (root / "twin.py").write_text((root / "os.py").read_text() + "\nx = 1\n")
    topics = {
        "assert": "The assert statement is a way to insert checks.\n\n" * 8,
        "if": "The if statement chooses.\n" * 12,
    }
    (root / "pydoc_data").mkdir()
    (root / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n")
    (root / "LICENSE.txt").write_text("Python licence\n")
    return root


def toy_shape(*, moe: bool = True, vocab: int = 384) -> ModelConfig:
    """A DeepSeek-V3 shape of two layers, one of them MoE, and one MTP module."""
    routing = Routing(4, 2, "sigmoid", "noaux_tc", normalize=True, scale=1.5)
    return ModelConfig(
        family="deepseek_v3",
        vocab=vocab,
        hidden=32,
        layers=2,
        heads=2,
        kv_heads=2,
        head_dim=24,
        inter=64,
        eps=1e-6,
        rope=RopeConfig(original=64),
        context=64,
        mla=MlaConfig(q_lora=32, kv_lora=32, nope=16, rope=8, value=16),
        moe=MoeConfig(routing, 32, shared=1, first_dense=1, bias=True) if moe else None,
        mtp_layers=1,
    )


def toy_run(folder: Path, corpus: Corpus, patch: pytest.MonkeyPatch) -> TrainConfig:
    """Twelve steps of the toy shape on the toy corpus, below `folder`; MTP starts half-way."""
    patch.setitem(PRESETS, "toy", toy_shape())
    patch.setitem(PRESETS, "toy-dense", toy_shape(moe=False))
    patch.setattr("deepwell.train.run.build_corpus", lambda: corpus)
    return TrainConfig(
        size="toy",
        out=folder / "run",
        cache=folder / "cache",
        tokens=12 * 4 * 64,
        context=64,
        batch_rows=4,
        micro_rows=2,
        warmup=3,
        precision="float32",
        mtp_from=0.5,
        log_steps=3,
        eval_steps=6,
    )
