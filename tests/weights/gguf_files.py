"""Tiny GGUF files of seeded transformers models, written by the gguf package as converters write them."""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import seeded
from gguf import ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter, RopeScalingType
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import PreTrainedModel

from deepwell.weights.gguf.ggml_types import BY_NAME
from fakes import SPECIALS, tiny_tokenizer, write_tiny_tokenizer
from ggml_blocks import random_weights

Arrays = dict[str, NDArray[Any]]
Change = Callable[[GGUFWriter, Arrays], None]
F32, BF16 = GGMLQuantizationType.F32, GGMLQuantizationType.BF16

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
    "mlp.gate": "ffn_gate_inp",
}


def permuted(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head reordered so that the two halves of a rotated pair lie next to each other."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def tensors_of(config: Any, saved: Mapping[str, NDArray[Any]], arch: str, split_kv_b: bool) -> Arrays:
    """A checkpoint's tensors under GGUF's names, in the order and layout that converters give them."""
    arrays: Arrays = {}
    experts: dict[str, list[NDArray[Any]]] = {}
    for source, value in sorted(saved.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]):
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", source)
        rest, prefix = (layer[2], f"blk.{layer[1]}.") if layer else (source, "")
        stem, _, kind = rest.rpartition(".")
        if expert := re.fullmatch(r"mlp\.experts\.\d+\.(\w+)_proj", stem):
            experts.setdefault(f"{prefix}ffn_{expert[1]}_exps.weight", []).append(value)
        elif kind == "e_score_correction_bias":
            arrays[f"{prefix}exp_probs_b.bias"] = value
        elif stem == "self_attn.kv_b_proj" and split_kv_b:
            nope = config.qk_nope_head_dim
            per_head = value.reshape(config.num_attention_heads, -1, value.shape[-1])
            arrays[f"{prefix}attn_k_b.weight"] = np.ascontiguousarray(per_head[:, :nope].swapaxes(1, 2))
            arrays[f"{prefix}attn_v_b.weight"] = np.ascontiguousarray(per_head[:, nope:])
        else:
            name = _NAMES.get(stem) or re.sub(
                r"^(self_attn\.(?P<a>[qkv])_(?P<w>proj|norm)|mlp\.(?P<s>shared_experts?\.)?(?P<m>\w+)_proj)$",
                lambda m: (
                    f"attn_{m['a']}" + ("_norm" if m["w"] == "norm" else "")
                    if m["a"]
                    else f"ffn_{m['m']}" + ("_shexp" if m["s"] else "")
                ),
                stem,
            )
            if arch in ("llama", "deepseek") and name in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                value = permuted(value, heads)
            arrays[f"{prefix}{name}.{kind}"] = value
    return arrays | {name: np.stack(parts) for name, parts in experts.items()}


def _metadata(w: GGUFWriter, c: Any, arch: str, split_kv_b: bool) -> None:
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    rope = c.rope_parameters
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_type(RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if arch in ("deepseek2", "deepseek32"):
        _mla(w, c, split_kv_b)
        if rope.get("mscale_all_dim"):
            w.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    else:
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
        w.add_rope_dimension_count(head_dim)


def _mla(w: GGUFWriter, c: Any, split_kv_b: bool) -> None:
    key, latent = c.qk_nope_head_dim + c.qk_rope_head_dim, c.kv_lora_rank
    w.add_kv_lora_rank(latent)
    w.add_rope_dimension_count(c.qk_rope_head_dim)
    if c.q_lora_rank:
        w.add_q_lora_rank(c.q_lora_rank)
    w.add_head_count_kv(1 if split_kv_b else c.num_attention_heads)
    w.add_key_length(latent + c.qk_rope_head_dim if split_kv_b else key)
    w.add_value_length(latent if split_kv_b else c.v_head_dim)
    if split_kv_b:
        w.add_key_length_mla(key)
        w.add_value_length_mla(c.v_head_dim)
    w.add_leading_dense_block_count(c.first_k_dense_replace)
    w.add_expert_feed_forward_length(c.moe_intermediate_size)
    w.add_expert_count(c.n_routed_experts)
    w.add_expert_used_count(c.num_experts_per_tok)
    w.add_expert_shared_count(c.n_shared_experts)
    w.add_expert_weights_scale(c.routed_scaling_factor)
    if c.n_group:
        w.add_expert_group_count(c.n_group)
        w.add_expert_group_used_count(c.topk_group)
    if c.model_type in ("deepseek_v3", "deepseek_v32"):
        w.add_expert_weights_norm(c.norm_topk_prob)
        w.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if c.model_type == "deepseek_v32":
        w.add_indexer_head_count(c.index_n_heads)
        w.add_indexer_key_length(c.index_head_dim)
        w.add_indexer_top_k(c.index_topk)


def add_tokenizer(w: GGUFWriter, pre: str = "gpt-2") -> None:
    """The tiny tokenizer of the tests: its special tokens as control tokens, 0 and 1 first and last."""
    with tempfile.TemporaryDirectory() as folder:
        raw = json.loads((write_tiny_tokenizer(Path(folder)) / "tokenizer.json").read_text("utf-8"))
    vocab = sorted(raw["model"]["vocab"].items(), key=lambda item: item[1])
    assert [id for _, id in vocab] == list(range(tiny_tokenizer().vocab_size))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list([text for text, _ in vocab])
    w.add_token_types([3 if text in SPECIALS else 1 for text, _ in vocab])
    w.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(True)
    w.add_chat_template("{{ bos_token }}")


def write(
    file: Path,
    config: Any,
    saved: Mapping[str, NDArray[Any]],
    arch: str,
    *,
    split_kv_b: bool = True,
    quantise: Callable[[str], GGMLQuantizationType] = lambda name: F32,
    change: Change | None = None,
    **options: Any,
) -> Path:
    """Write a model. `quantise` gives a matrix's type by name, and rows of no whole blocks stay F32; `change` edits
    metadata and tensors before."""
    writer = GGUFWriter(file, arch, **options)
    arrays = tensors_of(config, saved, arch, split_kv_b)
    _metadata(writer, config, arch, split_kv_b)
    add_tokenizer(writer)
    if change is not None:
        change(writer, arrays)
    for name, value in arrays.items():
        kind = quantise(name) if value.ndim > 1 and value.shape[-1] % 32 == 0 else F32
        writer.add_tensor(name, _quantised(name, value.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _quantised(name: str, value: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    """By the gguf package, or random blocks of the type where it can only read it."""
    if kind == F32:
        return value
    try:
        return gguf.quants.quantize(value, kind)
    except NotImplementedError:
        t = BY_NAME[kind.name.lower()]
        rows = random_weights(t, value.size // value.shape[-1], value.shape[-1], zlib.crc32(name.encode()))
        return rows.reshape(*value.shape[:-1], -1)


def arch_of(config: Any) -> str:
    archs = {"deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "deepseek_v32": "deepseek32"}
    return archs.get(config.model_type, config.model_type)


def save(name: str, folder: Path, seed: int = 0, **options: Any) -> tuple[PreTrainedModel, Path]:
    """A seeded model as transformers runs it, and the GGUF file of it."""
    reference = seeded.save(name, folder, seed)
    config = reference.config
    if config.rope_parameters["rope_type"] == "llama3":
        options.setdefault("change", _llama3(reference))
    saved = load_file(folder / "model.safetensors")
    return reference, write(folder / f"{name}.gguf", config, saved, arch_of(config), **options)


def _llama3(reference: PreTrainedModel) -> Change:
    """Llama 3.1's scaling as converters store it: what each plain frequency is divided by."""
    base: Any = reference.base_model
    scaled = base.rotary_emb.inv_freq.double().numpy()
    width = 2 * len(scaled)
    plain = reference.config.rope_parameters["rope_theta"] ** -(np.arange(0, width, 2) / width)

    def change(writer: GGUFWriter, arrays: Arrays) -> None:
        arrays["rope_freqs.weight"] = (plain / scaled).astype(np.float32)

    return change
