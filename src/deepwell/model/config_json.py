"""A `ModelConfig` as the config.json that plain transformers reads: the inverse of `from_hugging_face`."""

from __future__ import annotations

from typing import Any

import numpy as np

from deepwell.errors import ConfigError
from deepwell.model.config import MlaConfig, ModelConfig, MoeConfig
from deepwell.model.rope import RopeConfig

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
}
_LONGEST = 20
"""Powers of two that are tried as the context before llama3 scaling."""


def config_json(config: ModelConfig, *, bos: int | None, eos: int | None, dtype: str) -> dict[str, Any]:
    """The parsed config.json of a model of any family, in the older keys that every reader understands.

    ConfigError for what config.json has no keys for.
    """
    if config.family not in _CLASSES:
        raise ConfigError(f"no config.json is known for {config.family}; supported are {', '.join(_CLASSES)}")
    if config.qkv_bias != (config.family == "qwen2"):
        raise ConfigError(f"a {config.family} model with biases of q, k and v alone has no config.json")
    raw: dict[str, Any] = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        "torch_dtype": dtype,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads if config.mla else config.kv_heads,
        "intermediate_size": config.inter,
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{config.eps:.7g}"),  # a float32 of a GGUF file is not what was meant
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "bos_token_id": bos,
        "eos_token_id": eos,
        **_scaling(config.rope, config.head_dim),
        **(_latent(config.mla) if config.mla else {"head_dim": config.head_dim}),
    }
    if config.family == "qwen2":
        raw["use_sliding_window"] = False
    if config.family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if config.family.startswith("deepseek"):
        raw |= _experts(config, config.moe)
    if config.family in ("deepseek_v3", "deepseek_v32"):
        raw["num_nextn_predict_layers"] = config.mtp_layers
    if (index := config.index) is not None:
        raw |= {"index_n_heads": index.heads, "index_head_dim": index.head_dim, "index_topk": index.top_k}
    return raw


def _latent(mla: MlaConfig) -> dict[str, Any]:
    return {
        "q_lora_rank": mla.q_lora,
        "kv_lora_rank": mla.kv_lora,
        "qk_nope_head_dim": mla.nope,
        "qk_rope_head_dim": mla.rope,
        "v_head_dim": mla.value,
    }


def _experts(config: ModelConfig, moe: MoeConfig | None) -> dict[str, Any]:
    if moe is None:
        return {"first_k_dense_replace": config.layers}
    routing = moe.routing
    return {
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": 1,
        "moe_intermediate_size": moe.inter,
        "n_routed_experts": routing.experts,
        "n_shared_experts": moe.shared,
        "num_experts_per_tok": routing.top_k,
        "n_group": routing.n_group,
        "topk_group": routing.topk_group,
        "scoring_func": routing.scoring,
        "topk_method": routing.method,
        "norm_topk_prob": routing.normalize,
        "routed_scaling_factor": routing.scale,
    }


def _scaling(rope: RopeConfig, width: int) -> dict[str, Any]:
    if rope.divisors:
        rope = _named(rope, width)
    if rope.kind == "default":
        return {}
    scaling: dict[str, Any] = {"type": rope.kind, "rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind != "linear":
        scaling["original_max_position_embeddings"] = rope.original
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.mscale or rope.mscale_all_dim:
            scaling |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
        if rope.attn_factor != 1:
            scaling["attn_factor"] = rope.attn_factor
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    return {"rope_scaling": scaling}


def _named(rope: RopeConfig, width: int) -> RopeConfig:
    """The llama3 scaling whose divisors these are. ConfigError if there is none."""
    divisors = np.array(rope.divisors)
    if rope.kind == "default":
        for power in range(4, _LONGEST):
            tried = RopeConfig(theta=rope.theta, kind="llama3", factor=float(divisors.max()), original=1 << power)
            if np.allclose(tried.llama3_divisors(width), divisors, rtol=1e-5):
                return tried
    raise ConfigError("the tensor rope_freqs.weight follows no rule that a config.json could name")
