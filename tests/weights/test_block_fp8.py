"""Block-FP8 checkpoints: values against torch's float8 types, logits against transformers, every refusal a sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedModel

from deepwell.errors import CheckpointError
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.safetensors import read

BOUND = 1e-4
QUANTISATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
WEIGHT = "model.layers.1.mlp.experts.3.down_proj.weight"
SCALES = WEIGHT + "_scale_inv"
_KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "e_score")
"""Parts of names that DeepSeek's checkpoints leave unquantised."""


def ragged_v3() -> DeepseekV3Config:
    """Wider than a block, with ragged edges in both directions."""
    return DeepseekV3Config(
        vocab_size=320,
        hidden_size=160,
        num_hidden_layers=2,
        max_position_embeddings=512,
        intermediate_size=272,
        moe_intermediate_size=136,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=144,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=8,
        v_head_dim=40,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=2.5,
        rope_parameters=dict(seeded.YARN, mscale=1.0, mscale_all_dim=1.0, factor=40.0),
    )


def grown(scales: torch.Tensor, shape: torch.Size, block: int = 128) -> torch.Tensor:
    """One scale per weight."""
    return scales.repeat_interleave(block, 0)[: shape[0]].repeat_interleave(block, 1)[:, : shape[1]]


def quantised(weight: torch.Tensor, ue8m0: bool, block: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in E4M3 with its scales, as DeepSeek publishes them: the block's largest magnitude / 448."""
    rows, cols = (-(-n // block) for n in weight.shape)
    padded = torch.zeros(rows * block, cols * block)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scales = padded.view(rows, block, cols, block).abs().amax((1, 3)).clamp_min(1e-4) / 448
    if ue8m0:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    codes = (weight / grown(scales, weight.shape, block)).to(torch.float8_e4m3fn)
    return codes, scales.to(torch.float8_e8m0fnu) if ue8m0 else scales


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, *, ue8m0: bool = False) -> dict[str, torch.Tensor]:
    """A seeded V3 model in `folder`, quantised to block FP8; the float64 values its files stand for, by name."""
    monkeypatch.setitem(seeded.CONFIGS, "v3-ragged", ragged_v3)
    seeded.save("v3-ragged", folder)
    tensors, exact = load_file(folder / "model.safetensors"), {}
    for name, weight in list(tensors.items()):
        exact[name] = weight.double()
        if weight.ndim == 2 and not any(part in name for part in _KEPT):
            codes, scales = quantised(weight, ue8m0)
            tensors[name], tensors[name + "_scale_inv"] = codes, scales
            exact[name] = codes.double() * grown(scales.double(), weight.shape)
    save_file(tensors, folder / "model.safetensors")
    configure(folder, {"quantization_config": QUANTISATION | ({"scale_fmt": "ue8m0"} if ue8m0 else {})})
    return exact


def configure(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reference(exact: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """transformers with the dequantised weights, rounded to `dtype` and computed in float32."""
    kept = {name: w.float() if w.ndim < 2 or "mlp.gate." in name else w.to(dtype) for name, w in exact.items()}
    model = AutoModelForCausalLM.from_config(ragged_v3(), dtype=torch.float32)
    model.save_pretrained(folder)
    save_file({name: w.float() for name, w in kept.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("ue8m0", [False, True])
def test_values_are_the_products_rounded_once(ue8m0: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = publish(tmp_path, monkeypatch, ue8m0=ue8m0)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.stored == "float8"
    assert checkpoint.tensors.keys() == exact.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.float32(), exact[name].float().numpy(), err_msg=name)
    if ue8m0:
        for tensor in checkpoint.tensors.values():
            if tensor.dtype == "F8_E4M3":
                values = torch.from_numpy(tensor.float32())
                assert torch.equal(values.bfloat16().float(), values), "powers of two fit bfloat16 exactly"


@pytest.mark.parametrize(
    ("dtype", "rounded", "ue8m0"),
    [("float32", torch.float32, False), ("auto", torch.bfloat16, False), ("float32", torch.float32, True)],
)
def test_logits(dtype: Any, rounded: torch.dtype, ue8m0: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = publish(tmp_path / "fp8", monkeypatch, ue8m0=ue8m0)
    tokens_T = np.random.default_rng(0).integers(0, 320, 150).astype(np.int32)
    rows_T = np.arange(len(tokens_T), dtype=np.int32)
    pages_SP = np.arange(3, dtype=np.int32)[None]
    runner = NativeRunner(Checkpoint(tmp_path / "fp8"), dtype, blocks=4)
    assert runner.dtype == str(rounded).removeprefix("torch.")
    logits = runner.run(Batch(tokens_T, rows_T, np.zeros_like(rows_T), pages_SP, rows_T))
    with torch.no_grad():
        model = reference(exact, tmp_path / "plain", rounded)
        wanted = model(torch.from_numpy(tokens_T.astype(np.int64))[None]).logits[0].numpy()
    assert np.abs(logits - wanted).max() < BOUND


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_every_code_of_the_8_bit_types(dtype: torch.dtype, tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    wanted = codes.float()
    finite = wanted.isfinite()
    save_file({"all": codes, "finite": codes[finite]}, tmp_path / "x.safetensors")
    tensors = read(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["finite"].float32(), wanted[finite].numpy())
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor all holds values that are not finite"):
        tensors["all"].float32()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(SCALES), rf"tensor {WEIGHT} is F8_E4M3, but its scales, {SCALES}, are missing"),
        (lambda t: t.pop(WEIGHT), rf"tensor {SCALES} scales a weight that is missing"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].bfloat16()}), rf"{SCALES} scales {WEIGHT}, which is BF16"),
        (
            lambda t: t.update({SCALES: t[SCALES][:1].clone()}),
            r"is F32 of shape \(1, 2\); blocks of 128 x 128 call for",
        ),
        (lambda t: t.update({SCALES: t[SCALES].half()}), r"is F16 of shape .* in F32, BF16, F8_E8M0"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].float().to(torch.float8_e5m2)}), "is F8_E5M2 of shape .*F8_E4M3"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
            r"F8_E4M3 of shape \(160,\); .*matrices",
        ),
    ],
)
def test_pairs_that_do_not_belong(change: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch)
    resave(tmp_path, change)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[WEIGHT].view(torch.uint8)[0].fill_(0x7F), f"tensor {WEIGHT} holds values that are not finite"),
        (lambda t: t[WEIGHT].view(torch.uint8)[3].fill_(0xFF), f"tensor {WEIGHT} holds values that are not finite"),
        (lambda t: t[SCALES].fill_(float("inf")), f"tensor {SCALES} holds values that are not finite"),
        (lambda t: t[SCALES].neg_(), f"tensor {SCALES} holds scales below 0"),
        (lambda t: t[SCALES].fill_(3e38), f"tensor {WEIGHT} times its scales leaves float32"),
    ],
)
def test_values_that_are_no_numbers(change: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch)
    resave(tmp_path, change)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.whole(next(p for p in checkpoint.params if WEIGHT in p.sources))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "config.json has no quantization_config that says how it is scaled"),
        ("fp8", "quantization_config is 'fp8'; supported is an object"),
        ({}, "quant_method None; supported: fp8"),
        ({"quant_method": "gptq", "bits": 4}, r"config\.json: quantization_config has quant_method 'gptq'"),
        (QUANTISATION | {"fmt": "e3m4"}, "fmt 'e3m4'; supported: e4m3, e5m2"),
        (QUANTISATION | {"fmt": ["e4m3"]}, "fmt .* supported: e4m3, e5m2"),
        (QUANTISATION | {"activation_scheme": "static"}, "activation_scheme 'static'; supported: dynamic"),
        (QUANTISATION | {"scale_fmt": "e5m3"}, "scale_fmt 'e5m3'; supported: float, ue8m0"),
        (QUANTISATION | {"weight_block_size": None}, "weight_block_size None"),
        (QUANTISATION | {"weight_block_size": [0, 128]}, r"weight_block_size \[0, 128\]"),
        (QUANTISATION | {"weight_block_size": [True, 128]}, r"weight_block_size \[True, 128\]"),
        (QUANTISATION | {"weight_block_size": [64, 64]}, "blocks of 64 x 64 call for"),
    ],
)
def test_configs_that_are_not_supported(
    said: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, monkeypatch)
    configure(tmp_path, {"quantization_config": said})
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(tmp_path)
