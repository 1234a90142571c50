"""Why a model folder does not hold the model it should, and what to do: the sentences behind a CheckpointError."""

from __future__ import annotations

import re
from pathlib import Path

from deepwell.model.config import ModelConfig

AGAIN = "download it again, or finish the download"
_ROWS_COLS = {
    "embed_tokens": ("vocab_size", "hidden_size"),
    "lm_head": ("vocab_size", "hidden_size"),
    "q_proj": ("num_attention_heads and the width of a head", "hidden_size"),
    "k_proj": ("num_key_value_heads and the width of a head", "hidden_size"),
    "v_proj": ("num_key_value_heads and the width of a head", "hidden_size"),
    "o_proj": ("hidden_size", "num_attention_heads and the width of a head"),
    "q_a_proj": ("q_lora_rank", "hidden_size"),
    "q_b_proj": ("num_attention_heads, qk_nope_head_dim and qk_rope_head_dim", "q_lora_rank"),
    "kv_a_proj_with_mqa": ("kv_lora_rank and qk_rope_head_dim", "hidden_size"),
    "kv_b_proj": ("num_attention_heads, qk_nope_head_dim and v_head_dim", "kv_lora_rank"),
    "q_a_layernorm": ("q_lora_rank",),
    "kv_a_layernorm": ("kv_lora_rank",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "gate": ("n_routed_experts", "hidden_size"),
    "eh_proj": ("hidden_size", "hidden_size"),
    "wq_b": ("index_n_heads and index_head_dim", "q_lora_rank"),
    "wk": ("index_head_dim", "hidden_size"),
    "weights_proj": ("index_n_heads", "hidden_size"),
}
"""What in config.json decides each dimension of a tensor, by the last part of its name that says what it is."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.")


def decided_by(tensor: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The config keys to compare with a tensor of an unexpected shape."""
    part = tensor.split(".")[-2]
    inner = "moe_intermediate_size" if ".experts." in tensor else "intermediate_size"
    if ".shared_experts." in tensor:
        inner = "n_shared_experts and moe_intermediate_size"
    keys = _ROWS_COLS.get(part, ("hidden_size",))
    if part in ("gate_proj", "up_proj"):
        keys = (inner, "hidden_size")
    elif part == "down_proj":
        keys = ("hidden_size", inner)
    if tensor.endswith("e_score_correction_bias"):
        keys = ("n_routed_experts",)
    elif ".indexer.k_norm." in tensor:
        keys = ("index_head_dim",)
    differ = [key for key, have, want in zip(keys, shape, wanted, strict=False) if have != want]
    return " and ".join(differ or keys[:1])


def stranger(tensor: str, config: ModelConfig) -> str:
    """What a tensor that the config does not call for says about it; empty if nothing in particular."""
    layer = _LAYER.match(tensor)
    if layer and int(layer[1]) >= config.layers:
        return f": config.json says num_hidden_layers {config.layers}"
    expert = layer and _EXPERT.match(layer[2])
    if expert and config.moe is None:
        return ": config.json says nothing of experts (n_routed_experts)"
    if expert and config.moe is not None:
        if layer and not config.is_moe(int(layer[1])):
            return f": config.json says first_k_dense_replace {config.moe.first_dense}"
        if int(expert[1]) >= config.moe.routing.experts:
            return f": config.json says n_routed_experts {config.moe.routing.experts}"
    if ".indexer." in tensor:
        return ": config.json says nothing of an indexer (model_type deepseek_v32)"
    if tensor.endswith("_proj.bias"):
        return ": config.json says attention_bias or mlp_bias false"
    if tensor.endswith(".e_score_correction_bias"):
        return ": config.json says another topk_method than noaux_tc"
    return ": config.json is of another model, or of another version of this one"


def no_config(folder: Path) -> str:
    """What a folder without config.json holds instead."""
    if unfinished(folder):
        return f"has no config.json, and a download into it is not finished; {AGAIN}"
    if found := sorted(file for kind in ("*.gguf", "*.deepwell") for file in folder.glob(kind)):
        return f"has no config.json; give the file itself: {found[0]}"
    if inner := sorted(file.parent for file in folder.glob("*/config.json")):
        return f"has no config.json, but folders in it have: {', '.join(map(str, inner[:4]))}"
    return "has no config.json; a model folder holds that beside its *.safetensors and tokenizer.json"


def no_weights(folder: Path) -> str:
    """What a folder without model.safetensors and without its index holds instead."""
    if unfinished(folder):
        return f"the download of its weights is not finished; {AGAIN}"
    if any(folder.glob("*.safetensors")):
        return (
            "has *.safetensors, but neither model.safetensors nor model.safetensors.index.json; get the index, which "
            "says where each tensor is"
        )
    if found := sorted(folder.glob("*.gguf")):
        return f"has no safetensors; give the GGUF file itself: {found[0]}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "has its weights as pickles, which can run code and are not read; get the model as safetensors"
    return f"has no weights: neither model.safetensors nor model.safetensors.index.json; {AGAIN}"


def unfinished(folder: Path) -> bool:
    """Whether a download into `folder`, or into the hub's cache that it is part of, was interrupted."""
    places = [folder, folder / ".cache/huggingface/download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parent.parent / "blobs")
    return any(next(place.glob("*.incomplete"), None) for place in places)


def pointer(first: bytes) -> str | None:
    """What a file is that begins with `first`, where it only stands for the file wanted; None if it does not."""
    if first.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves: run `git lfs pull`, or download the file"
    if first[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, not the weights: the download was answered with an error"
    return None
