"""DeepSeek-V3.2 from its papers in numpy float64, and seeded random checkpoints of it. Nothing here is Deepwell's.

The formulas are those of the V2 report (latent attention, not absorbed), the V3 report (routing), YaRN's paper, and the
V3.2 report with the published code's indexer: queries from the latent of the queries, one key through a LayerNorm, the
first columns rotated in halves, both through a Hadamard transform.

S positions of one sequence, H heads, K columns of a head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[np.float64]
Config = dict[str, Any]

NOT_QUANTISED = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "weights_proj")


def random_config(seed: int, *, mtp: int = 0, yarn: bool = True) -> Config:
    """A config.json of the true architecture, with widths and counts drawn at random."""
    rng = np.random.default_rng(seed)

    def one_of(*choices: int) -> int:
        return int(rng.choice(choices))

    groups = one_of(2, 4)
    rope = one_of(4, 8, 16)
    return {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "vocab_size": 320,
        "hidden_size": one_of(48, 64, 80),
        "num_hidden_layers": 3,
        "num_attention_heads": (heads := one_of(2, 3, 5)),
        "num_key_value_heads": heads,
        "intermediate_size": one_of(72, 96),
        "moe_intermediate_size": one_of(24, 40),
        "first_k_dense_replace": 1,
        "n_routed_experts": groups * one_of(3, 4),
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": groups,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "q_lora_rank": one_of(24, 40),
        "kv_lora_rank": one_of(20, 32),
        "qk_nope_head_dim": one_of(12, 16),
        "qk_rope_head_dim": rope,
        "v_head_dim": one_of(12, 20),
        "index_n_heads": one_of(7, 12, 16),
        "index_head_dim": one_of(16, 32, 64),
        "index_topk": one_of(8, 16, 33),
        "num_nextn_predict_layers": mtp,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
        if yarn
        else None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint by its true name."""
    d, found = c["hidden_size"], {"model.embed_tokens.weight": (c["vocab_size"], c["hidden_size"])}
    for layer in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        at = f"model.layers.{layer}."
        found |= {at + name: shape for name, shape in _layer(c, layer >= c["first_k_dense_replace"]).items()}
        if layer >= c["num_hidden_layers"]:
            found |= {at + name: (d,) for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
            found[at + "eh_proj.weight"] = (d, 2 * d)
    return found | {"model.norm.weight": (d,), "lm_head.weight": (c["vocab_size"], d)}


def _layer(c: Config, moe: bool) -> dict[str, tuple[int, ...]]:
    d, heads, rope, q, kv = (
        c[k] for k in ("hidden_size", "num_attention_heads", "qk_rope_head_dim", "q_lora_rank", "kv_lora_rank")
    )
    attention = {
        "q_a_proj.weight": (q, d),
        "q_a_layernorm.weight": (q,),
        "q_b_proj.weight": (heads * (c["qk_nope_head_dim"] + rope), q),
        "kv_a_proj_with_mqa.weight": (kv + rope, d),
        "kv_a_layernorm.weight": (kv,),
        "kv_b_proj.weight": (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), kv),
        "o_proj.weight": (d, heads * c["v_head_dim"]),
        "indexer.wq_b.weight": (c["index_n_heads"] * c["index_head_dim"], q),
        "indexer.wk.weight": (c["index_head_dim"], d),
        "indexer.k_norm.weight": (c["index_head_dim"],),
        "indexer.k_norm.bias": (c["index_head_dim"],),
        "indexer.weights_proj.weight": (c["index_n_heads"], d),
    }
    found = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    found |= {f"self_attn.{name}": shape for name, shape in attention.items()}
    if not moe:
        return found | _mlp("mlp", d, c["intermediate_size"])
    found["mlp.gate.weight"] = (c["n_routed_experts"], d)
    found["mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
    for expert in range(c["n_routed_experts"]):
        found |= _mlp(f"mlp.experts.{expert}", d, c["moe_intermediate_size"])
    return found | _mlp("mlp.shared_experts", d, c["moe_intermediate_size"] * c["n_shared_experts"])


def _mlp(at: str, d: int, inter: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}.{part}_proj.weight": (inter, d) for part in ("gate", "up")} | {f"{at}.down_proj.weight": (d, inter)}


def random_tensors(c: Config, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng([seed, 7])
    tensors = {}
    for name, shape in shapes(c).items():
        if name.endswith("correction_bias"):
            tensors[name] = rng.uniform(-0.6, 0.3, shape)
        elif name.endswith(".bias"):
            tensors[name] = rng.normal(0, 0.3, shape)
        elif len(shape) == 1:
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        else:
            tensors[name] = rng.normal(0, 1.5 * shape[-1] ** -0.5, shape)
    return tensors


def write(folder: Path, c: Config, seed: int, stored: str = "float32") -> dict[str, Array]:
    """A checkpoint in `folder`, stored as float32, bfloat16 or float8 in blocks; the exact values of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, exact = {}, {}
    for name, values in random_tensors(c, seed).items():
        wide = stored == "float32" or name.endswith("correction_bias")
        if stored == "float8" and values.ndim == 2 and not any(part in name for part in NOT_QUANTISED):
            scales = block_scales(values)
            kept[name] = torch.from_numpy(values / grown(scales, values.shape)).to(torch.float8_e4m3fn)
            kept[name + "_scale_inv"] = torch.from_numpy(scales).float()
            exact[name] = kept[name].double().numpy() * grown(scales, values.shape)
        else:
            kept[name] = torch.from_numpy(values).to(torch.float32 if wide else torch.bfloat16)
            exact[name] = kept[name].double().numpy()
    save_file(kept, folder / "model.safetensors")
    if stored == "float8":
        blocks = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0"}
        c = c | {"quantization_config": blocks | {"weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(c))
    return exact


def block_scales(values: Array) -> Array:
    """A power of two for each block of 128 x 128, for codes in E4M3."""
    scales = np.ones([-(-n // 128) for n in values.shape])
    for i, j in np.ndindex(*scales.shape):
        block = values[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
        scales[i, j] = 2.0 ** np.ceil(np.log2(np.abs(block).max() / 448))
    return scales


def grown(scales: Array, shape: tuple[int, ...]) -> Array:
    return np.kron(scales, np.ones((128, 128)))[: shape[0], : shape[1]]


# ---- the model


class Trace:
    """What the indexers did: the positions of each layer's rows, and how narrowly the last one won."""

    def __init__(self) -> None:
        self.chosen: list[list[list[int]]] = []
        self.margin = np.inf


def forward(
    c: Config, w: Mapping[str, Array], tokens: NDArray[Any], trace: Trace | None = None, layout: str = "half"
) -> Array:
    """logits_SV of one sequence. `layout` rotates the indexer's columns in the right way, "half", or a wrong one."""
    return rms(hidden(c, w, tokens, trace, layout), w["model.norm.weight"]) @ w["lm_head.weight"].T


def hidden(
    c: Config, w: Mapping[str, Array], tokens: NDArray[Any], trace: Trace | None = None, layout: str = "half"
) -> Array:
    """x_SD after the last layer."""
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(c["num_hidden_layers"]):
        x = decoder_layer(c, w, f"model.layers.{layer}.", x, layer >= c["first_k_dense_replace"], trace, layout)
    return x


def further(c: Config, w: Mapping[str, Array], tokens: NDArray[Any], trace: Trace) -> Array:
    """The prediction module's logits for the token after the next, of all tokens but the last."""
    at = f"model.layers.{c['num_hidden_layers']}."
    state = rms(hidden(c, w, tokens[:-1], trace), w["model.norm.weight"])
    following = rms(w["model.embed_tokens.weight"][tokens[1:]], w[at + "enorm.weight"])
    joined = np.concatenate([following, rms(state, w[at + "hnorm.weight"])], axis=-1)
    x = decoder_layer(c, w, at, joined @ w[at + "eh_proj.weight"].T, True, trace, "half")
    return rms(x, w[at + "shared_head.norm.weight"]) @ w["lm_head.weight"].T


def decoder_layer(
    c: Config, w: Mapping[str, Array], at: str, x: Array, moe: bool, trace: Trace | None, layout: str
) -> Array:
    h = rms(x, w[at + "input_layernorm.weight"])
    x = x + attention(c, w, at + "self_attn.", h, trace, layout)
    h = rms(x, w[at + "post_attention_layernorm.weight"])
    return x + (experts(c, w, at + "mlp.", h) if moe else swiglu(w, at + "mlp", h))


def attention(c: Config, w: Mapping[str, Array], at: str, h: Array, trace: Trace | None, layout: str) -> Array:
    heads, nope, rope, kv = (
        c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank")
    )
    q_latent = rms(h @ w[at + "q_a_proj.weight"].T, w[at + "q_a_layernorm.weight"])
    q_SHK = (q_latent @ w[at + "q_b_proj.weight"].T).reshape(len(h), heads, nope + rope)
    q_SHK[..., nope:] = turned(c, q_SHK[..., nope:], "interleaved")
    both = h @ w[at + "kv_a_proj_with_mqa.weight"].T
    latent = rms(both[:, :kv], w[at + "kv_a_layernorm.weight"])
    k_rope = turned(c, both[:, None, kv:], "interleaved")
    expanded = (latent @ w[at + "kv_b_proj.weight"].T).reshape(len(h), heads, -1)
    k_SHK = np.concatenate([expanded[..., :nope], np.repeat(k_rope, heads, axis=1)], axis=-1)
    scale, scaling = (nope + rope) ** -0.5, c["rope_scaling"]
    if scaling is not None:
        scale *= (0.1 * scaling["mscale_all_dim"] * np.log(scaling["factor"]) + 1) ** 2
    scores = index_scores(c, w, at + "indexer.", h, q_latent, layout)
    out, chosen = np.zeros((len(h), heads, c["v_head_dim"])), []
    for t in range(len(h)):
        best = top(scores[t, : t + 1], c["index_topk"], trace)
        chosen.append(best)
        for head in range(heads):
            s = k_SHK[best, head] @ q_SHK[t, head] * scale
            p = np.exp(s - s.max())
            out[t, head] = p / p.sum() @ expanded[best, head, nope:]
    if trace is not None:
        trace.chosen.append(chosen)
    return out.reshape(len(h), -1) @ w[at + "o_proj.weight"].T


def index_scores(c: Config, w: Mapping[str, Array], at: str, h: Array, q_latent: Array, layout: str) -> Array:
    """scores_SS of each row for every position, later ones included."""
    heads, width, rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
    q = (q_latent @ w[at + "wq_b.weight"].T).reshape(len(h), heads, width)
    k = h @ w[at + "wk.weight"].T
    k = (k - k.mean(-1, keepdims=True)) / np.sqrt(k.var(-1, keepdims=True) + 1e-6)
    k = (k * w[at + "k_norm.weight"] + w[at + "k_norm.bias"])[:, None]
    if layout == "last":  # as MLA lays its heads out, which is wrong here
        q[..., -rope:], k[..., -rope:] = turned(c, q[..., -rope:], "half"), turned(c, k[..., -rope:], "half")
    else:
        q[..., :rope], k[..., :rope] = turned(c, q[..., :rope], layout), turned(c, k[..., :rope], layout)
    q, k = q @ hadamard(width), k @ hadamard(width)
    weight = h @ w[at + "weights_proj.weight"].T * heads**-0.5 * width**-0.5
    return np.einsum("th,ths->ts", weight, np.maximum(np.einsum("thk,sk->ths", q, k[:, 0]), 0))


def hadamard(width: int) -> Array:
    """Orthogonal; `width` is a power of two."""
    m = np.ones((1, 1))
    while len(m) < width:
        m = np.block([[m, m], [m, -m]])
    return m * width**-0.5


def top(scores: Array, k: int, trace: Trace | None) -> list[int]:
    """The k best positions, the lower of equal ones, in order."""
    order = sorted(range(len(scores)), key=lambda s: (-scores[s], s))
    if trace is not None and len(order) > k and scores[order[k - 1]] != scores[order[k]]:
        trace.margin = min(trace.margin, scores[order[k - 1]] - scores[order[k]])
    return sorted(order[:k])


def experts(c: Config, w: Mapping[str, Array], at: str, h: Array) -> Array:
    out, groups, size = swiglu(w, at + "shared_experts", h), c["n_group"], c["n_routed_experts"] // c["n_group"]
    for t, row in enumerate(h):
        s = 1 / (1 + np.exp(-(w[at + "gate.weight"] @ row)))
        choice = s + w[at + "gate.e_score_correction_bias"]
        best_two = [np.sort(choice[g * size : (g + 1) * size])[-2:].sum() for g in range(groups)]
        kept = np.argsort(best_two)[-c["topk_group"] :]
        allowed = [e for e in range(len(s)) if e // size in kept]
        chosen = sorted(allowed, key=lambda e: -choice[e])[: c["num_experts_per_tok"]]
        total = sum(s[e] for e in chosen)
        for e in chosen:
            out[t] += s[e] / total * c["routed_scaling_factor"] * swiglu(w, f"{at}experts.{e}", row)
    return out


def swiglu(w: Mapping[str, Array], at: str, h: Array) -> Array:
    gate = h @ w[at + ".gate_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * (h @ w[at + ".up_proj.weight"].T)) @ w[at + ".down_proj.weight"].T


def rms(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def turned(c: Config, x_SHR: Array, layout: str) -> Array:
    """All columns rotated by the row's position: pairs (2i, 2i+1) if interleaved, else (i, i+R/2)."""
    angle = np.arange(len(x_SHR))[:, None, None] * frequencies(c)
    half = x_SHR.shape[-1] // 2
    pairs = (slice(0, None, 2), slice(1, None, 2))
    first, second = pairs if layout == "interleaved" else (slice(half), slice(half, None))
    out = np.empty_like(x_SHR)
    out[..., first] = x_SHR[..., first] * np.cos(angle) - x_SHR[..., second] * np.sin(angle)
    out[..., second] = x_SHR[..., second] * np.cos(angle) + x_SHR[..., first] * np.sin(angle)
    return out


def frequencies(c: Config) -> Array:
    width, theta, scaling = c["qk_rope_head_dim"], c["rope_theta"], c["rope_scaling"]
    freq = theta ** -(np.arange(0, width, 2) / width)
    if scaling is None:
        return freq

    def at(turns: float) -> float:
        return width * np.log(scaling["original_max_position_embeddings"] / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low, high = max(np.floor(at(scaling["beta_fast"])), 0), min(np.ceil(at(scaling["beta_slow"])), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    return freq / scaling["factor"] * ramp + freq * (1 - ramp)
