"""Seeded random checkpoints of the true architectures at small width, made by transformers itself.

transformers is the independent reference: it builds, initialises, saves and runs the model; Deepwell only reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV32Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_BASE: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 512}
_MLA = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
}
_MOE = {"intermediate_size": 96, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "v_head_dim": 24}

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(
        **_BASE, intermediate_size=160, num_attention_heads=4, num_key_value_heads=4, rms_norm_eps=1e-6
    ),
    "llama-gqa-linear": lambda: LlamaConfig(
        **_BASE,
        intermediate_size=96,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
    ),
    "llama-tied-bias": lambda: LlamaConfig(
        **_BASE,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "llama-llama3": lambda: LlamaConfig(
        **_BASE,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-yarn": lambda: LlamaConfig(
        **_BASE,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: Qwen2Config(
        **_BASE, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False
    ),
    "qwen3": lambda: Qwen3Config(
        **_BASE,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "v2-lite": lambda: DeepseekV2Config(
        **_BASE,
        **_MLA,
        **_MOE,
        q_lora_rank=None,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        rope_parameters=dict(YARN),
        topk_method="greedy",
    ),
    "v2": lambda: DeepseekV2Config(
        **_BASE,
        **_MLA,
        **_MOE,
        q_lora_rank=48,
        n_routed_experts=16,
        num_experts_per_tok=3,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        routed_scaling_factor=4.0,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0),
    ),
    "v3": lambda: DeepseekV3Config(
        **_BASE,
        **_MLA,
        **_MOE,
        q_lora_rank=48,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0, factor=8.0),
    ),
    "v32": lambda: DeepseekV32Config(
        **_BASE,
        **_MLA,
        **_MOE,
        q_lora_rank=48,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        index_n_heads=16,
        index_head_dim=24,
        index_topk=40,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0, factor=8.0),
    ),
    "v3-plain": lambda: DeepseekV3Config(
        **_BASE, **_MLA, **_MOE, q_lora_rank=None, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1
    ),
}

WIDE: dict[str, Any] = {
    "qwen2-wide": lambda: Qwen2Config(
        **_BASE | {"hidden_size": 256, "num_hidden_layers": 2},
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
    "v3-wide": lambda: DeepseekV3Config(
        **_BASE | {"hidden_size": 256, "num_hidden_layers": 2},
        intermediate_size=512,
        moe_intermediate_size=256,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=256,
        kv_lora_rank=256,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.5,
    ),
}
"""Wide enough for blocks of 256 values."""


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model of that name with weights large enough that logits and routing really vary."""
    torch.manual_seed(seed)
    return _vary(AutoModelForCausalLM.from_config((CONFIGS | WIDE)[name](), dtype=torch.float32).eval())


def save(name: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """Save that model as a checkpoint in `folder` and return it, with the values the file holds, in float32."""
    make(name, seed).to(dtype).save_pretrained(folder, **options)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_deepseek_moe(folder: Path, seed: int = 0) -> PreTrainedModel:
    """A checkpoint of DeepSeek-MoE's architecture, which transformers lacks, and a model that computes the same.

    Qwen2-MoE is that architecture with biases and a gate on the shared expert more: biases are 0 here, and the gate
    is a constant 0.5, which the checkpoint's shared expert has in its last matrix.
    """
    torch.manual_seed(seed)
    moe = {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False, "shared_expert_intermediate_size": 64}
    config = Qwen2MoeConfig(
        **_BASE,
        **moe,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        mlp_only_layers=[0],
        tie_word_embeddings=False,
    )
    model = _vary(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("proj.bias", "shared_expert_gate.weight")):
                weight.zero_()
    model.save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    kept: dict[str, torch.Tensor] = {}
    for key, value in saved.items():
        if not key.endswith(("proj.bias", "shared_expert_gate.weight")):
            half = 0.5 if key.endswith("shared_expert.down_proj.weight") else 1.0
            kept[key.replace("shared_expert.", "shared_experts.")] = value * half
    save_file(kept, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text()) | {
        "model_type": "deepseek",
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return model


def _vary(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("norm.weight") or "layernorm" in key:
                weight.uniform_(0.5, 1.5)
            elif weight.ndim > 1:
                weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
            else:
                weight.normal_(0.0, 0.1)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.6, 0.3)
    return model
