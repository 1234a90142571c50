"""The text models that DeepSeek has released, as shapes: what `deepwell models` lists.

Each is said in the keys of its config.json, so that the same reader makes the shape. `tests/model/test_published.py`
holds the counts against the published ones.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from deepwell.model.config import ModelConfig, from_hugging_face


class Published(msgspec.Struct, frozen=True):
    """A released model. `stored` is how its files hold most weights: bfloat16, or float8 (blocks with scales).

    `unchecked` names the config keys that were not compared with the published file.
    """

    name: str
    config: ModelConfig
    stored: str = "bfloat16"
    unchecked: tuple[str, ...] = ()


@cache
def published() -> dict[str, Published]:
    """All of them by name in lower case, in the order of their families and sizes."""
    return {model.name.lower(): model for model in _all()}


def find_published(name: str) -> Published | None:
    """The model called `name`: as listed or as on a hub, with or without owner, variant (-base, -chat) and date."""
    plain = _VARIANT.sub("", name.lower().removeprefix("deepseek-ai/"))
    known = published()
    undated = _DATE.sub("", plain)
    return next((known[n] for n in (plain, undated, f"deepseek-{plain}", f"deepseek-{undated}") if n in known), None)


_VARIANT = re.compile(r"-(base|chat|instruct|rl|sft)(?=-|$)")
_DATE = re.compile(r"-\d{4}$")
_YARN = {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}


def _llama(hidden: int, inter: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
    } | more


def _coder(hidden: int, inter: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """DeepSeek-Coder's first series: 4K of training stretched to 16K."""
    scaling = {"type": "linear", "factor": 4.0}
    more = {"rope_theta": 100000.0, "rope_scaling": scaling, "max_position_embeddings": 16384}
    return _llama(hidden, inter, layers, heads, kv_heads, 32256, **more)


def _moe(hidden: int, inter: int, layers: int, heads: int, experts: int, width: int, **more: Any) -> dict[str, Any]:
    """Two shared experts and six of many, behind one dense layer: MoE-16B and V2."""
    return (
        _llama(hidden, inter, layers, heads, heads, 102400)
        | {
            "moe_intermediate_size": width,
            "n_routed_experts": experts,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "scoring_func": "softmax",
        }
        | more
    )


def _latent(q_lora: int | None, mscale: float) -> dict[str, Any]:
    """Multi-head latent attention as in every model from V2 on, with YaRN to 160K positions."""
    return {
        "q_lora_rank": q_lora,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_scaling": _YARN | {"factor": 40, "mscale": mscale, "mscale_all_dim": mscale},
        "max_position_embeddings": 163840,
    }


_LLM_7B = _llama(4096, 11008, 30, 32, 32, 102400)
_PROVER_V2_7B = _LLM_7B | {
    "rope_scaling": _YARN | {"factor": 16, "mscale": 1.0, "mscale_all_dim": 1.0},
    "max_position_embeddings": 65536,
}
_MOE_16B = _moe(2048, 10944, 28, 16, 64, 1408, model_type="deepseek")
_V2_LITE = _moe(2048, 10944, 27, 16, 64, 1408, model_type="deepseek_v2", topk_method="greedy") | _latent(None, 0.707)
_V2 = (
    _moe(5120, 12288, 60, 128, 160, 1536, model_type="deepseek_v2", routed_scaling_factor=16.0)
    | _latent(1536, 1.0)
    | {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
)
_V3 = (
    _moe(7168, 18432, 61, 128, 256, 2048, model_type="deepseek_v3", routed_scaling_factor=2.5)
    | _latent(1536, 1.0)
    | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 8, "topk_group": 4}
    | {"n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "vocab_size": 129280}
    | {"num_nextn_predict_layers": 1}
)
_V32 = _V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
_LLAMA_3 = {
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_QWEN_3 = {
    "model_type": "qwen3",
    "head_dim": 128,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attn_factor": 0.8782488562869419,
    },
}


def _qwen_2(hidden: int, inter: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    more = {"model_type": "qwen2", "max_position_embeddings": 131072} | more
    return _llama(hidden, inter, layers, heads, kv_heads, vocab, **more)


def _all() -> list[Published]:
    later = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5}
    v3, v32 = (_V3, "float8"), (_V32, "float8")
    return [
        _published("DeepSeek-LLM-7B", _LLM_7B),
        _published("DeepSeek-LLM-67B", _llama(8192, 22016, 95, 64, 8, 102400)),
        _published("DeepSeek-Coder-1.3B", _coder(2048, 5504, 24, 16, 16)),
        _published("DeepSeek-Coder-5.7BMQA", _coder(4096, 11008, 32, 32, 1)),
        _published("DeepSeek-Coder-6.7B", _coder(4096, 11008, 32, 32, 32)),
        _published("DeepSeek-Coder-33B", _coder(7168, 19200, 62, 56, 8)),
        _published("DeepSeek-Coder-7B-v1.5", _LLM_7B),
        _published("DeepSeek-Math-7B", _LLM_7B),
        _published("DeepSeek-Prover-V1", _LLM_7B),
        _published("DeepSeek-Prover-V1.5", _LLM_7B),
        _published("DeepSeek-Prover-V2-7B", _PROVER_V2_7B, "bfloat16", "rope_scaling max_position_embeddings"),
        _published("DeepSeek-MoE-16B", _MOE_16B),
        _published("DeepSeek-V2-Lite", _V2_LITE),
        _published("DeepSeek-Coder-V2-Lite", _V2_LITE),
        _published("DeepSeek-V2", _V2),
        _published("DeepSeek-Coder-V2", _V2),
        _published("DeepSeek-V2.5", _V2),
        _published("DeepSeek-V3", *v3),
        _published("DeepSeek-V3-0324", *v3),
        _published("DeepSeek-R1-Zero", *v3),
        _published("DeepSeek-R1", *v3),
        _published("DeepSeek-R1-0528", *v3),
        _published("DeepSeek-Prover-V2-671B", *v3),
        _published("DeepSeek-V3.1", *v3),
        _published("DeepSeek-V3.1-Terminus", *v3),
        _published("DeepSeek-V3.2-Exp", *v32),
        _published("DeepSeek-V3.2", *v32),
        _published("DeepSeek-V3.2-Speciale", *v32),
        _published("DeepSeek-Math-V2", *v32),
        _published("DeepSeek-R1-Distill-Qwen-1.5B", _qwen_2(1536, 8960, 28, 12, 2, 151936)),
        _published("DeepSeek-R1-Distill-Qwen-7B", _qwen_2(3584, 18944, 28, 28, 4, 152064)),
        _published("DeepSeek-R1-Distill-Llama-8B", _llama(4096, 14336, 32, 32, 8, 128256, **_LLAMA_3)),
        _published("DeepSeek-R1-0528-Qwen3-8B", _llama(4096, 12288, 36, 32, 8, 151936, **_QWEN_3)),
        _published("DeepSeek-R1-Distill-Qwen-14B", _qwen_2(5120, 13824, 48, 40, 8, 152064, **later)),
        _published("DeepSeek-R1-Distill-Qwen-32B", _qwen_2(5120, 27648, 64, 40, 8, 152064, **later)),
        _published("DeepSeek-R1-Distill-Llama-70B", _llama(8192, 28672, 80, 64, 8, 128256, **_LLAMA_3)),
    ]


def _published(name: str, raw: dict[str, Any], stored: str = "bfloat16", unchecked: str = "") -> Published:
    return Published(name, from_hugging_face(raw), stored, tuple(unchecked.split()))
