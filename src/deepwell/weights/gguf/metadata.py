"""What a GGUF file says of its model: a `ModelConfig` as metadata keys, the inverse of `gguf_config.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepwell.errors import ConfigError
from deepwell.model.config import IndexConfig, MlaConfig, ModelConfig, MoeConfig
from deepwell.model.rope import RopeConfig, yarn_mscale
from deepwell.weights.outgoing import Rows

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_v32": "deepseek32",
}
"""Architectures by family."""
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 14, "q6_k": 18, "bf16": 32}
"""general.file_type by the type of most matrices."""
_SOFTMAX, _SIGMOID = 1, 2


def architecture(config: ModelConfig) -> str:
    """What GGUF calls a family. ConfigError for one that it is not written for."""
    if config.family not in ARCHITECTURES:
        raise ConfigError(
            f"models of the family {config.family} cannot be written as GGUF; supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[config.family]


def model_metadata(config: ModelConfig, name: str, stored: str) -> dict[str, Any]:
    """The keys that say what the model is. `stored` is the ggml type of most matrices.

    ConfigError for a family, or a way of stretching positions, that GGUF has no keys for.
    """
    arch = architecture(config)
    facts: dict[str, Any] = {
        "vocab_size": config.vocab,
        "context_length": config.context,
        "embedding_length": config.hidden,
        "block_count": config.layers,
        "feed_forward_length": config.inter,
        "attention.head_count": config.heads,
        "attention.layer_norm_rms_epsilon": float(config.eps),
        **(_latent(config.mla) if config.mla else _plain(config)),
        **(_experts(config, config.moe) if arch.startswith("deepseek") else {}),
        **(_indexer(config.index) if config.index else {}),
        **_rope(config),
    }
    general: dict[str, Any] = {"general.architecture": arch, "general.name": name, "general.quantization_version": 2}
    if stored in _FILE_TYPES:
        general["general.file_type"] = _FILE_TYPES[stored]
    return general | {f"{arch}.{key}": value for key, value in facts.items()}


def rope_freqs(config: ModelConfig) -> Rows | None:
    """What each frequency is divided by, for the tensor that llama3 scaling is stored as; None without it."""
    rope = config.rope
    divisors = rope.llama3_divisors(config.head_dim) if rope.kind == "llama3" else rope.divisors
    return np.array(divisors, np.float32) if divisors else None


def _plain(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }


def _latent(mla: MlaConfig) -> dict[str, Any]:
    """Absorbed attention is one key head of latent and rope columns; *_mla are the widths of a head as trained."""
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": mla.q_lora or 0,
        "attention.kv_lora_rank": mla.kv_lora,
        "attention.key_length": mla.kv_lora + mla.rope,
        "attention.value_length": mla.kv_lora,
        "attention.key_length_mla": mla.nope + mla.rope,
        "attention.value_length_mla": mla.value,
        "rope.dimension_count": mla.rope,
    }


def _experts(config: ModelConfig, moe: MoeConfig | None) -> dict[str, Any]:
    if moe is None:
        return {
            "leading_dense_block_count": config.layers,
            "expert_feed_forward_length": config.inter,
            "expert_count": 0,
            "expert_shared_count": 0,
        }
    routing = moe.routing
    facts = {
        "leading_dense_block_count": moe.first_dense,
        "expert_feed_forward_length": moe.inter,
        "expert_count": routing.experts,
        "expert_used_count": routing.top_k,
        "expert_shared_count": moe.shared,
        "expert_weights_scale": float(routing.scale),
        "expert_weights_norm": routing.normalize,
        "expert_gating_func": _SIGMOID if routing.scoring == "sigmoid" else _SOFTMAX,
    }
    if routing.n_group > 1:
        facts |= {"expert_group_count": routing.n_group, "expert_group_used_count": routing.topk_group}
    return facts


def _indexer(index: IndexConfig) -> dict[str, Any]:
    names = {"head_count": index.heads, "key_length": index.head_dim, "top_k": index.top_k}
    return {f"attention.indexer.{name}": value for name, value in names.items()}


def _rope(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    facts: dict[str, Any] = {"rope.freq_base": float(rope.theta)}
    if rope.kind in ("default", "llama3"):  # the latter is a tensor of its own
        return facts
    facts |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": float(rope.factor)}
    if rope.kind == "linear":
        return facts
    facts |= {
        "rope.scaling.original_context_length": int(rope.original),
        "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
    }
    return facts | _temperature(rope, config.mla is not None)


def _temperature(rope: RopeConfig, latent: bool) -> dict[str, Any]:
    """How YaRN scales: for latent attention a tenth of mscale_all_dim, which stands for mscale too."""
    if rope.mscale != rope.mscale_all_dim or (rope.mscale and not latent):
        raise ConfigError(
            f"yarn with mscale {rope.mscale:g} and mscale_all_dim {rope.mscale_all_dim:g} has no keys in GGUF; "
            "supported are equal values, with latent attention"
        )
    facts: dict[str, Any] = {}
    if rope.mscale:
        facts["rope.scaling.yarn_log_multiplier"] = 0.1 * rope.mscale
    if rope.attention_factor is not None:
        facts["rope.scaling.yarn_attn_factor"] = float(rope.attention_factor)
        # llama.cpp multiplies YaRN's own factor by this one
        facts["rope.scaling.attn_factor"] = rope.attention_factor / yarn_mscale(rope.factor, 1.0)
    elif rope.attn_factor != 1:
        facts["rope.scaling.attn_factor"] = float(rope.attn_factor)
    return facts
