"""What GGUF calls the tensors that `param_specs` names as a Hugging Face checkpoint does."""

from __future__ import annotations

import re

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate": "ffn_gate_inp",
}
_IN_LAYER |= {f"self_attn.{part}_b_proj": f"attn_{part}_b" for part in "kv"}  # newer files' halves of kv_b
_IN_LAYER |= {
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
}
_IN_LAYER |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
_IN_LAYER |= {f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(\w+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)_proj")


def gguf_name(source: str) -> tuple[str, int | None]:
    """Where GGUF keeps a tensor of `param_specs`: the name, and the place in it if it is one of stacked experts."""
    if (match := _LAYER.fullmatch(source)) is None:
        stem, _, kind = source.rpartition(".")
        return f"{_TOP[stem]}.{kind}", None
    layer, stem, kind = match.groups()
    if kind == "e_score_correction_bias":
        return f"blk.{layer}.exp_probs_b.bias", None
    if (expert := _EXPERT.fullmatch(stem)) is not None:
        return f"blk.{layer}.ffn_{expert[2]}_exps.{kind}", int(expert[1])
    return f"blk.{layer}.{_IN_LAYER[stem]}.{kind}", None
