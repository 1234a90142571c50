"""The families' forward pass in float64 numpy, written from papers and config.json keys: shares no code with Deepwell.

Attention is not absorbed, not paged and not grouped; routing follows the papers' sentences. Weights are made from a
seed when the formula first asks for them, so that a checkpoint of these weights has exactly the tensors in use.

Sources: DeepSeek LLM 2401.02954, MoE 2401.06066, V2 2405.04434, V3 2412.19437, YaRN 2309.00071, Llama 3.1 and Qwen
model cards. T tokens, D hidden width, V vocabulary, H heads, R rotated columns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LATENT_EPS = 1e-6


class PaperModel:
    """`raw` is a config.json. `tensors` fill as they are used; those given are used as they are."""

    def __init__(self, raw: dict[str, Any], seed: int, tensors: dict[str, Array] | None = None) -> None:
        self.raw, self.rng = raw, np.random.default_rng(seed)
        self.tensors: dict[str, Array] = {} if tensors is None else tensors
        self.swayed = 0
        """Tokens for which masking excluded groups with 0 instead of minus infinity would choose other experts."""

    def states(self, tokens: NDArray[np.int64]) -> Array:
        """x_TD after the last layer."""
        x = self._embedding()[tokens]
        for layer in range(self.raw["num_hidden_layers"]):
            x = self._layer(x, layer)
        return x

    def logits(self, tokens: NDArray[np.int64]) -> Array:
        """logits_TV of one sequence."""
        x = self._norm(self.states(tokens), "model.norm")
        tied = self.raw.get("tie_word_embeddings", False)
        return x @ (self._embedding() if tied else self._matrix("lm_head", self.raw["vocab_size"], x.shape[1])).T

    def further(self, tokens: NDArray[np.int64]) -> Array:
        """logits of the prediction module: row t, for the token after next, from the state at t and token t + 1."""
        layer = self.raw["num_hidden_layers"]
        x, name = self._norm(self.states(tokens[:-1]), "model.norm"), f"model.layers.{layer}"
        following = self._norm(self._embedding()[tokens[1:]], f"{name}.enorm")
        both = np.concatenate([following, self._norm(x, f"{name}.hnorm")], axis=1)
        x = self._layer(both @ self._matrix(f"{name}.eh_proj", x.shape[1], both.shape[1]).T, layer)
        return self._norm(x, f"{name}.shared_head.norm") @ self.tensors["lm_head.weight"].T

    def _layer(self, x: Array, layer: int) -> Array:
        name, raw = f"model.layers.{layer}", self.raw
        h = self._norm(x, f"{name}.input_layernorm")
        latent = "kv_lora_rank" in raw
        x = x + (self._latent(h, f"{name}.self_attn") if latent else self._attention(h, f"{name}.self_attn"))
        h = self._norm(x, f"{name}.post_attention_layernorm")
        if raw.get("n_routed_experts") and layer >= raw["first_k_dense_replace"]:
            return x + self._experts(h, f"{name}.mlp")
        return x + self._swiglu(h, f"{name}.mlp", raw["intermediate_size"])

    def _attention(self, h: Array, name: str) -> Array:
        """Grouped queries; a head's width may differ from hidden / heads."""
        raw, family = self.raw, self.raw["model_type"]
        heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
        width = raw.get("head_dim") or h.shape[1] // heads
        bias = family == "qwen2" or raw.get("attention_bias", False)
        q, k, v = (
            self._linear(h, f"{name}.{part}_proj", count * width, bias).reshape(len(h), count, width)
            for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if family == "qwen3":
            q, k = self._norm(q, f"{name}.q_norm"), self._norm(k, f"{name}.k_norm")
        q, k = self._rotated(q, pairs=False), self._rotated(k, pairs=False)
        out = np.concatenate(
            [_attend(q[:, i], k[:, g], v[:, g], width**-0.5) for i in range(heads) for g in [i * kv_heads // heads]],
            axis=1,
        )
        return self._linear(out, f"{name}.o_proj", h.shape[1], raw.get("attention_bias", False))

    def _latent(self, h: Array, name: str) -> Array:
        """V2, section 2.1: keys and values of every head from one latent, a rotated key shared by all heads."""
        raw, rope = self.raw, self._rope()
        heads, nope, rotated = raw["num_attention_heads"], raw["qk_nope_head_dim"], raw["qk_rope_head_dim"]
        if raw.get("q_lora_rank"):
            c = self._norm(self._linear(h, f"{name}.q_a_proj", raw["q_lora_rank"]), f"{name}.q_a_layernorm", LATENT_EPS)
            q = self._linear(c, f"{name}.q_b_proj", heads * (nope + rotated))
        else:
            q = self._linear(h, f"{name}.q_proj", heads * (nope + rotated))
        q = q.reshape(len(h), heads, nope + rotated)
        both = self._linear(h, f"{name}.kv_a_proj_with_mqa", raw["kv_lora_rank"] + rotated)
        latent, key = both[:, : raw["kv_lora_rank"]], both[:, raw["kv_lora_rank"] :]
        latent = self._norm(latent, f"{name}.kv_a_layernorm", LATENT_EPS)
        kv = self._linear(latent, f"{name}.kv_b_proj", heads * (nope + raw["v_head_dim"])).reshape(len(h), heads, -1)
        key = self._rotated(key[:, None], pairs=True)[:, 0]
        turned = self._rotated(q[..., nope:], pairs=True)
        scale = (nope + rotated) ** -0.5 * _temperature(rope.get("factor", 1), rope.get("mscale_all_dim", 0)) ** 2
        out = [
            _attend(
                np.concatenate([q[:, i, :nope], turned[:, i]], axis=1),
                np.concatenate([kv[:, i, :nope], key], axis=1),
                kv[:, i, nope:],
                scale,
            )
            for i in range(heads)
        ]
        return self._linear(np.concatenate(out, axis=1), f"{name}.o_proj", h.shape[1])

    def _experts(self, h: Array, name: str) -> Array:
        raw, width = self.raw, self.raw["moe_intermediate_size"]
        count = raw["n_routed_experts"]
        logits = h @ self._matrix(f"{name}.gate", count, h.shape[1]).T
        bias = np.zeros(count)
        if raw.get("topk_method") == "noaux_tc":
            # far below 0, so that minus infinity and 0 differ as a mask
            bias = self._tensor(f"{name}.gate.e_score_correction_bias", lambda: self.rng.uniform(-1.5, -0.5, count))
        each = [self._swiglu(h, f"{name}.experts.{e}", width) for e in range(count)]
        out = np.zeros_like(h)
        for t, row in enumerate(logits):
            for expert, weight in self._choice(row, bias):
                out[t] += weight * each[expert][t]
        if raw.get("n_shared_experts"):
            out = out + self._swiglu(h, f"{name}.shared_experts", raw["n_shared_experts"] * width)
        return out

    def _choice(self, logits: Array, bias: Array) -> list[tuple[int, float]]:
        raw, method = self.raw, self.raw.get("topk_method", "greedy")
        scores = 1 / (1 + np.exp(-logits)) if raw.get("scoring_func") == "sigmoid" else _softmax(logits)
        wanted = (scores + bias).copy()
        if method != "greedy":
            groups = wanted.reshape(raw["n_group"], -1)
            best = np.sort(groups, axis=1)[:, -2:].sum(1) if method == "noaux_tc" else groups.max(1)
            dropped = np.argsort(-best)[raw["topk_group"] :]
            zeroed = groups.copy()
            zeroed[dropped], groups[dropped] = 0.0, -np.inf
            largest = np.argsort(-zeroed.reshape(-1))[: raw["num_experts_per_tok"]]
            self.swayed += set(largest) != set(np.argsort(-wanted)[: raw["num_experts_per_tok"]])
        chosen = np.argsort(-wanted)[: raw["num_experts_per_tok"]]
        total = scores[chosen].sum() if raw.get("norm_topk_prob") else 1.0
        return [(int(e), float(scores[e] / total) * raw.get("routed_scaling_factor", 1.0)) for e in chosen]

    def _swiglu(self, h: Array, name: str, width: int) -> Array:
        bias = self.raw.get("mlp_bias", False)
        gate, up = (self._linear(h, f"{name}.{part}_proj", width, bias) for part in ("gate", "up"))
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"{name}.down_proj", h.shape[1], bias)

    def _rope(self) -> dict[str, Any]:
        return self.raw.get("rope_scaling") or {}

    def _rotated(self, x: Array, *, pairs: bool) -> Array:
        """x_THR turned by position: neighbouring columns as (real, imaginary), or the two halves."""
        frequencies, magnitude = self._frequencies(x.shape[-1])
        turn = magnitude * np.exp(1j * np.arange(len(x))[:, None, None] * frequencies)
        first, second = (x[..., ::2], x[..., 1::2]) if pairs else np.split(x, 2, axis=-1)
        turned = (first + 1j * second) * turn
        parts = (turned.real, turned.imag)
        return np.stack(parts, -1).reshape(x.shape) if pairs else np.concatenate(parts, -1)

    def _frequencies(self, width: int) -> tuple[Array, float]:
        rope, base = self._rope(), self.raw["rope_theta"]
        plain = base ** (-2.0 * np.arange(width // 2) / width)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return plain, 1.0
        slow, original = plain / rope["factor"], rope.get("original_max_position_embeddings")
        if kind == "linear":
            return slow, 1.0
        turns = original * plain / (2 * np.pi)
        if kind == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            keep = np.clip((turns - low) / (high - low), 0, 1)
            return keep * plain + (1 - keep) * slow, 1.0

        def column(turning: float) -> float:
            return width * math.log(original / (turning * 2 * math.pi)) / (2 * math.log(base))

        first, last = math.floor(column(rope.get("beta_fast", 32))), math.ceil(column(rope.get("beta_slow", 1)))
        first, last = max(first, 0), min(last, width - 1)
        keep = 1 - np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
        magnitude = _temperature(rope["factor"], 1)
        if rope.get("mscale") and rope.get("mscale_all_dim"):
            magnitude = _temperature(rope["factor"], rope["mscale"])
            magnitude /= _temperature(rope["factor"], rope["mscale_all_dim"])
        return keep * plain + (1 - keep) * slow, magnitude * rope.get("attn_factor", 1.0)

    def _norm(self, x: Array, name: str, eps: float | None = None) -> Array:
        weight = self._tensor(f"{name}.weight", lambda: self.rng.uniform(0.5, 1.5, x.shape[-1]))
        eps = self.raw["rms_norm_eps"] if eps is None else eps
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def _linear(self, x: Array, name: str, out: int, bias: bool = False) -> Array:
        y = x @ self._matrix(name, out, x.shape[-1]).T
        return y + self._tensor(f"{name}.bias", lambda: self.rng.normal(0, 0.3, out)) if bias else y

    def _matrix(self, name: str, out: int, into: int) -> Array:
        return self._tensor(f"{name}.weight", lambda: self.rng.normal(0, 1.3 * into**-0.5, (out, into)))

    def _embedding(self) -> Array:
        shape = self.raw["vocab_size"], self.raw["hidden_size"]
        size = 1.3 * shape[1] ** -0.5 if self.raw.get("tie_word_embeddings") else 1.0
        return self._tensor("model.embed_tokens.weight", lambda: self.rng.normal(0, size, shape))

    def _tensor(self, name: str, make: Any) -> Array:
        if name not in self.tensors:
            self.tensors[name] = make().astype(np.float32).astype(np.float64)
        return self.tensors[name]


def _attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    scores = q @ k.T * scale
    scores[np.triu_indices(len(q), 1)] = -np.inf
    return np.stack([_softmax(row) for row in scores]) @ v


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
