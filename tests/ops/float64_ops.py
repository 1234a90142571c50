"""The operations of `deepwell.ops` in numpy float64, straight from their formulas: what every backend is held against.

Written for clarity: attention keeps whole keys and values per sequence position and never pages; routing sorts.
Weights are plain arrays; kv_b is (heads·(nope+value), latent).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.ops.base import BLOCK_TOKENS, Batch, GqaShape, IndexShape, MlaShape, Rotation, Routes, Routing, Sent

Array = NDArray[np.float64]
Cache = dict[tuple[int, int, int], Array]
"""(layer, page, slot) to what is kept of a token."""


class Float64Ops:
    def __init__(self, batch: Batch, cache: Cache) -> None:
        self.batch, self.cache = batch, cache

    def embed(self, table: Array) -> Array:
        return table[self.batch.tokens_T]

    def rms_norm(self, x: Array, weight: Array, eps: float, heads: int = 1) -> Array:
        cut = x.reshape(len(x), heads, -1)
        return (cut / np.sqrt((cut * cut).mean(-1, keepdims=True) + eps) * weight).reshape(x.shape)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return x @ weight.T + (0 if bias is None else bias)

    def split(self, x: Array, widths: Sequence[int]) -> tuple[Array, ...]:
        return tuple(np.split(x, np.cumsum(widths)[:-1], axis=-1))

    def concat(self, xs: Sequence[Array]) -> Array:
        return np.concatenate(list(xs), axis=-1)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def rope(self, x: Array, heads: int, rotation: Rotation) -> Array:
        x = x.reshape(len(x), heads, -1).copy()
        inv_freq = np.array(rotation.inv_freq, dtype=np.float32)
        angle = (self.batch.positions_T.astype(np.float32)[:, None] * inv_freq).astype(np.float64)[:, None]
        turn = np.exp(1j * angle) * rotation.magnitude
        part = x[..., : rotation.width] if rotation.leading else x[..., x.shape[-1] - rotation.width :]
        half = rotation.width // 2
        pairs = (slice(0, None, 2), slice(1, None, 2))
        first, second = pairs if rotation.layout == "interleaved" else (slice(0, half), slice(half, None))
        turned = (part[..., first] + 1j * part[..., second]) * turn
        part[..., first], part[..., second] = turned.real, turned.imag
        return x.reshape(len(x), -1)

    def gqa(self, q: Array, k: Array, v: Array, layer: int, shape: GqaShape) -> Array:
        kept = self._keep(layer, np.concatenate([k, v], axis=-1))
        out = np.empty_like(q)
        for t, past in enumerate(kept):
            keys, values = (a.reshape(len(past), shape.kv_heads, -1) for a in np.split(past, 2, axis=-1))
            for h in range(shape.heads):
                cols = slice(h * shape.head_dim, (h + 1) * shape.head_dim)
                group = h // (shape.heads // shape.kv_heads)
                out[t, cols] = softmax(keys[:, group] @ q[t, cols] * shape.scale) @ values[:, group]
        return out

    def index(self, q: Array, k: Array, weight: Array, layer: int, shape: IndexShape) -> Array:
        chosen = np.full((len(q), shape.top_k), -1.0)
        for t, past in enumerate(self._keep(layer, self._kept(k))):
            heads = self._kept(q[t]).reshape(shape.heads, shape.head_dim)
            scores = weight[t] * shape.scale @ np.maximum(heads @ past.T, 0)
            best = sorted(range(len(past)), key=lambda s: (-scores[s], s))[: shape.top_k]
            chosen[t, : len(best)] = sorted(best)
        return chosen

    def mla(
        self,
        q: Array,
        latent: Array,
        k_rope: Array,
        kv_b: Array,
        layer: int,
        shape: MlaShape,
        chosen: Array | None = None,
    ) -> Array:
        kept = picked(self._keep(layer, np.concatenate([latent, k_rope], axis=-1)), chosen)
        out = np.empty((len(q), shape.heads * shape.value))
        per_head = kv_b.reshape(shape.heads, shape.nope + shape.value, shape.latent)
        for t, past in enumerate(kept):
            for h, (w, query) in enumerate(zip(per_head, q[t].reshape(shape.heads, -1), strict=True)):
                expanded = past[:, : shape.latent] @ w.T
                keys = np.concatenate([expanded[:, : shape.nope], past[:, shape.latent :]], axis=-1)
                out[t, h * shape.value : (h + 1) * shape.value] = (
                    softmax(keys @ query * shape.scale) @ expanded[:, shape.nope :]
                )
        return out

    def gated(self, x: Array, gate_up: Array, bias: Array | None = None) -> Array:
        gate, up = np.split(self.linear(x, gate_up, bias), 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up

    def route(self, x: Array, router: Array, bias: Array | None, routing: Routing, layer: int) -> Routes[Array]:
        rows = np.array([choose(row @ router.T, bias, routing) for row in x])
        return Routes(rows[..., 0].astype(int), rows[..., 1], routing.experts)

    def dispatch(self, x: Array, routes: Routes[Array]) -> Sent[Array]:
        tokens, slots = routes.chosen.shape
        places = sorted(np.ndindex(tokens, slots), key=lambda place: (routes.chosen[place], place[0]))
        counts = [int((routes.chosen == e).sum()) for e in range(routes.experts)]
        return Sent(x[[t for t, _ in places]], counts, places)

    def experts(self, sent: Sent[Array], gate_up: Array, down: Array) -> Sent[Array]:
        numbers = [e for e, count in enumerate(sent.counts) for _ in range(count)]
        rows = zip(sent.rows, numbers, strict=True)
        done = [self.linear(self.gated(row[None], gate_up[e]), down[e])[0] for row, e in rows]
        return Sent(np.stack(done), sent.counts, sent.origin)

    def combine(
        self, x: Array, routes: Routes[Array], done: Sent[Array], shared: tuple[Array, Array] | None = None
    ) -> Array:
        made = dict(zip(done.origin, done.rows, strict=True))
        tokens, slots = routes.chosen.shape
        routed = np.stack([sum(routes.weight[t, a] * made[t, a] for a in range(slots)) for t in range(tokens)])
        return routed if shared is None else routed + self.linear(self.gated(x, shared[0]), shared[1])

    def select(self, x: Array) -> Array:
        return x[self.batch.selected_L]

    def _kept(self, x: Array) -> Array:
        return x

    def _keep(self, layer: int, rows: Array) -> list[Array]:
        """Store each row, then give back, per row, what its sequence has kept up to and including it."""
        b = self.batch

        def slot(s: int, p: int) -> tuple[int, int, int]:
            return layer, int(b.block_table_SP[s, p // BLOCK_TOKENS]), p % BLOCK_TOKENS

        places = list(zip(b.sequence_T.tolist(), b.positions_T.tolist(), strict=True))
        for row, (s, p) in zip(rows, places, strict=True):
            self.cache[slot(s, p)] = row
        lasts = dict(places)  # positions ascend
        past = {s: np.stack([self.cache[slot(s, p)] for p in range(last + 1)]) for s, last in lasts.items()}
        return [past[s][: p + 1] for s, p in places]


class RoundedOps(Float64Ops):
    """The same with the rounding that `deepwell.ops.base` allows beside quantised weights.

    `coded_inputs` rounds the inputs of every matrix but a router to 8 bits; `bfloat16_cache` rounds keys, values,
    queries and each page's weights. Latent attention is absorbed: its queries and results are inputs of kv_b's halves.
    """

    def __init__(self, batch: Batch, cache: Cache, *, coded_inputs: bool = False, bfloat16_cache: bool = False) -> None:
        super().__init__(batch, cache)
        self._seen = coded if coded_inputs else np.asarray
        self._rounded = bfloat16_cache

    def _kept(self, x: Array) -> Array:
        return bfloat16(x) if self._rounded else x

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return super().linear(self._seen(x), weight, bias)

    def head(self, x: Array, weight: Array) -> Array:
        seen = self._seen(x)
        return super().linear(seen + self._seen(x - seen), weight)

    def gqa(self, q: Array, k: Array, v: Array, layer: int, shape: GqaShape) -> Array:
        kept = self._keep(layer, self._kept(np.concatenate([k, v], axis=-1)))
        out, width = np.empty_like(q), shape.head_dim
        for t, past in enumerate(kept):
            keys, values = (a.reshape(len(past), shape.kv_heads, -1) for a in np.split(past, 2, axis=-1))
            for h in range(shape.heads):
                group = h // (shape.heads // shape.kv_heads)
                query = self._kept(q[t, h * width : (h + 1) * width])
                scores = keys[:, group] @ query * shape.scale
                out[t, h * width : (h + 1) * width] = self._weighted(scores, values[:, group])
        return out

    def mla(
        self,
        q: Array,
        latent: Array,
        k_rope: Array,
        kv_b: Array,
        layer: int,
        shape: MlaShape,
        chosen: Array | None = None,
    ) -> Array:
        kept = picked(self._keep(layer, self._kept(np.concatenate([latent, k_rope], axis=-1))), chosen)
        out = np.empty((len(q), shape.heads, shape.value))
        per_head = kv_b.reshape(shape.heads, shape.nope + shape.value, shape.latent)
        for t, past in enumerate(kept):
            for h, (w, query) in enumerate(zip(per_head, q[t].reshape(shape.heads, -1), strict=True)):
                absorbed = self._seen(query[: shape.nope]) @ w[: shape.nope]
                scores = past @ self._kept(np.concatenate([absorbed, query[shape.nope :]])) * shape.scale
                out[t, h] = w[shape.nope :] @ self._seen(self._weighted(scores, past[:, : shape.latent]))
        return out.reshape(len(q), -1)

    def _weighted(self, scores: Array, values: Array) -> Array:
        """softmax(scores) @ values, a page at a time: weights are relative to the largest score so far."""
        peak, total, out = -np.inf, 0.0, np.zeros(values.shape[1])
        for first in range(0, len(scores), BLOCK_TOKENS):
            page = scores[first : first + BLOCK_TOKENS]
            before, peak = peak, max(peak, page.max())
            weights, keep = np.exp(page - peak), np.exp(before - peak)
            out = out * keep + self._kept(weights) @ values[first : first + BLOCK_TOKENS]
            total = total * keep + weights.sum()
        return out / total


def picked(kept: list[Array], chosen: Array | None) -> list[Array]:
    """Of each row's past, the chosen positions."""
    return kept if chosen is None else [past[c[c >= 0].astype(int)] for past, c in zip(kept, chosen, strict=True)]


def bfloat16(x: Array) -> Array:
    """To nearest, ties to even, by way of float32."""
    u = x.astype(np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def coded(x: Any) -> Array:
    """Each row in 8-bit codes per 32 columns, by the documented rounding, and back."""
    x = np.asarray(x, dtype=np.float32)
    out = np.empty(x.shape)
    for k in range(0, x.shape[-1], 32):
        part = x[..., k : k + 32]
        peak = np.abs(part).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
        out[..., k : k + 32] = np.rint(part * inverse).astype(np.float64) * (peak / np.float32(127))
    return out


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def choose(logits: Array, bias: Any, routing: Routing) -> list[tuple[int, float]]:
    """(expert, weight) pairs from the best down."""
    s = softmax(logits) if routing.scoring == "softmax" else 1 / (1 + np.exp(-logits))
    c = s + bias if bias is not None else s
    allowed = set(range(routing.experts))
    if routing.method != "greedy":
        size = routing.experts // routing.n_group
        best = 2 if routing.method == "noaux_tc" else 1
        score = [sum(sorted(c[g * size : (g + 1) * size])[-best:]) for g in range(routing.n_group)]
        groups = sorted(range(routing.n_group), key=lambda g: (-score[g], g))[: routing.topk_group]
        allowed = {e for e in allowed if e // size in groups}
    chosen = sorted(allowed, key=lambda e: (-c[e], e))[: routing.top_k]
    total = sum(s[e] for e in chosen) + 1e-20 if routing.normalize else 1.0
    return [(e, s[e] / total * routing.scale) for e in chosen]
