"""The four operations of an MoE layer, each on every backend, and experts on several ranks.

What a plan computes can only be seen when it is combined: so each test makes one operation decide the result.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from float64_ops import Float64Ops
from op_backends import BACKENDS, REFERENCE, Backend, assert_close, halves, moe, normal, packed, rows_batch
from torch import Tensor

from deepwell.ops import native
from deepwell.ops.base import Dispatcher, Routes, Routing, Sent
from deepwell.ops.torch_ops import TorchOps

SEEDS = range(8)
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


def random_routing(rng: np.random.Generator) -> Routing:
    groups = int(rng.integers(1, 5))
    experts = groups * int(rng.integers(2, 6))
    kept = int(rng.integers(1, groups + 1))
    method = rng.choice(["greedy", "group_limited_greedy", "noaux_tc"])
    return Routing(
        experts,
        int(rng.integers(1, experts // groups * kept + 1)),
        "sigmoid" if method == "noaux_tc" else "softmax",
        method,
        groups,
        kept,
        bool(rng.integers(2)),
        float(rng.choice([1.0, 2.5])),
    )


def random_layer(seed: int) -> tuple[Routing, dict[str, Any], int]:
    """A routing, weights and a number of rows. Odd seeds choose one expert; some experts get most rows, some none."""
    rng = np.random.default_rng(seed)
    routing = random_routing(rng)
    if seed % 2:
        routing = msgspec.structs.replace(routing, top_k=1)
    rows, width, inter, out = (int(n) for n in rng.integers(1, (60, 50, 40, 30)))
    experts = routing.experts
    weights = {
        "x": normal(seed, rows, width) + 1,
        "router": normal(seed + 1, experts, width) + np.linspace(-1, 1, experts, dtype=np.float32)[:, None],
        "gate_up": normal(seed + 2, experts, 2 * inter, width) * np.float32(width**-0.5),
        "down": normal(seed + 3, experts, out, inter),
        "shared_gate_up": normal(seed + 4, 2 * inter, width) * np.float32(width**-0.5),
        "shared_down": normal(seed + 5, out, inter),
    }
    if routing.method == "noaux_tc":
        weights["bias"] = normal(seed + 6, experts) * 0.2
    return routing, weights, rows


def telltale(experts: int) -> dict[str, Any]:
    """Experts that make of any row with a last column of 1 the unit vector with their number."""
    gate_up = np.zeros((experts, 2, experts + 1), np.float32)
    gate_up[:, :, -1] = 1
    down = np.eye(experts, dtype=np.float32)[..., None] * np.float32(1 + np.exp(-1.0))
    return {"gate_up": gate_up, "down": down}


@each_backend
@pytest.mark.parametrize("seed", SEEDS)
def test_route(backend: Backend, seed: int) -> None:
    """The weight of each expert of each row stands in its column: which were chosen, and for how much."""
    rng = np.random.default_rng(seed)
    routing = random_routing(rng)
    experts, rows = routing.experts, int(rng.integers(1, 60))
    x = np.concatenate([normal(seed, rows, experts) * 2, np.ones((rows, 1), np.float32)], axis=1)
    weights = {"x": x, "router": np.eye(experts, experts + 1, dtype=np.float32), **telltale(experts)}
    if routing.method == "noaux_tc":
        weights["bias"] = normal(seed + 1, experts) * 0.5

    def graph(ops: Any, w: Any) -> Any:
        return moe(ops, ops.embed(w["x"]), w["router"], w.get("bias"), w["gate_up"], w["down"], routing)

    batch = rows_batch(rows, seed)
    got, want = (b.run(graph, weights, [batch])[0] for b in (backend, REFERENCE))
    assert_close(got, want)
    assert (np.count_nonzero(want, axis=1) == routing.top_k).all()
    np.testing.assert_array_equal(got != 0, want != 0)


@each_backend
@pytest.mark.parametrize("chosen", [[0] * 9, [2] * 8 + [0], [3, 1, 0, 2, 3, 3, 1, 0, 3], [1]], ids=str)
def test_dispatch(backend: Backend, chosen: list[int]) -> None:
    """Each row meets the expert that it chose, and comes back to its place: experts of all rows, of one, of none."""
    experts, width = 4, 20
    picks = np.eye(experts, dtype=np.float32)[chosen] * 8
    weights = {
        "x": np.concatenate([picks, normal(0, len(chosen), width)], axis=1),
        "router": np.eye(experts, experts + width, dtype=np.float32),
        "gate_up": normal(1, experts, 2 * 16, experts + width) * 0.2,
        "down": normal(2, experts, 11, 16),
    }
    routing = Routing(experts, 1, "softmax", "greedy", normalize=True)

    def graph(ops: Any, w: Any) -> Any:
        return moe(ops, ops.embed(w["x"]), w["router"], None, w["gate_up"], w["down"], routing)

    batch = rows_batch(len(chosen))
    [got] = backend.run(graph, weights, [batch])
    alone = []
    for row, e in zip(weights["x"].astype(float), chosen, strict=True):
        gate, up = np.split(weights["gate_up"][e] @ row, 2)
        alone.append(weights["down"][e] @ (gate / (1 + np.exp(-gate)) * up))
    assert_close(got, np.stack(alone)[batch.selected_L])


@each_backend
@pytest.mark.parametrize("with_shared", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_experts_and_combine(backend: Backend, seed: int, with_shared: bool) -> None:
    routing, weights, rows = random_layer(seed)

    def graph(ops: Any, w: Any) -> Any:
        shared = (w["shared_gate_up"], w["shared_down"]) if with_shared else None
        return moe(ops, ops.embed(w["x"]), w["router"], w.get("bias"), w["gate_up"], w["down"], routing, shared)

    got, want = (b.run(graph, weights, [rows_batch(rows, seed)])[0] for b in (backend, REFERENCE))
    assert_close(got, want)


@each_backend
def test_slots_are_added_in_their_order(backend: Backend) -> None:
    """A large value, 1, and the large value's negative: 0 in float32, and 1 if the two large ones were added first.

    The first slot is the best expert's, whatever its number. Weights are 1.
    """
    routing = Routing(3, 3, "sigmoid", "noaux_tc", scale=2.0)
    large = np.float32(2**30)
    weights = {
        "x": np.array([[0, 1]], np.float32),
        "router": np.zeros((3, 2), np.float32),
        "bias": np.array([0.1, 0.3, 0.2], np.float32),
        "gate_up": np.array([[[0, 1], [0, 1]]] * 3, np.float32),
        "down": np.array([[[-large]], [[large]], [[np.float32(1 + np.exp(-1.0))]]], np.float32),
    }

    def graph(ops: Any, w: Any) -> Any:
        return moe(ops, ops.embed(w["x"]), w["router"], w["bias"], w["gate_up"], w["down"], routing)

    [got] = backend.run(graph, weights, [rows_batch(1)])
    assert got.tolist() == [[0.0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_torch_hands_from_one_operation_to_the_next(seed: int) -> None:
    """Each operation's own result, against the formulas: choices, weights, rows and their order, counts, results."""
    routing, weights, rows = random_layer(seed)
    exact, ours = Float64Ops(rows_batch(rows), {}), TorchOps(torch.zeros(1, rows, dtype=torch.int64))
    w64 = {k: w.astype(np.float64) for k, w in weights.items()}
    w32 = {k: torch.from_numpy(w) for k, w in weights.items()}
    want_routes = exact.route(w64["x"], w64["router"], w64.get("bias"), routing, 7)
    routes = ours.route(w32["x"], w32["router"], w32.get("bias"), routing, 7)
    np.testing.assert_array_equal(routes.chosen.numpy(), want_routes.chosen)
    assert routes.weight.dtype == torch.float32
    assert_close(routes.weight.numpy(), want_routes.weight)
    [load] = ours.loads
    assert load.layer == 7
    want_sent, sent = exact.dispatch(w64["x"], want_routes), ours.dispatch(w32["x"], routes)
    assert sent.counts == want_sent.counts == load.count_E.tolist()
    assert sum(sent.counts) == rows * routing.top_k
    np.testing.assert_array_equal(sent.rows.double().numpy(), want_sent.rows)
    want_done = exact.experts(want_sent, w64["gate_up"], w64["down"])
    done = ours.experts(sent, w32["gate_up"], w32["down"])
    assert_close(done.rows.numpy(), want_done.rows)
    out = ours.combine(w32["x"], routes, done)
    assert_close(out.numpy(), exact.combine(w64["x"], want_routes, want_done))
    with pytest.raises(ValueError, match=f"rows are for {routing.experts} experts; here are {routing.experts - 1}"):
        ours.experts(sent, w32["gate_up"][1:], w32["down"])


class Exchange:
    """An all-to-all between threads of this process: every rank gives a piece for each, and gets one of each."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.barrier = ranks, threading.Barrier(ranks, timeout=30)
        self.pieces: list[list[Any]] = [[]] * ranks

    def __call__(self, rank: int, pieces: list[Any]) -> list[Any]:
        self.pieces[rank] = pieces
        self.barrier.wait()
        got = [self.pieces[source][rank] for source in range(self.ranks)]
        self.barrier.wait()
        return got


class RankDispatcher:
    """Experts in equal shares on the ranks, in order. `origin` is what `bring_back` undoes: the order in which rows
    came, how many came of each rank, and the (token, slot) places of the rows that were sent."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.exchange = rank, exchange

    def send(self, x: Tensor, routes: Routes[Tensor]) -> Sent[Tensor]:
        flat_M = routes.chosen.reshape(-1)
        order_M = flat_M.argsort(stable=True)
        count_RE = torch.bincount(flat_M, minlength=routes.experts).view(self.exchange.ranks, -1)
        leaving = x[order_M // routes.chosen.shape[1]].split(count_RE.sum(1).tolist())
        counts_of = self.exchange(self.rank, list(count_RE))  # by source: rows for each expert here
        came = torch.cat(self.exchange(self.rank, list(leaving)))
        expert_N = torch.cat([torch.arange(len(counts)).repeat_interleave(counts) for counts in counts_of])
        arranged_N = expert_N.argsort(stable=True)  # by expert, then by rank, then by token
        origin = (arranged_N, [int(counts.sum()) for counts in counts_of], order_M, routes.chosen.shape)
        return Sent(came[arranged_N], torch.stack(counts_of).sum(0).tolist(), origin)

    def bring_back(self, sent: Sent[Tensor]) -> Tensor:
        arranged_N, sizes, order_M, shape = sent.origin
        leaving = sent.rows[arranged_N.argsort()].split(sizes)
        came = torch.cat(self.exchange(self.rank, list(leaving)))
        return came[order_M.argsort()].unflatten(0, shape)


def layer_on_ranks(ranks: int, x: Tensor, cuts: list[int], w: dict[str, Tensor], routing: Routing) -> list[Tensor]:
    """Each rank's rows of the result: a thread per rank, with its tokens and its share of the experts."""
    exchange, share = Exchange(ranks), routing.experts // ranks
    outs: list[Any] = [None] * ranks

    def run(rank: int, rows: Tensor) -> None:
        dispatcher: Dispatcher[Tensor] = RankDispatcher(rank, exchange)
        ops = TorchOps(torch.zeros(1, len(rows), dtype=torch.int64), dispatcher)
        own = slice(rank * share, (rank + 1) * share)
        for _ in range(2):  # two layers: the dispatcher keeps nothing of the first
            out = moe(ops, rows, w["router"], w.get("bias"), w["gate_up"][own], w["down"][own], routing)
        outs[rank] = out

    threads = [threading.Thread(target=run, args=(i, rows)) for i, rows in enumerate(x.split(cuts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outs


@pytest.mark.parametrize("cuts", [[20, 13], [33, 0], [1, 32], [7, 9, 11, 6]], ids=str)
@pytest.mark.parametrize("favourites", [False, True])
def test_experts_on_ranks_give_the_bits_of_experts_here(cuts: list[int], favourites: bool) -> None:
    """Halves in rows and router: scores are exact, so that only the way of the rows is tried. With favourites, all
    rows are for two experts, and other ranks compute nothing."""
    routing = Routing(8, 2, "sigmoid", "noaux_tc", 2, 1, True, 2.5)
    w = {
        "x": halves(0, 33, 16),
        "router": halves(1, 8, 16),
        "bias": np.float32([0, 0, 9, 9, 0, 0, 0, 0]) if favourites else np.zeros(8, np.float32),
        "gate_up": normal(2, 8, 2 * 24, 16),
        "down": normal(3, 8, 16, 24),
    }
    tensors = {k: torch.from_numpy(v).requires_grad_(k in ("gate_up", "down", "x")) for k, v in w.items()}
    leaves = [tensors[k] for k in ("gate_up", "down", "x")]
    here = TorchOps(torch.zeros(1, 33, dtype=torch.int64))
    args = (tensors["router"], tensors["bias"], tensors["gate_up"], tensors["down"], routing)
    want = moe(here, tensors["x"], *args)
    got = torch.cat(layer_on_ranks(len(cuts), tensors["x"], cuts, tensors, routing))
    assert torch.equal(got, want)
    wanted = torch.autograd.grad(want.square().sum(), leaves)
    for found, one in zip(torch.autograd.grad(got.square().sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-4)


# ---- recording


SMALL = Routing(8, 2, "softmax", "greedy")


def begun() -> tuple[native.Recorder, Any, Any, tuple[Any, Any]]:
    """A recorder, its rows, a router, and the matrices of experts."""
    recorder = native.Recorder()
    x = recorder.embed(packed(normal(0, 10, 16), "float32"))
    gate_up, down = (packed(normal(0, *s), "int4") for s in ((8, 6, 16), (8, 16, 3)))
    return recorder, x, packed(normal(0, 8, 16), "float32"), (gate_up, down)


def test_operations_in_another_order_are_refused_while_recording() -> None:
    ops, x, router, matrices = begun()
    routes = ops.route(x, router, None, SMALL, 0)
    order = "route, dispatch, experts and combine of an MoE layer in this order"
    for wrong in (
        lambda: ops.route(x, router, None, SMALL, 0),
        lambda: ops.experts(routes, *matrices),
        lambda: ops.combine(x, routes, routes),
        lambda: ops.finish(ops.select(x)),
    ):
        with pytest.raises(ValueError, match=f"{order}.*the last was: route"):
            wrong()
    sent = ops.dispatch(x, routes)
    for wrong in (lambda: ops.dispatch(x, routes), lambda: ops.dispatch(x, sent), lambda: ops.combine(x, routes, sent)):
        with pytest.raises(ValueError, match=f"{order}.*the last was: dispatch"):
            wrong()
    done = ops.experts(sent, *matrices)
    with pytest.raises(ValueError, match="the last was: experts"):
        ops.experts(sent, *matrices)
    ops.combine(x, routes, done)
    with pytest.raises(ValueError, match="the last was: none begun"):
        ops.combine(x, routes, done)


def test_other_rows_than_those_routed_are_refused_while_recording() -> None:
    ops, x, router, matrices = begun()
    other = ops.add(x, x)
    routes = ops.route(x, router, None, SMALL, 0)
    with pytest.raises(ValueError, match="the rows that it routed, and no others"):
        ops.combine(x, routes, ops.experts(ops.dispatch(other, routes), *matrices))
    routes = ops.route(x, router, None, SMALL, 0)
    with pytest.raises(ValueError, match="the rows that it routed, and no others"):
        ops.combine(other, routes, ops.experts(ops.dispatch(x, routes), *matrices))


def test_what_is_recorded_is_no_array() -> None:
    ops, x, router, _ = begun()
    with pytest.raises(TypeError, match="MoeRoutes"):
        ops.add(x, ops.route(x, router, None, SMALL, 0))
