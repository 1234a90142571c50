"""What a GGUF file says of its model: a `ModelConfig` as metadata keys, the inverse of `config.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepwell.errors import ConfigError
from deepwell.model.config import IndexConfig, MlaConfig, ModelConfig, MoeConfig
from deepwell.model.rope import RopeConfig, yarn_mscale
from deepwell.weights.gguf.keys import ARCHITECTURES, SIGMOID, SOFTMAX, General, Key
from deepwell.weights.tensor_stream import Rows

_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k": 14, "q6_k": 18, "bf16": 32}
"""general.file_type by the type of most matrices."""


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
        Key.VOCAB: config.vocab,
        Key.CONTEXT: config.context,
        Key.HIDDEN: config.hidden,
        Key.BLOCKS: config.layers,
        Key.INTER: config.inter,
        Key.HEADS: config.heads,
        Key.EPS: float(config.eps),
        **(_latent(config.mla) if config.mla else _plain(config)),
        **(_experts(config, config.moe) if arch.startswith("deepseek") else {}),
        **(_indexer(config.index) if config.index else {}),
        **_rope(config),
    }
    general: dict[str, Any] = {General.ARCHITECTURE: arch, General.NAME: name, General.QUANTIZATION: 2}
    if stored in _FILE_TYPES:
        general[General.FILE_TYPE] = _FILE_TYPES[stored]
    return general | {f"{arch}.{key}": value for key, value in facts.items()}


def rope_freqs(config: ModelConfig) -> Rows | None:
    """What each frequency is divided by, for the tensor that llama3 scaling is stored as; None without it."""
    rope = config.rope
    divisors = rope.llama3_divisors(config.head_dim) if rope.kind == "llama3" else rope.divisors
    return np.array(divisors, np.float32) if divisors else None


def _plain(config: ModelConfig) -> dict[str, Any]:
    return {
        Key.KV_HEADS: config.kv_heads,
        Key.KEY_WIDTH: config.head_dim,
        Key.VALUE_WIDTH: config.head_dim,
        Key.ROTATED: config.head_dim,
    }


def _latent(mla: MlaConfig) -> dict[str, Any]:
    """Absorbed attention is one key head of latent and rope columns; *_mla are the widths of a head as trained."""
    return {
        Key.KV_HEADS: 1,
        Key.Q_LORA: mla.q_lora or 0,
        Key.KV_LORA: mla.kv_lora,
        Key.KEY_WIDTH: mla.kv_lora + mla.rope,
        Key.VALUE_WIDTH: mla.kv_lora,
        Key.MLA_KEY_WIDTH: mla.nope + mla.rope,
        Key.MLA_VALUE_WIDTH: mla.value,
        Key.ROTATED: mla.rope,
    }


def _experts(config: ModelConfig, moe: MoeConfig | None) -> dict[str, Any]:
    if moe is None:
        return {
            Key.FIRST_DENSE: config.layers,
            Key.EXPERT_INTER: config.inter,
            Key.EXPERTS: 0,
            Key.EXPERTS_SHARED: 0,
        }
    routing = moe.routing
    facts = {
        Key.FIRST_DENSE: moe.first_dense,
        Key.EXPERT_INTER: moe.inter,
        Key.EXPERTS: routing.experts,
        Key.EXPERTS_USED: routing.top_k,
        Key.EXPERTS_SHARED: moe.shared,
        Key.EXPERT_SCALE: float(routing.scale),
        Key.EXPERT_NORM: routing.normalize,
        Key.EXPERT_GATING: SIGMOID if routing.scoring == "sigmoid" else SOFTMAX,
    }
    if routing.n_group > 1:
        facts |= {Key.EXPERT_GROUPS: routing.n_group, Key.EXPERT_GROUPS_USED: routing.topk_group}
    return facts


def _indexer(index: IndexConfig) -> dict[str, Any]:
    return {Key.INDEX_HEADS: index.heads, Key.INDEX_WIDTH: index.head_dim, Key.INDEX_TOP_K: index.top_k}


def _rope(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    facts: dict[str, Any] = {Key.ROPE_BASE: float(rope.theta)}
    if rope.kind in ("default", "llama3"):  # the latter is a tensor of its own
        return facts
    facts |= {Key.ROPE_TYPE: rope.kind, Key.ROPE_FACTOR: float(rope.factor)}
    if rope.kind == "linear":
        return facts
    facts |= {
        Key.ROPE_ORIGINAL: int(rope.original),
        Key.YARN_FAST: float(rope.beta_fast),
        Key.YARN_SLOW: float(rope.beta_slow),
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
        facts[Key.YARN_LOG] = 0.1 * rope.mscale
    if rope.attention_factor is not None:
        facts[Key.YARN_ATTN_FACTOR] = float(rope.attention_factor)
        # llama.cpp multiplies YaRN's own factor by this one
        facts[Key.ATTN_FACTOR] = rope.attention_factor / yarn_mscale(rope.factor, 1.0)
    elif rope.attn_factor != 1:
        facts[Key.ATTN_FACTOR] = float(rope.attn_factor)
    return facts
