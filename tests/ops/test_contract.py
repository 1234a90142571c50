"""Every operation on every backend and instruction set against float64, at random shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from op_backends import (
    BACKENDS,
    REFERENCE,
    Backend,
    Graph,
    Weights,
    assert_close,
    halves,
    moe,
    normal,
    packed_batch,
    rows_batch,
    two_steps,
)

from deepwell.ops.base import Batch, GqaShape, IndexShape, MlaShape, Rotation, Routing

SEEDS = range(6)
pytestmark = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def check(
    backend: Backend, graph: Graph, weights: Weights, steps: list[Batch], widths: Any = (), mla: MlaShape | None = None
) -> None:
    got, want = (b.run(graph, weights, steps, widths, mla) for b in (backend, REFERENCE))
    for g, w in zip(got, want, strict=True):
        assert_close(g, w)


def sizes(seed: int, *limits: int) -> list[int]:
    """A size from 1 to each limit; the first seeds take the limits themselves and ones."""
    if seed < 2:
        return [1 if seed else n for n in limits]
    return [int(n) for n in np.random.default_rng(seed).integers(1, np.array(limits) + 1)]


@pytest.mark.parametrize("seed", SEEDS)
def test_embed_gathers_rows(backend: Backend, seed: int) -> None:
    rows, width = sizes(seed, 40, 70)
    check(backend, lambda ops, w: ops.embed(w["x"]), {"x": normal(seed, rows, width)}, [rows_batch(rows, seed)])


@pytest.mark.parametrize("seed", SEEDS)
def test_rms_norm(backend: Backend, seed: int) -> None:
    rows, width = sizes(seed, 20, 300)
    weights = {"x": normal(seed, rows, width) * 3, "w": normal(seed + 1, width)}
    check(backend, lambda ops, w: ops.rms_norm(ops.embed(w["x"]), w["w"], 1e-5), weights, [rows_batch(rows)])


@pytest.mark.parametrize("seed", SEEDS)
def test_rms_norm_of_heads(backend: Backend, seed: int) -> None:
    rows, heads, width = sizes(seed, 20, 8, 40)
    weights = {"x": normal(seed, rows, heads * width) * 3, "w": normal(seed + 1, width)}
    check(backend, lambda ops, w: ops.rms_norm(ops.embed(w["x"]), w["w"], 1e-5, heads), weights, [rows_batch(rows)])


@pytest.mark.parametrize("seed", SEEDS)
def test_layer_norm(backend: Backend, seed: int) -> None:
    rows, width = sizes(seed, 20, 300)
    weights = {"x": normal(seed, rows, width) * 3 + 1, "w": normal(seed + 1, width), "b": normal(seed + 2, width)}
    check(backend, lambda ops, w: ops.layer_norm(ops.embed(w["x"]), w["w"], w["b"], 1e-6), weights, [rows_batch(rows)])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_linear(backend: Backend, seed: int, with_bias: bool) -> None:
    rows, k, n = sizes(seed, 37, 200, 300)
    weights = {"x": normal(seed, rows, k), "w": normal(seed + 1, n, k)} | ({"b": normal(9, n)} if with_bias else {})
    check(backend, lambda ops, w: ops.linear(ops.embed(w["x"]), w["w"], w.get("b")), weights, [rows_batch(rows)])


@pytest.mark.parametrize("seed", SEEDS)
def test_split_concat_add(backend: Backend, seed: int) -> None:
    rows, a, b = sizes(seed, 20, 40, 40)

    def graph(ops: Any, w: Any) -> Any:
        first, second, third = ops.split(ops.embed(w["x"]), (a, b, a))
        return ops.concat([ops.add(third, first), second, first])

    check(backend, graph, {"x": normal(seed, rows, 2 * a + b)}, [rows_batch(rows)])


@pytest.mark.parametrize("leading", [False, True])
@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("seed", SEEDS)
def test_rope_at_far_positions(backend: Backend, seed: int, layout: Any, leading: bool) -> None:
    rows, heads, pairs, plain = sizes(seed, 30, 5, 32, 40)
    rotation = Rotation(tuple(float(f) for f in 10000.0 ** -np.linspace(0, 1, pairs)), layout, 1.25, leading)
    batch = packed_batch([(start, rows) for start in (0, 60, 32000)])
    weights = {"x": normal(seed, 3 * rows, heads * (plain - 1 + 2 * pairs))}
    check(backend, lambda ops, w: ops.rope(ops.embed(w["x"]), heads, rotation), weights, [batch])


@pytest.mark.parametrize("seed", SEEDS)
def test_gated(backend: Backend, seed: int) -> None:
    rows, width, inter = sizes(seed, 20, 100, 90)
    weights = {"x": normal(seed, rows, width), "w": normal(seed + 1, 2 * inter, width), "b": normal(2, 2 * inter)}
    check(backend, lambda ops, w: ops.gated(ops.embed(w["x"]), w["w"], w["b"]), weights, [rows_batch(rows)])


@pytest.mark.parametrize("shape", [(4, 4, 16), (6, 2, 40), (5, 1, 7), (1, 1, 128), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_gqa_over_two_steps(backend: Backend, seed: int, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, head_dim = shape
    steps = two_steps(seed)
    q, kv = heads * head_dim, kv_heads * head_dim
    weights = {"x": normal(seed, 1000, q + 2 * kv)}
    gqa = GqaShape(heads, kv_heads, head_dim, 2 * head_dim**-0.5)

    def graph(ops: Any, w: Any) -> Any:
        return ops.gqa(*ops.split(ops.embed(w["x"]), (q, kv, kv)), 0, gqa)

    check(backend, graph, weights, steps, [2 * kv])


@pytest.mark.parametrize(
    "shape", [(4, 32, 16, 32, 64), (6, 5, 3, 9, 21), (1, 16, 64, 8, 128), (9, 1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_mla_over_two_steps(backend: Backend, seed: int, shape: tuple[int, int, int, int, int]) -> None:
    heads, nope, rope, value, latent = shape
    mla = MlaShape(heads, nope, rope, value, latent, 2 * (nope + rope) ** -0.5)
    q = heads * (nope + rope)
    weights = {
        "x": normal(seed, 1000, q + latent + rope),
        "kv_b": normal(seed + 1, heads * (nope + value), latent) * latent**-0.5,
    }

    def graph(ops: Any, w: Any) -> Any:
        return ops.mla(*ops.split(ops.embed(w["x"]), (q, latent, rope)), w["kv_b"], 0, mla)

    check(backend, graph, weights, two_steps(seed), [latent + rope], mla)


@pytest.mark.parametrize("shape", [(3, 8, 16), (1, 2, 1), (4, 32, 40), (6, 6, 129), (2, 4, 500)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_index_chooses_the_best_and_of_equals_the_first(
    backend: Backend, seed: int, shape: tuple[int, int, int]
) -> None:
    """Exact scores, so that ties are ties everywhere; top-k below, at and above the lengths."""
    heads, head_dim, top_k = shape
    index = IndexShape(heads, head_dim, top_k, 0.25)
    weights = {"x": halves(seed, 1000, heads * head_dim + head_dim + heads)}

    def graph(ops: Any, w: Any) -> Any:
        return ops.index(*ops.split(ops.embed(w["x"]), (heads * head_dim, head_dim, heads)), 0, index)

    steps = two_steps(seed)
    got, want = (b.run(graph, weights, steps, [head_dim]) for b in (backend, REFERENCE))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("top_k", [1, 7, 64, 70, 128, 300])
@pytest.mark.parametrize("shape", [(5, 12, 4, 9, 40), (9, 5, 3, 8, 21)], ids=str)
def test_sparse_mla_over_two_steps(backend: Backend, top_k: int, shape: tuple[int, int, int, int, int]) -> None:
    heads, nope, rope, value, latent = shape
    mla = MlaShape(heads, nope, rope, value, latent, 2 * (nope + rope) ** -0.5)
    index = IndexShape(2, 8, top_k, 0.25)
    widths = (heads * (nope + rope), latent, rope)
    weights = {
        "x": np.concatenate([normal(1, 1000, sum(widths)), halves(2, 1000, 2 * 8 + 8 + 2)], axis=1),
        "kv_b": normal(3, heads * (nope + value), latent) * latent**-0.5,
    }

    def graph(ops: Any, w: Any) -> Any:
        *parts, q, k, weight = ops.split(ops.embed(w["x"]), (*widths, 16, 8, 2))
        return ops.mla(*parts, w["kv_b"], 0, mla, ops.index(q, k, weight, 1, index))

    check(backend, graph, weights, two_steps(top_k), [latent + rope, 8], mla)


ROUTINGS = {
    "softmax greedy": Routing(16, 4, "softmax", "greedy"),
    "softmax greedy normalised": Routing(16, 3, "softmax", "greedy", normalize=True, scale=2.0),
    "group limited": Routing(16, 4, "softmax", "group_limited_greedy", n_group=4, topk_group=2, scale=16.0),
    "noaux": Routing(16, 4, "sigmoid", "noaux_tc", n_group=4, topk_group=2, normalize=True, scale=2.5),
    "noaux one group": Routing(16, 2, "sigmoid", "noaux_tc", normalize=True),
    "one expert": Routing(1, 1, "sigmoid", "noaux_tc"),
}


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS.keys())
@pytest.mark.parametrize("seed", range(4))
def test_moe_with_ties_and_negative_biases(backend: Backend, seed: int, routing: Routing) -> None:
    """Logits and biases on a coarse grid: many exact ties, and choice scores below zero."""
    rows, experts, inter = (70, 1, 8, 33)[seed], routing.experts, (8, 40, 5, 16)[seed]
    rng = np.random.default_rng(seed)
    weights = {
        "x": (rng.integers(-8, 9, (rows, experts)) / 4).astype(np.float32),
        "router": np.eye(experts, dtype=np.float32),
        "gate_up": normal(seed + 1, experts, 2 * inter, experts),
        "down": normal(seed + 2, experts, experts, inter),
    }
    if routing.method == "noaux_tc":
        weights["bias"] = (rng.integers(-8, 3, experts) / 4).astype(np.float32)

    def graph(ops: Any, w: Any) -> Any:
        return moe(ops, ops.embed(w["x"]), w["router"], w.get("bias"), w["gate_up"], w["down"], routing)

    check(backend, graph, weights, [rows_batch(rows, seed)])


def test_work_after_select_sees_the_selected_rows_alone(backend: Backend) -> None:
    batch = rows_batch(9)
    batch = Batch(batch.tokens_T, batch.positions_T, batch.sequence_T, batch.block_table_SP, batch.selected_L[:2])
    weights = {"x": normal(0, 9, 24), "w": normal(1, 24), "m": normal(2, 50, 24)}

    def graph(ops: Any, w: Any) -> Any:
        return ops.linear(ops.rms_norm(ops.embed(w["x"]), w["w"], 1e-6), w["m"])

    check(backend, graph, weights, [batch])
