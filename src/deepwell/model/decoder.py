"""The decoder, said once: it trains on torch and is recorded into a native plan, in the operations of `ops`.

Names: x residual stream, h normed input of a sublayer; w parameters by key (see params.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deepwell.model.config import ModelConfig
from deepwell.ops.base import A, GqaShape, Ops

LATENT_EPS = 1e-6
"""DeepSeek's code norms MLA's latents with this epsilon, whatever rms_norm_eps says."""

INDEX_EPS = 1e-6
"""And the indexer's keys with this one."""


class Weights(Mapping[str, Any]):
    """Parameter handles by key; `at` narrows to a prefix. A missing optional one (a bias) is None by `get`."""

    def __init__(self, handles: Mapping[str, Any], prefix: str = "") -> None:
        self._handles, self._prefix = handles, prefix

    def at(self, key: str) -> Weights:
        return Weights(self._handles, f"{self._prefix}{key}.")

    def __getitem__(self, key: str) -> Any:
        return self._handles[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (k.removeprefix(self._prefix) for k in self._handles if k.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Decoder:
    """A model's forward pass over one step of packed tokens: `embed`, then `layers`, then `logits`.

    Pipeline stages run a range of layers each, with the parameters of `stage_specs` alone. `first` is the layer that
    the cache begins with: of a stage, its first.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Any], first: int = 0) -> None:
        self.config, self.weights, self.first = config, Weights(weights), first
        self.rotation, self.shape = config.rotation, config.attention
        self.index_rotation, self.index_shape = config.index_rotation, config.index_shape

    def hidden(self, ops: Ops[A]) -> A:
        """x_TD after the last layer, before the final norm."""
        return self.layers(ops, self.embed(ops), 0, self.config.layers)

    def embed(self, ops: Ops[A]) -> A:
        """x_TD of the step's tokens, before the first layer."""
        return ops.embed(self.weights["embed"])

    def layers(self, ops: Ops[A], x: A, first: int, last: int) -> A:
        """x_TD after the layers [first, last), from x_TD before them."""
        for layer in range(first, last):
            x = self._layer(ops, x, self.weights.at(f"layers.{layer}"), layer, self.config.is_moe(layer))
        return x

    def logits(self, ops: Ops[A], x: A) -> A:
        """logits_LV of the selected rows of x."""
        return self.head(ops, self.normed(ops, x))

    def normed(self, ops: Ops[A], x: A) -> A:
        """h_LD of the selected rows of x, after the final norm."""
        return ops.rms_norm(ops.select(x), self.weights["norm"], self.config.eps)

    def head(self, ops: Ops[A], h: A) -> A:
        """logits_LV of normed rows."""
        return ops.head(h, self.weights["embed" if self.config.tied else "head"])

    def predict_ahead(self, ops: Ops[A], x: A, next_tokens: A, depth: int = 0, again: bool = False) -> tuple[A, A]:
        """One multi-token prediction module: from x_TD of the stage before and the embeddings of the tokens after.

        Gives the module's own (x_TD, logits_LV); row t of the logits is for the token after next. `next_tokens` are
        embedded rows, from `ops.embed`. The stage before is read through its final norm, as the published modules
        were trained to (DeepSeek-V3, section 2.2, leaves it open). With `again`, x is this module's own, one position
        earlier: a module predicts several tokens by being fed its own state.
        """
        w, eps = self.weights.at(f"mtp.{depth}"), self.config.eps
        stage = depth if again else depth - 1
        before = self.weights["norm" if stage < 0 else f"mtp.{stage}.norm"]
        state = ops.rms_norm(ops.rms_norm(x, before, eps), w["hidden_norm"], eps)
        joined = ops.concat([ops.rms_norm(next_tokens, w["embed_norm"], eps), state])
        x = ops.linear(joined, w["project"])
        x = self._layer(ops, x, w.at("layer"), self.config.layers + depth, self.config.moe is not None)
        return x, self.head(ops, ops.rms_norm(ops.select(x), w["norm"], eps))

    def _layer(self, ops: Ops[A], x: A, w: Weights, layer: int, is_moe: bool) -> A:
        h = ops.rms_norm(x, w["attn_norm"], self.config.eps)
        x = ops.add(x, self._attention(ops, h, w.at("attn"), layer))
        h = ops.rms_norm(x, w["ffn_norm"], self.config.eps)
        feed_forward = self._moe(ops, h, w.at("ffn"), layer) if is_moe else self._mlp(ops, h, w.at("ffn"))
        return ops.add(x, feed_forward)

    def _cache_layer(self, layer: int) -> int:
        return self.config.cache_layer(layer - self.first)

    def _attention(self, ops: Ops[A], h: A, w: Weights, layer: int) -> A:
        gqa = isinstance(self.shape, GqaShape)
        out = self._gqa(ops, h, w, layer) if gqa else self._mla(ops, h, w, layer)
        return ops.linear(out, w["o"], w.get("o_bias"))

    def _gqa(self, ops: Ops[A], h: A, w: Weights, layer: int) -> A:
        shape = self.shape
        assert isinstance(shape, GqaShape)
        q, k, v = (ops.linear(h, w[name], w.get(f"{name}_bias")) for name in ("q", "k", "v"))
        if self.config.qk_norm:
            q = ops.rms_norm(q, w["q_norm"], self.config.eps, shape.heads)
            k = ops.rms_norm(k, w["k_norm"], self.config.eps, shape.kv_heads)
        q = ops.rope(q, shape.heads, self.rotation)
        k = ops.rope(k, shape.kv_heads, self.rotation)
        return ops.gqa(q, k, v, self._cache_layer(layer), shape)

    def _mla(self, ops: Ops[A], h: A, w: Weights, layer: int) -> A:
        shape = self.shape
        assert not isinstance(shape, GqaShape)
        index = w.at("indexer")
        if "q_a" in w:
            q_latent = ops.rms_norm(ops.linear(h, w["q_a"], w.get("q_a_bias")), w["q_norm"], LATENT_EPS)
            q = ops.linear(q_latent, w["q_b"])
            q_index = None if self.index_shape is None else ops.linear(q_latent, index["q_b"])
        else:
            q_index = None
            q = ops.linear(h, w["q"])
        kv = ops.linear(h, w["kv_a"], w.get("kv_a_bias"))  # next to q's: they read the same rows
        chosen = None if q_index is None else self._index(ops, q_index, h, index, layer)  # whose first read them too
        q = ops.rope(q, shape.heads, self.rotation)
        latent, k_rope = ops.split(kv, (shape.latent, shape.rope))
        latent = ops.rms_norm(latent, w["kv_norm"], LATENT_EPS)
        k_rope = ops.rope(k_rope, 1, self.rotation)
        return ops.mla(q, latent, k_rope, w["kv_b"], self._cache_layer(layer), shape, chosen)

    def _index(self, ops: Ops[A], q: A, h: A, w: Weights, layer: int) -> A:
        """The positions that the lightning indexer chooses for each row. No Hadamard transform: of both q and k, it
        would leave their products as they are."""
        shape, rotation = self.index_shape, self.index_rotation
        assert shape is not None
        assert rotation is not None
        k, weights = ops.linear(h, w["k"]), ops.linear(h, w["weights"])
        k = ops.layer_norm(k, w["k_norm"], w["k_norm_bias"], INDEX_EPS)
        q, k = ops.rope(q, shape.heads, rotation), ops.rope(k, 1, rotation)
        return ops.index(q, k, weights, self._cache_layer(layer) + 1, shape)

    def _mlp(self, ops: Ops[A], h: A, w: Weights) -> A:
        return ops.linear(ops.gated(h, w["gate_up"], w.get("gate_up_bias")), w["down"], w.get("down_bias"))

    def _moe(self, ops: Ops[A], h: A, w: Weights, layer: int) -> A:
        moe = self.config.moe
        assert moe is not None
        routes = ops.route(h, w["router"], w.get("router_bias"), moe.routing, layer)
        done = ops.experts(ops.dispatch(h, routes), w["experts.gate_up"], w["experts.down"])
        shared = (w["shared.gate_up"], w["shared.down"]) if moe.shared and not self.config.mlp_bias else None
        out = ops.combine(h, routes, done, shared)
        return ops.add(out, self._mlp(ops, h, w.at("shared"))) if moe.shared and shared is None else out
