"""DeepSeek-V3.2 through the whole decoder, on torch and natively, against the papers' formulas in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_reference as reference
import torch
from numpy.typing import NDArray
from op_backends import int32
from records import record
from safetensors.torch import load_file, save_file

from deepwell.errors import CheckpointError, ConfigError
from deepwell.loading.memory import block_bytes_of
from deepwell.loading.runner import NativeRunner
from deepwell.model import Decoder, account, from_hugging_face
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.ops.torch_ops import PagedTorchOps, TorchOps
from deepwell.weights.checkpoint import Checkpoint

BOUND = 1e-4
MARGIN = 1e-5
"""No choice of the reference may be closer than this: float32 might decide it otherwise."""
SEEDS = [0, 1, 2, 3]


def tokens_of(seed: int, length: int = 130) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1]).integers(0, 320, length)


def wanted(c: reference.Config, exact: dict[str, reference.Array], tokens: NDArray[Any]) -> reference.Array:
    trace = reference.Trace()
    logits = reference.forward(c, exact, tokens, trace)
    assert trace.margin > MARGIN, trace.margin
    assert logits.std() > 0.5
    return logits


def one_sequence(tokens: NDArray[Any], start: int, end: int, pages: NDArray[np.int32]) -> Batch:
    rows = np.arange(end - start, dtype=np.int32)
    return Batch(tokens[start:end].astype(np.int32), rows + start, np.zeros_like(rows), pages[None], rows)


def whole(tokens: NDArray[Any]) -> Batch:
    return one_sequence(tokens, 0, len(tokens), np.arange(-(-len(tokens) // BLOCK_TOKENS), dtype=np.int32))


def decoder(folder: Path) -> Decoder:
    checkpoint = Checkpoint(folder)
    return Decoder(checkpoint.config, {p.key: torch.from_numpy(checkpoint.whole(p)) for p in checkpoint.params})


@pytest.mark.parametrize("seed", SEEDS)
def test_native_logits(seed: int, tmp_path: Path) -> None:
    """Random shapes; the context grows from below top-k to far beyond it."""
    c, tokens = reference.random_config(seed), tokens_of(seed)
    logits = wanted(c, reference.write(tmp_path, c, seed), tokens)
    got = NativeRunner(Checkpoint(tmp_path), "float32", blocks=8).run(whole(tokens))
    error = np.abs(got - logits).max()
    record("V3.2", "float64 formula", float(error), float(np.abs(logits).max()))
    assert error < BOUND


@pytest.mark.parametrize("seed", SEEDS)
def test_torch_logits_whole_and_paged(seed: int, tmp_path: Path) -> None:
    c, tokens = reference.random_config(seed), tokens_of(seed)
    logits = wanted(c, reference.write(tmp_path, c, seed), tokens)
    model = decoder(tmp_path)
    ops = TorchOps(torch.from_numpy(tokens)[None])
    with torch.no_grad():
        assert np.abs(model.logits(ops, model.hidden(ops)).numpy() - logits).max() < BOUND
    pages = int32([3, 0, 2])
    cache = [torch.zeros(4 * BLOCK_TOKENS, width) for width in model.config.cache_widths()]
    for start, stop in ((0, 1), (1, 70), (70, 128), (128, 130)):
        paged = PagedTorchOps(one_sequence(tokens, start, stop, pages), cache)
        with torch.no_grad():
            got = model.logits(paged, model.hidden(paged)).numpy()
        assert np.abs(got - logits[start:stop]).max() < BOUND


@pytest.mark.parametrize("stored", ["bfloat16", "float8"])
def test_stored_in_fewer_bits(stored: str, tmp_path: Path) -> None:
    """bfloat16, and block FP8 with powers of two as scales, which bfloat16 holds exactly too."""
    c, tokens = reference.random_config(4), tokens_of(4)
    logits = wanted(c, reference.write(tmp_path, c, 4, stored), tokens)
    runner = NativeRunner(Checkpoint(tmp_path), "auto", blocks=8)
    assert runner.dtype == "bfloat16"
    assert np.abs(runner.run(whole(tokens)) - logits).max() < BOUND


def test_the_prediction_module_has_an_indexer_of_its_own(tmp_path: Path) -> None:
    c, tokens, trace = reference.random_config(5, mtp=1), tokens_of(5), reference.Trace()
    logits = reference.further(c, reference.write(tmp_path, c, 5), tokens, trace)
    assert trace.margin > MARGIN
    assert len(trace.chosen) == 4
    runner = NativeRunner(Checkpoint(tmp_path), "float32", blocks=8, mtp=True)
    assert runner.has_draft_head
    _, states = runner.run_with_states(whole(tokens[:-1]))
    got, _ = runner.draft_logits(whole(tokens[1:]), states)
    assert np.abs(got - logits).max() < BOUND


@pytest.mark.parametrize("layout", ["interleaved", "last"])
def test_the_wrong_rotation_would_be_seen(layout: str, tmp_path: Path) -> None:
    """The indexer's first columns are rotated, in halves. Otherwise other positions are chosen, and logits differ."""
    c, tokens = reference.random_config(0), tokens_of(0)
    exact = reference.write(tmp_path, c, 0)
    right, wrong = reference.Trace(), reference.Trace()
    logits = reference.forward(c, exact, tokens, right)
    others = reference.forward(c, exact, tokens, wrong, layout)
    late = range(100, 130)
    shared = [len(set(right.chosen[0][t]) & set(wrong.chosen[0][t])) / c["index_topk"] for t in late]
    assert np.mean(shared) < 0.9
    got = NativeRunner(Checkpoint(tmp_path), "float32", blocks=8).run(whole(tokens))
    assert np.abs(got - others).max() > 1000 * np.abs(got - logits).max()


def without_indexer(folder: Path, c: reference.Config, seed: int) -> Checkpoint:
    """The same model as a DeepSeek-V3, which attends to everything."""
    reference.write(folder, c, seed)
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if ".indexer." not in k}
    save_file(kept, folder / "model.safetensors")
    dense = {k: v for k, v in c.items() if not k.startswith("index_")} | {"model_type": "deepseek_v3"}
    (folder / "config.json").write_text(json.dumps(dense))
    return Checkpoint(folder)


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_up_to_top_k_the_bits_are_those_of_dense_attention(dtype: Any, cache_dtype: Any, tmp_path: Path) -> None:
    c, tokens = reference.random_config(1) | {"index_topk": 66}, tokens_of(1)
    reference.write(tmp_path / "sparse", c, 1)
    dense, sparse = (
        NativeRunner(checkpoint, dtype, cache_dtype=cache_dtype, blocks=8).run(whole(tokens))
        for checkpoint in (without_indexer(tmp_path / "dense", c, 1), Checkpoint(tmp_path / "sparse"))
    )
    np.testing.assert_array_equal(sparse[:66], dense[:66])
    assert (sparse[66:] != dense[66:]).any(axis=1).all()


def test_accounting(tmp_path: Path) -> None:
    """Parameters as the checkpoint has them; the cache holds an indexer's key beside each latent."""
    c = reference.random_config(2, mtp=1)
    config = from_hugging_face(c)
    main = {k: v for k, v in reference.shapes(c).items() if not k.startswith("model.layers.3.")}
    counted = account(config, kv_bytes=2)
    assert counted.total_params == sum(int(np.prod(shape)) for shape in main.values())
    assert counted.mtp_params == sum(int(np.prod(s)) for s in reference.shapes(c).values()) - counted.total_params
    width = c["kv_lora_rank"] + c["qk_rope_head_dim"] + c["index_head_dim"]
    assert counted.kv_bytes_per_token == 2 * 3 * width


def test_the_cache_is_as_large_as_it_was_said_to_be(tmp_path: Path) -> None:
    c = reference.random_config(2, mtp=1)
    reference.write(tmp_path, c, 2)
    for cache_dtype, kv_bytes in (("float32", 4), ("bfloat16", 2)):
        runner = NativeRunner(Checkpoint(tmp_path), "int8", cache_dtype=cache_dtype, blocks=3, mtp=True)
        assert runner._cache.nbytes == 3 * block_bytes_of(from_hugging_face(c), kv_bytes, mtp=True)


def test_flops_grow_by_the_indexer_alone_beyond_top_k() -> None:
    c = reference.random_config(2)
    k, config = c["index_topk"], from_hugging_face(c)
    flops = [account(config, depth=depth).flops_per_token for depth in (k - 2, k - 1, k, k + 1, k + 2)]
    dense, _, *sparse = np.diff(flops).tolist()
    heads, latent, rope = c["num_attention_heads"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    assert dense == 3 * 2 * heads * (2 * latent + rope)
    assert sparse == [3 * 2 * c["index_n_heads"] * (c["index_head_dim"] + 1)] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"index_topk": None}, "index_topk is missing"),
        ({"index_head_dim": 2}, "index_head_dim is 2; allowed are even numbers from qk_rope_head_dim"),
        ({"index_head_dim": 4096}, "index_head_dim is 4096; allowed are even numbers"),
        ({"index_head_dim": 63}, "index_head_dim is 63; allowed are even numbers"),
        ({"index_n_heads": 0}, "index_n_heads is 0"),
        ({"index_topk": 1 << 21}, "index_topk is 2097152; allowed are 1 to 1048576"),
        ({"q_lora_rank": None}, "q_lora_rank is missing, and the indexer's queries are made of that latent"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        from_hugging_face(reference.random_config(0) | change)


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]},
        {"model_type": "deepseek_v41", "architectures": ["DeepseekV41ForCausalLM"], "text_config": {}},
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV4ForCausalLM"]},
    ],
)
def test_v4_is_refused_with_what_is_supported(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"prompt format, but cannot run its weights yet; supported are llama, .*v32"):
        from_hugging_face(raw)


def test_missing_indexer_tensors_are_named(tmp_path: Path) -> None:
    c = reference.random_config(0)
    reference.write(tmp_path, c, 0)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.indexer.k_norm.bias"
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        Checkpoint(tmp_path)
