"""Models whose quantised GGUF files are kept block for block: which storage, which logits, which bits, how much memory.

The reference is transformers in float32 on the values that the blocks stand for.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import gguf_files
import numpy as np
import pytest
import torch
from float64_ops import RoundedOps
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from op_backends import packed_batch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from deepwell.errors import CheckpointError
from deepwell.loading.pack import pack, storages
from deepwell.loading.runner import NativeRunner
from deepwell.model.decoder import Decoder
from deepwell.ops import native
from deepwell.ops.base import Batch
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from fakes import tiny_tokenizer

Quantise = Callable[[str], Type]
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")
KINDS = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4", "iq4_nl", *K_QUANTS)
STORAGE = {"q8_0": "int8", "q4_0": "int4"}

MEAN_BOUND = 0.1
"""Of the mean error of a logit, in standard deviations of the logits, against exact arithmetic: what rounding inputs
to 8 bits and the cache to bfloat16 does to these models, whose random weights pass every difference on enlarged."""
ROUNDED_BOUND = 1e-6
"""Of the median error against float64 with the same rounding, in standard deviations. A sum that falls on the other
side of a border changes a code, and from there on the rest of a short sequence; most sequences meet none."""
ROW_BOUND = 1e-4
"""Of the largest error of a row that met no such border but the head's: a step of its second codes, a 32,000th of the
largest input, moves a logit by some 1e-5, one of its first codes by 254 times as much."""


def all_in(kind: str) -> Quantise:
    """Everything in one type, but for the router, and keys of latent attention, too narrow for blocks of 256."""

    def quantise(name: str) -> Type:
        if "ffn_gate_inp" in name:
            return Type.F32
        return Type.Q5_0 if "attn_k_b" in name and kind in K_QUANTS else Type[kind.upper()]

    return quantise


def mixed(name: str) -> Type:
    """As llama-quantize mixes types: more bits for what matters more."""
    if "attn_v" in name or "ffn_down" in name or name.startswith("output"):
        return Type.Q6_K
    return all_in("q4_k")(name)


def reference(checkpoint: GgufCheckpoint, folder: Path) -> Any:
    """The transformers model beside a GGUF file, with the file's values."""
    saved = load_file(folder / "model.safetensors")
    for param in checkpoint.params:
        values = checkpoint.whole(param).reshape(len(param.sources), -1)
        for name, one in zip(param.sources, values, strict=True):
            saved[name] = np.ascontiguousarray(one.reshape(saved[name].shape))
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompt(tokens: np.ndarray) -> Batch:
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(
        tokens.astype(np.int32), rows, np.zeros_like(rows), np.arange(-(-len(rows) // 64), dtype=np.int32)[None], rows
    )


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("name", ["qwen2-wide", "v3-wide"])
def test_logits(name: str, kind: str, tmp_path: Path) -> None:
    _, file = gguf_files.save(name, tmp_path, quantise=mixed if kind == "mixed" else all_in(kind))
    checkpoint, tokens = GgufCheckpoint(file), np.random.default_rng(1).integers(0, 320, 150)
    runner = NativeRunner(checkpoint, "auto", blocks=8)
    assert runner.cache_dtype == "bfloat16"
    got = runner.run(prompt(tokens))
    with torch.no_grad():
        wanted = reference(checkpoint, tmp_path)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    error = np.abs(got - wanted) / wanted.std()
    assert error.mean() < MEAN_BOUND
    assert error.mean() > 1e-4, "inputs were not rounded at all: were the blocks kept?"


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("name", ["qwen2-wide", "v3-wide"])
def test_logits_are_those_of_the_documented_rounding(name: str, kind: str, tmp_path: Path) -> None:
    """The decoder over float64 operations with inputs in 8 bits and a bfloat16 cache; short sequences."""
    _, file = gguf_files.save(name, tmp_path, quantise=mixed if kind == "mixed" else all_in(kind))
    checkpoint, batch = GgufCheckpoint(file), packed_batch([(0, 5)] * 30)
    got = NativeRunner(checkpoint, "auto", blocks=30).run(batch)
    weights = {p.key: checkpoint.whole(p).astype(np.float64) for p in checkpoint.params}
    ops, decoder = RoundedOps(batch, {}, coded_inputs=True, bfloat16_cache=True), Decoder(checkpoint.config, weights)
    wanted = decoder.logits(ops, decoder.hidden(ops))
    error = np.abs(got - wanted) / wanted.std()
    assert np.median(error) < ROUNDED_BOUND
    assert (error.max(1) < ROW_BOUND).mean() > 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_kept(kind: str, tmp_path: Path) -> None:
    _, file = gguf_files.save("v3-wide", tmp_path, quantise=all_in(kind))
    checkpoint = GgufCheckpoint(file)
    runner, kept = NativeRunner(checkpoint, "auto", blocks=8), STORAGE.get(kind, kind)
    assert runner.dtype == kind
    for param in checkpoint.params:
        wanted = "float32" if param.kind in ("vector", "router") else kept
        assert runner.kept[param.key] == wanted, param.key
        if param.kind not in ("vector", "kv_b"):
            matrix = pack(checkpoint, param, runner.kept[param.key])
            assert matrix.storage == wanted
            values = np.stack([matrix.dequantize(i) for i in range(matrix.count)])
            np.testing.assert_array_equal(values.reshape(param.shape), checkpoint.whole(param))


def kv_b_of(file: Path) -> tuple[native.KvB, np.ndarray, str]:
    """kv_b of the first layer as `auto` packs it, its values (heads, nope + value, latent), and what is told of it."""
    checkpoint = GgufCheckpoint(file)
    [param] = [p for p in checkpoint.params if p.key == "layers.0.attn.kv_b"]
    kept = storages(checkpoint, "auto")[param.key]
    return pack(checkpoint, param, kept), checkpoint.whole(param).reshape(4, 96, 256), kept


@pytest.mark.parametrize(
    ("split", "keys", "values", "kept"),
    [
        (True, "q8_0", "q8_0", ("int8", "int8", "int8")),
        (True, "q5_0", "q4_k", ("q5_0", "q4_k", "q4_k")),
        (True, "f16", "q6_k", ("float16", "q6_k", "q6_k")),
        (True, "q8_0", "f16", ("float32", "float32", "float32")),
        (True, "f16", "f16", ("float16", "float16", "float16")),
        (False, "q8_0", "q8_0", ("float32", "int8", "int8")),
        (False, "q4_k", "q4_k", ("float32", "q4_k", "q4_k")),
    ],
)
def test_kv_b(split: bool, keys: str, values: str, kept: tuple[str, str, str], tmp_path: Path) -> None:
    """In halves of one type or two, and in one piece, whose keys lie across their blocks; never a value is changed."""

    def quantise(name: str) -> Type:
        return Type[(keys if "attn_k_b" in name else values if "_b." in name else "q8_0").upper()]

    _, file = gguf_files.save("v3-wide", tmp_path, quantise=quantise, split_kv_b=split)
    packed, whole, told = kv_b_of(file)
    assert (packed.k_b.storage, packed.v_b.storage, told) == kept
    for head, rows in enumerate(whole):
        np.testing.assert_array_equal(packed.k_b.dequantize(head).T, rows[:32])
        np.testing.assert_array_equal(packed.v_b.dequantize(head), rows[32:])


def test_kv_b_in_one_piece_computes_what_its_halves_do(tmp_path: Path) -> None:
    """Blocks along the latent in one file, along the keys in the other: the same model but for rounding."""
    logits = []
    for split in (True, False):
        quantise = lambda name: Type.F32 if name.endswith("gate_inp.weight") or "_b." in name else Type.Q8_0  # noqa: E731
        _, file = gguf_files.save("v3-wide", tmp_path / str(split), quantise=quantise, split_kv_b=split)
        runner = NativeRunner(GgufCheckpoint(file), "auto", blocks=8)
        logits.append(runner.run(prompt(np.random.default_rng(4).integers(0, 320, 100))))
    np.testing.assert_array_equal(*logits)


def test_gate_and_up_of_two_types_become_float32(tmp_path: Path) -> None:
    """No value is changed, and the other matrices keep their blocks."""
    quantise = lambda name: Type.Q6_K if "ffn_up" in name else all_in("q4_k")(name)  # noqa: E731
    _, file = gguf_files.save("v3-wide", tmp_path, quantise=quantise)
    checkpoint, tokens = GgufCheckpoint(file), np.random.default_rng(5).integers(0, 320, 70)
    runner = NativeRunner(checkpoint, "auto", blocks=8)
    apart = {key for key, kept in runner.kept.items() if key.endswith("gate_up")}
    assert len(apart) == 3
    assert {runner.kept[key] for key in apart} == {"float32"}
    assert {runner.kept[p.key] for p in checkpoint.params if p.key.endswith("down")} == {"q4_k"}
    for param in checkpoint.params:
        if param.key in apart:
            matrix = pack(checkpoint, param, "float32")
            values = np.stack([matrix.dequantize(i) for i in range(matrix.count)])
            np.testing.assert_array_equal(values.reshape(param.shape), checkpoint.whole(param))
    got = runner.run(prompt(tokens))
    with torch.no_grad():
        wanted = reference(checkpoint, tmp_path)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(got - wanted).mean() < MEAN_BOUND * wanted.std()


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "mixed"])
@pytest.mark.parametrize("name", ["qwen2-wide", "v3-wide"])
def test_the_same_bits_in_every_way_of_serving(name: str, kind: str, tmp_path: Path) -> None:
    _, file = gguf_files.save(name, tmp_path, quantise=mixed if kind == "mixed" else all_in(kind))
    checkpoint, tokenizer = GgufCheckpoint(file), tiny_tokenizer()
    build = functools.partial(NativeRunner, checkpoint, "auto", blocks=64)
    targets = cases.requests(320, (1, 60, 65, 130), 20)
    wanted = cases.alone(build, tokenizer, targets)
    ways = {
        "chunks of 1": cases.alone(build, tokenizer, targets[1:2], 1),
        "chunks of 7": cases.alone(build, tokenizer, targets, 7),
        "chunks of 64": cases.alone(build, tokenizer, targets, 64),
        "among others": cases.among(build, tokenizer, targets, 12),
        "after a prefix hit": cases.after_prefix_hit(build, tokenizer, targets),
        "after preemption": cases.after_preemption(build, tokenizer, targets, blocks=4),
    }
    for way, answers in ways.items():
        assert cases.differing_bits(answers, {name: wanted[name] for name in answers}) == 0, way


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_up_exps.weight", "blk.0.attn_k_b.weight", "output.weight"])
def test_scales_that_are_not_finite_are_refused(tensor: str, value: float, tmp_path: Path) -> None:
    _, file = gguf_files.save("v3-wide", tmp_path, quantise=all_in("q8_0"))
    blocks = GgufCheckpoint(file).tensors[tensor].blocks()
    at = file.read_bytes().index(blocks[-1].tobytes()) + blocks.shape[1] - 34
    with file.open("r+b") as f:
        f.seek(at)
        f.write(np.float16(value).tobytes())
    with pytest.raises(CheckpointError, match=rf"{tensor}: row \d+ has a scale that is not a finite number"):
        NativeRunner(GgufCheckpoint(file), "auto", blocks=8)


LOAD = """
import resource, sys
from pathlib import Path
from deepwell.loading.runner import NativeRunner
from deepwell.weights.source import open_source
import numpy, msgspec

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

source = open_source(Path(sys.argv[1]))
before = status("VmRSS")
runner = NativeRunner(source, sys.argv[2], blocks=1)
print(status("VmHWM") - before, status("VmRSS") - before)
"""


def big(file: Path) -> GgufCheckpoint:
    """A llama of 200 MB in Q4_0, three quarters of it in one layer's feed-forward."""
    hidden, inter = 2048, 16384 + 4096
    shapes = {"token_embd": (320, hidden), "output": (320, hidden)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.attn_{n}": (hidden, hidden) for n in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{n}": (inter, hidden) for n in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (hidden, inter)
    writer = GGUFWriter(file, "llama")
    for key, value in (
        ("context_length", 512), ("embedding_length", hidden), ("block_count", 2), ("feed_forward_length", inter),
        ("attention.head_count", 16), ("attention.head_count_kv", 16), ("rope.dimension_count", 128),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    gguf_files.add_tokenizer(writer)
    block = np.zeros((1 << 14, 18), np.uint8)
    block[:, 2:] = np.random.default_rng(6).integers(0, 256, (1 << 14, 16))
    block[:, :2] = np.float16(0.01).reshape(1).view(np.uint8)
    pool = np.tile(block.reshape(-1), 1 + inter * hidden // 32 // (1 << 14))
    for name, (rows, cols) in shapes.items():
        size = cols // 32 * 18
        writer.add_tensor(f"{name}.weight", pool[: rows * size].reshape(rows, size), raw_dtype=Type.Q4_0)
    for name in ("output_norm", *(f"blk.{n}.{part}_norm" for n in range(2) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufCheckpoint(file)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_peak_memory_of_loading(dtype: str, tmp_path: Path) -> None:
    """The result and one tensor: its mapped bytes where blocks are kept, else also its values in float32."""
    checkpoint = big(tmp_path / "big.gguf")
    assert (tmp_path / "big.gguf").stat().st_size > 150e6
    largest = max(checkpoint.tensors.values(), key=lambda t: t.blocks().nbytes)
    mapped, values = largest.blocks().nbytes, largest.blocks().nbytes // 18 * 32
    runner = NativeRunner(checkpoint, dtype, blocks=1)
    params = (p for p in checkpoint.params if p.kind != "vector")
    result = sum(p.size * (34 if runner.kept[p.key] == "int8" else 18) // 32 for p in params)
    run = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "big.gguf", dtype],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    peak, after = (int(n) for n in run.stdout.split())
    # gate and up make one parameter, and pages are let go of after each parameter
    reading = 2 * mapped + (0 if dtype == "auto" else 5 * values)
    slack = 24e6 if dtype == "auto" else 80e6  # what the allocator keeps of smaller arrays
    assert after < result + slack
    assert peak < result + reading + slack
