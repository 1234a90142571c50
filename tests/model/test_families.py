"""Every family at random shapes against a float64 formula of the papers, and against transformers where it is right.

transformers lacks DeepSeek-MoE and ignores the `attn_factor` of R1-0528-Qwen3-8B; the formula judges those alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paper_model import PaperModel
from records import record
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights.checkpoint import Checkpoint

BOUND = 1e-4
SEEDS = (0, 1)
Raw = dict[str, Any]
Random = np.random.Generator


def pick(rng: Random, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def dense(rng: Random, family: str = "llama", group: int = 1, **more: Any) -> Raw:
    """`group` query heads share keys; 0 for one key head for all."""
    heads = pick(rng, 4, 6, 8) if group != 3 else pick(rng, 6, 9)
    width = pick(rng, 8, 12, 16)
    return {
        "model_type": family,
        "vocab_size": int(rng.integers(150, 400)),
        "hidden_size": heads * width,
        "num_hidden_layers": int(rng.integers(2, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // group if group else 1,
        "intermediate_size": 8 * int(rng.integers(8, 20)),
        "rms_norm_eps": pick(rng, 1e-6, 1e-5),
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    } | more


def scaled(kind: str, **more: Any) -> Raw:
    return {"rope_scaling": {"type": kind, "rope_type": kind, **more}}


def coder(rng: Random, group: int) -> Raw:
    return dense(rng, group=group, rope_theta=100000.0) | scaled("linear", factor=4.0)


def llama3(rng: Random) -> Raw:
    more = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return dense(rng, group=2, rope_theta=500000.0, head_dim=24) | scaled("llama3", **more)


def qwen3(rng: Random) -> Raw:
    more = {"factor": 4.0, "original_max_position_embeddings": 64, "attn_factor": 0.8782488562869419}
    return dense(rng, "qwen3", group=2, rope_theta=1e6, head_dim=pick(rng, 24, 32)) | scaled("yarn", **more)


def experts(rng: Random, family: str, routed: int, top_k: int, shared: int, **more: Any) -> Raw:
    return (
        dense(rng, family)
        | {
            "moe_intermediate_size": 8 * int(rng.integers(2, 6)),
            "n_routed_experts": routed,
            "num_experts_per_tok": top_k,
            "n_shared_experts": shared,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": False,
        }
        | more
    )


def latent(rng: Random, raw: Raw, q_lora: bool, mscale: float, factor: float) -> Raw:
    yarn = {"original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
    return raw | scaled("yarn", factor=factor, mscale=mscale, mscale_all_dim=mscale, **yarn) | {
        "q_lora_rank": pick(rng, 32, 40) if q_lora else None,
        "kv_lora_rank": pick(rng, 24, 32),
        "qk_nope_head_dim": pick(rng, 12, 16),
        "qk_rope_head_dim": pick(rng, 8, 16),
        "v_head_dim": pick(rng, 12, 20),
    }  # fmt: skip


def v2_lite(rng: Random) -> Raw:
    return latent(rng, experts(rng, "deepseek_v2", 8, 3, 2, topk_method="greedy"), False, 0.707, 40.0)


def v2(rng: Random) -> Raw:
    groups = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
    return latent(rng, experts(rng, "deepseek_v2", 16, 3, 2, **groups), True, 1.0, 40.0)


def v3(rng: Random) -> Raw:
    groups = {"topk_method": "noaux_tc", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
    raw = experts(rng, "deepseek_v3", 16, 4, 1, **groups, scoring_func="sigmoid", norm_topk_prob=True)
    return latent(rng, raw, True, 1.0, 40.0) | {"num_nextn_predict_layers": 0}


def v3_blocks(rng: Random, scale_fmt: str | None) -> Raw:
    """Wider than a block of 128, with ragged edges in both directions."""
    wide = {"hidden_size": pick(rng, 144, 160), "intermediate_size": 136, "moe_intermediate_size": 136}
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return v3(rng) | wide | {"quantization_config": said | ({"scale_fmt": scale_fmt} if scale_fmt else {})}


FAMILIES: dict[str, tuple[str, Callable[[Random], Raw]]] = {
    "llm": ("LLM, Math, Prover", lambda rng: dense(rng)),
    "llm-67b": ("LLM, Math, Prover", lambda rng: dense(rng, group=2)),
    "biases": ("LLM, Math, Prover", lambda rng: dense(rng, group=2, attention_bias=True, mlp_bias=True)),
    "coder": ("Coder", lambda rng: coder(rng, 1)),
    "coder-33b": ("Coder", lambda rng: coder(rng, 3)),
    "coder-mqa": ("Coder", lambda rng: coder(rng, 0)),
    "distill-qwen2": ("R1-Distill-Qwen", lambda rng: dense(rng, "qwen2", group=2)),
    "qwen2-tied": ("R1-Distill-Qwen", lambda rng: dense(rng, "qwen2", group=2, tie_word_embeddings=True)),
    "distill-llama": ("R1-Distill-Llama", llama3),
    "distill-qwen3": ("R1-0528-Qwen3", qwen3),
    "moe": ("MoE-16B", lambda rng: experts(rng, "deepseek", 8, 3, 2)),
    "v2-lite": ("V2, Coder-V2", v2_lite),
    "v2": ("V2, Coder-V2", v2),
    "v3": ("V3, R1", v3),
    "v3-fp8": ("V3, R1", lambda rng: v3_blocks(rng, None)),
    "v3.1-ue8m0": ("V3.1", lambda rng: v3_blocks(rng, "ue8m0")),
}
"""Row of docs/models.md, and config of a random shape."""
UNQUANTISED = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "e_score")


def blocks(weight: NDArray[np.float64], powers: bool) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.float64]]:
    """A matrix in E4M3 with a scale per block of 128 x 128, and the exact values they stand for."""
    rows, cols = (-(-n // 128) for n in weight.shape)
    padded = np.zeros((rows * 128, cols * 128))
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scales = np.abs(padded.reshape(rows, 128, cols, 128)).max((1, 3)) / 448
    scales = np.exp2(np.ceil(np.log2(scales))) if powers else scales.astype(np.float32).astype(np.float64)
    grown = scales.repeat(128, 0)[: weight.shape[0]].repeat(128, 1)[:, : weight.shape[1]]
    codes = torch.from_numpy(weight / grown).to(torch.float8_e4m3fn)
    kept = torch.from_numpy(scales).to(torch.float8_e8m0fnu if powers else torch.float32)
    return codes, kept, codes.double().numpy() * grown


def publish(model: PaperModel, folder: Path) -> None:
    """The model's tensors as a checkpoint, quantised if its config says so: the model then has the file's values."""
    folder.mkdir(exist_ok=True)
    said = model.raw.get("quantization_config")
    saved: dict[str, torch.Tensor] = {}
    for name, values in model.tensors.items():
        if said and values.ndim == 2 and not any(part in name for part in UNQUANTISED):
            saved[name], saved[f"{name}_scale_inv"], model.tensors[name] = blocks(values, "scale_fmt" in said)
        else:
            saved[name] = torch.from_numpy(values).float()
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.raw))


def prompt(rng: Random, raw: Raw) -> NDArray[np.int64]:
    return rng.integers(0, raw["vocab_size"], int(rng.integers(80, 200)))


def whole(tokens: NDArray[np.int64]) -> Batch:
    rows = np.arange(len(tokens), dtype=np.int32)
    pages = np.arange(-(-len(tokens) // 64), dtype=np.int32)[None]
    return Batch(tokens.astype(np.int32), rows, np.zeros_like(rows), pages, rows)


def transformers_logits(folder: Path, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    with torch.no_grad():
        logits: NDArray[np.float64] = reference.eval()(torch.from_numpy(tokens)[None]).logits[0].double().numpy()
    return logits


def check(row: str, reference: str, got: NDArray[Any], wanted: NDArray[Any]) -> None:
    error = float(np.abs(got - wanted).max())
    assert wanted.std() > 0.5, "the reference's logits must vary for the comparison to mean anything"
    record(row, reference, error, float(np.abs(wanted).max()))
    assert error < BOUND


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name: str, seed: int, tmp_path: Path) -> None:
    row, make = FAMILIES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    raw = make(rng)
    tokens, model = prompt(rng, raw), PaperModel(raw, seed)
    model.logits(tokens[:1])  # so that all weights are made
    publish(model, tmp_path)
    model.swayed = 0
    wanted = model.logits(tokens)
    got = NativeRunner(Checkpoint(tmp_path), "float32", blocks=4).run(whole(tokens))
    check(row, "float64 formula", got, wanted)
    if raw.get("topk_method") == "noaux_tc":
        assert model.swayed > 0, "the mask of excluded groups must matter"
    if name in ("moe", "distill-qwen3", "v3-fp8", "v3.1-ue8m0"):
        return
    theirs = transformers_logits(tmp_path, tokens)
    check(row, "transformers", got, theirs)
    assert np.abs(theirs - wanted).max() < 1e-4, "two independent references must agree"


@pytest.mark.parametrize("seed", SEEDS)
def test_attn_factor_is_a_factor_of_yarns_own(seed: int, tmp_path: Path) -> None:
    """transformers computes the Qwen3 distillation when it is told the product under the name it knows."""
    raw = qwen3(np.random.default_rng(seed))
    model, tokens = PaperModel(raw, seed), np.arange(100)
    wanted = model.logits(tokens)
    publish(model, tmp_path)
    got = NativeRunner(Checkpoint(tmp_path), "float32", blocks=4).run(whole(tokens))
    rope = dict(raw["rope_scaling"])
    rope["attention_factor"] = rope.pop("attn_factor") * (0.1 * np.log(4) + 1)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": rope}))
    theirs = transformers_logits(tmp_path, tokens)
    check("R1-0528-Qwen3", "transformers", got, theirs)
    assert np.abs(theirs - wanted).max() < 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_prediction_module(seed: int, tmp_path: Path) -> None:
    """V3's module reads the final norm of the main model's states, and shares its embedding and head."""
    rng = np.random.default_rng(seed)
    raw = v3(rng) | {"num_nextn_predict_layers": 1}
    tokens, model = prompt(rng, raw), PaperModel(raw, seed)
    model.logits(tokens[:1])
    wanted = model.further(tokens)
    copies = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
    prefix = f"model.layers.{raw['num_hidden_layers']}"
    model.tensors |= {f"{prefix}.{own}.weight": model.tensors[f"{main}.weight"] for own, main in copies.items()}
    publish(model, tmp_path)
    runner = NativeRunner(Checkpoint(tmp_path), "float32", blocks=4, mtp=True)
    assert runner.has_draft_head
    logits, states = runner.run_with_states(whole(tokens[:-1]))
    check("V3, R1", "float64 formula", logits, model.logits(tokens[:-1]))
    following = whole(tokens[1:])
    got, _ = runner.draft_logits(following, states)
    check("MTP", "float64 formula", got, wanted)
