"""The model's own accounting agrees with published sizes and with parameters counted by transformers."""

from typing import Any

import pytest
import seeded
from transformers import AutoModelForCausalLM

from deepwell.model import account, from_hugging_face
from deepwell.ops.base import MlaShape

V2_LITE = {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    },
}
V2 = V2_LITE | {
    "hidden_size": 5120,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "q_lora_rank": 1536,
    "topk_method": "group_limited_greedy",
    "n_group": 8,
    "topk_group": 3,
    "routed_scaling_factor": 16.0,
}
V3 = V2 | {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
}
V32 = V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}
LLM_7B = {
    "model_type": "llama",
    "vocab_size": 102400,
    "hidden_size": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("raw", "total", "active"),
    [(V2_LITE, 15.7, 2.4), (V2, 236.0, 21.0), (V3, 671.0, 37.0), (V32, 671.9, 37.9), (LLM_7B, 6.9, 6.5)],
    ids=["v2-lite", "v2", "v3", "v3.2", "llm-7b"],
)
def test_published_sizes(raw: dict[str, Any], total: float, active: float) -> None:
    """The papers' billions; they count active parameters with or without embeddings, hence the wide band."""
    counted = account(from_hugging_face(raw))
    assert counted.total_params / 1e9 == pytest.approx(total, rel=0.005)
    assert counted.active_params / 1e9 == pytest.approx(active, rel=0.06)


def test_latent_cache_of_v3() -> None:
    """576 values per token and layer, against 128 heads with keys of 192 and values of 128 of plain attention."""
    counted = account(from_hugging_face(V3), kv_bytes=2)
    assert counted.kv_bytes_per_token == 61 * 576 * 2
    assert counted.mha_kv_bytes_per_token == 61 * 128 * (192 + 128) * 2
    assert counted.mtp_params > 11e9


def test_indexers_of_v32() -> None:
    """A key of 128 beside each latent, 14 million parameters a layer, and a fraction of the work far from the start."""
    counted, dense = (account(from_hugging_face(raw), kv_bytes=2, depth=131071) for raw in (V32, V3))
    assert counted.kv_bytes_per_token == 61 * (576 + 128) * 2
    assert counted.total_params - dense.total_params == 61 * (8192 * 1536 + (128 + 64) * 7168 + 2 * 128)
    assert counted.flops_per_token < 0.15 * dense.flops_per_token


def test_yarn_scale_of_v3() -> None:
    """192^-0.5 · (0.1 · ln 40 + 1)², with mscale_all_dim read from the config."""
    shape = from_hugging_face(V3 | {"rope_scaling": V3["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0}})
    attention = shape.attention
    assert isinstance(attention, MlaShape)
    assert attention.scale == pytest.approx(192**-0.5 * 1.3688879454113936**2)
    assert shape.rotation.magnitude == 1.0


@pytest.mark.parametrize("name", seeded.CONFIGS)
def test_counts_equal_transformers(name: str) -> None:
    config = seeded.CONFIGS[name]()
    model = AutoModelForCausalLM.from_config(config)
    biases = sum(b.numel() for k, b in model.named_buffers() if k.endswith("e_score_correction_bias"))
    assert account(from_hugging_face(config.to_dict())).total_params == model.num_parameters() + biases
