"""The native backend against transformers: logits of whole prompts, and greedy continuations of 200 tokens."""

from pathlib import Path

import numpy as np
import pytest
import seeded
import torch
from float64_ops import RoundedOps
from numpy.typing import NDArray
from op_backends import packed_batch

from deepwell.engine.core import EngineCore
from deepwell.engine.types import Request, SamplingParams
from deepwell.loading.load import CacheDType
from deepwell.loading.pack import pack
from deepwell.loading.runner import NativeRunner
from deepwell.model import Decoder, Param
from deepwell.ops import native
from deepwell.ops.base import Batch, MlaShape
from deepwell.weights.checkpoint import Checkpoint
from fakes import tiny_tokenizer

BOUND = 1e-4


def whole_prompt(tokens: np.ndarray) -> Batch:
    rows = np.arange(len(tokens), dtype=np.int32)
    table_SP = np.arange(-(-len(tokens) // 64), dtype=np.int32)[None]
    return Batch(tokens.astype(np.int32), rows, np.zeros_like(rows), table_SP, rows)


@pytest.mark.parametrize("name", seeded.CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits(name: str, seed: int, tmp_path: Path) -> None:
    reference = seeded.save(name, tmp_path, seed)
    tokens = np.random.default_rng(seed).integers(0, 320, 150 + 37 * seed)
    logits = NativeRunner(Checkpoint(tmp_path), "float32", blocks=8).run(whole_prompt(tokens))
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(logits - wanted).max() < BOUND


@pytest.mark.parametrize("name", ["llama-gqa-linear", "v2-lite", "v2", "v3", "v32"])
def test_greedy_continuation(name: str, tmp_path: Path) -> None:
    reference = seeded.save(name, tmp_path)
    prompt = np.random.default_rng(3).integers(0, 320, 40)
    core = EngineCore(NativeRunner(Checkpoint(tmp_path), "float32", blocks=8), tiny_tokenizer())
    sampling = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    request = Request(id="greedy", prompt=tuple(int(t) for t in prompt), sampling=sampling)
    ours = [token for delta in core.generate(request) for token in delta.token_ids]
    with torch.no_grad():
        out = reference.generate(
            torch.from_numpy(prompt)[None], max_new_tokens=200, min_new_tokens=200, do_sample=False, eos_token_id=None
        )
    assert ours == out[0, 40:].tolist()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_read_exactly(stored: torch.dtype, tmp_path: Path) -> None:
    """bfloat16 weights stay as they are, float16 widens: both compute what transformers does in float32."""
    reference = seeded.save("v3", tmp_path, dtype=stored)
    tokens = np.random.default_rng(4).integers(0, 320, 100)
    runner = NativeRunner(Checkpoint(tmp_path), "auto", blocks=8)
    assert runner.dtype == ("bfloat16" if stored == torch.bfloat16 else "float32")
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(runner.run(whole_prompt(tokens)) - wanted).max() < BOUND


def dequantised(checkpoint: Checkpoint, param: Param, kept: native.Storage) -> NDArray[np.float64]:
    """The values a quantised parameter stands for, by packing it apart from the runner."""
    if param.kind in ("vector", "router"):
        return checkpoint.whole(param).astype(np.float64)
    packed = pack(checkpoint, param, kept)
    if param.kind == "kv_b":
        shape = checkpoint.config.attention
        assert isinstance(shape, MlaShape)
        heads = [(packed.k_b.dequantize(h).T, packed.v_b.dequantize(h)) for h in range(shape.heads)]
        return np.concatenate([part for head in heads for part in head]).astype(np.float64)
    count = param.shape[0] if len(param.shape) == 3 else 1
    return np.stack([packed.dequantize(i) for i in range(count)]).reshape(param.shape).astype(np.float64)


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama-gqa-linear", "v3"])
def test_quantised_logits_are_those_of_the_dequantised_weights(
    name: str, dtype: native.Storage, cache_dtype: CacheDType, tmp_path: Path
) -> None:
    """Against float64 with inputs rounded to 8 bits, and keys, values, queries and weights to bfloat16.

    A sum that falls on the other side of a border of rounding moves the rest of its sequence: hence the median, over
    short sequences.
    """
    seeded.save(name, tmp_path)
    checkpoint, batch = Checkpoint(tmp_path), packed_batch([(0, 5)] * 20)
    runner = NativeRunner(checkpoint, dtype, cache_dtype=cache_dtype, blocks=20)
    logits = runner.run(batch)
    weights = {p.key: dequantised(checkpoint, p, runner.kept[p.key]) for p in checkpoint.params}
    ops = RoundedOps(batch, {}, coded_inputs=True, bfloat16_cache=cache_dtype == "bfloat16")
    decoder = Decoder(checkpoint.config, weights)
    wanted = decoder.logits(ops, decoder.hidden(ops))
    assert np.median(np.abs(logits - wanted)) < BOUND
    plain = NativeRunner(checkpoint, "float32", blocks=20).run(batch)
    assert np.median(np.abs(logits - plain)) > 10 * BOUND, "the weights were not quantised at all"
