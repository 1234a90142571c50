"""Every backend behind one door: run a graph of operations over steps that share a cache, and get its selected rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from float64_ops import Float64Ops
from numpy.typing import NDArray

from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS, Batch, MlaShape, Routing
from deepwell.ops.torch_ops import PagedTorchOps

Graph = Callable[[Any, Mapping[str, Any]], Any]
"""(ops, weights) to an array of all rows; the caller adds `select`."""

Weights = Mapping[str, NDArray[np.float32]]
"""1-D is a vector, 2-D a matrix, 3-D experts; a kv_b is named so and comes with its MlaShape."""


class Backend(Protocol):
    name: str

    def run(
        self,
        graph: Graph,
        weights: Weights,
        steps: Sequence[Batch],
        widths: Sequence[int] = (),
        mla: MlaShape | None = None,
    ) -> list[NDArray[Any]]: ...


def blocks_of(steps: Sequence[Batch]) -> int:
    return 1 + max(int(step.block_table_SP.max()) for step in steps)


class Float64Backend:
    name = "float64"

    def run(
        self,
        graph: Graph,
        weights: Weights,
        steps: Sequence[Batch],
        widths: Sequence[int] = (),
        mla: MlaShape | None = None,
    ) -> list[NDArray[Any]]:
        cache: Any = {}
        exact = {k: w.astype(np.float64) for k, w in weights.items()}
        outs = []
        for step in steps:
            ops = Float64Ops(step, cache)
            outs.append(ops.select(graph(ops, exact)))
        return outs


class TorchBackend:
    name = "torch"

    def run(
        self,
        graph: Graph,
        weights: Weights,
        steps: Sequence[Batch],
        widths: Sequence[int] = (),
        mla: MlaShape | None = None,
    ) -> list[NDArray[Any]]:
        cache = [torch.zeros(blocks_of(steps) * BLOCK_TOKENS, width) for width in widths]
        tensors = {k: torch.from_numpy(w) for k, w in weights.items()}
        outs = []
        for step in steps:
            ops = PagedTorchOps(step, cache)
            with torch.no_grad():
                outs.append(ops.select(graph(ops, tensors)).numpy())
        return outs


class NativeBackend:
    def __init__(
        self, isa: str, storage: native.Storage = "float32", threads: int = 2, bfloat16_cache: bool = False
    ) -> None:
        self.name, self.isa, self.storage, self.threads = f"native-{isa}", isa, storage, threads
        self.bfloat16_cache = bfloat16_cache

    def run(
        self,
        graph: Graph,
        weights: Weights,
        steps: Sequence[Batch],
        widths: Sequence[int] = (),
        mla: MlaShape | None = None,
    ) -> list[NDArray[Any]]:
        handles = {k: self.handle(k, w, mla) for k, w in weights.items()}
        recorder = native.Recorder()
        plan = recorder.finish(recorder.select(graph(recorder, handles)))
        cache = native.Cache(list(widths), blocks_of(steps), self.bfloat16_cache)
        before = native.isa(), native.threads()
        native.set_isa(self.isa)
        native.set_threads(self.threads)
        try:
            return [plan.run(step, cache) for step in steps]
        finally:
            native.set_isa(before[0])
            native.set_threads(before[1])

    def handle(self, name: str, w: NDArray[np.float32], mla: MlaShape | None) -> Any:
        if w.ndim == 1:
            return native.vector(w)
        if name == "kv_b":
            assert mla is not None
            kv_b = native.KvB(mla.heads, mla.nope, mla.value, mla.latent, self.storage)
            kv_b.fill(0, w)
            return kv_b
        return packed(w, "float32" if name in ("x", "router") else self.storage, "gate_up" in name)


def packed(w: NDArray[np.float32], storage: native.Storage, gate_up: bool = False) -> native.Matrix:
    stack = w if w.ndim == 3 else w[None]
    matrix = (native.gate_up_matrix if gate_up else native.Matrix)(*stack.shape, storage)
    for i, one in enumerate(stack):
        matrix.fill(i, 0, one)
    return matrix


def moe(
    ops: Any,
    x: Any,
    router: Any,
    bias: Any,
    gate_up: Any,
    down: Any,
    routing: Routing,
    shared: tuple[Any, Any] | None = None,
) -> Any:
    """An MoE layer of the four operations, as a decoder writes it."""
    routes = ops.route(x, router, bias, routing, 0)
    return ops.combine(x, routes, ops.experts(ops.dispatch(x, routes), gate_up, down), shared)


NATIVE_BACKENDS = [NativeBackend(isa) for isa in native.available_isas()]
BACKENDS: list[Backend] = [*NATIVE_BACKENDS, TorchBackend()]
REFERENCE = Float64Backend()


def int32(values: Any) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def rows_batch(rows: int, seed: int = 0) -> Batch:
    """`rows` tokens 0, 1, ... of one sequence from position 0, all selected in a random order."""
    rng = np.random.default_rng(seed)
    pages = -(-rows // BLOCK_TOKENS)
    order = rng.permutation(rows)
    return Batch(int32(range(rows)), int32(range(rows)), int32([0] * rows), int32([range(pages)]), int32(order))


def packed_batch(pieces: Sequence[tuple[int, int]], seed: int = 0) -> Batch:
    """One sequence per (first position, rows) piece, tokens 0, 1, ..., pages dealt at random, every row selected."""
    rng = np.random.default_rng(seed)
    pages = [-(-(start + n) // BLOCK_TOKENS) for start, n in pieces]
    dealt = iter(rng.permutation(sum(pages)))
    table = np.zeros((len(pieces), max(pages)), dtype=np.int32)
    for s, n in enumerate(pages):
        table[s, :n] = [next(dealt) for _ in range(n)]
    rows = sum(n for _, n in pieces)
    positions = np.concatenate([np.arange(start, start + n) for start, n in pieces])
    sequence = np.repeat(np.arange(len(pieces)), [n for _, n in pieces])
    return Batch(int32(range(rows)), int32(positions), int32(sequence), table, int32(range(rows)))


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def halves(seed: int, *shape: int) -> NDArray[np.float32]:
    """Whole and half numbers: products and sums are exact, and many are equal."""
    return (np.random.default_rng(seed).integers(-2, 3, shape) / 2).astype(np.float32)


def two_steps(seed: int) -> list[Batch]:
    """Prompts of several sequences, then more of each: across page borders, onto partial pages, out of order."""
    rng = np.random.default_rng(seed)
    first = [int(n) for n in rng.integers(1, 150, 3)] if seed else [64, 1, 129]
    second = [int(n) for n in rng.integers(1, 70, 3)] if seed else [1, 63, 1]
    whole = packed_batch([(0, a + b) for a, b in zip(first, second, strict=True)], seed)
    starts = np.cumsum([0, *(a + b for a, b in zip(first, second, strict=True))])
    steps = []
    for begin, count, order in ((np.zeros(3, int), first, (0, 1, 2)), (np.array(first), second, (2, 0, 1))):
        rows = np.concatenate([starts[s] + begin[s] + np.arange(count[s]) for s in order])
        steps.append(
            Batch(
                whole.tokens_T[rows],
                whole.positions_T[rows],
                whole.sequence_T[rows],
                whole.block_table_SP,
                np.arange(len(rows), dtype=np.int32),
            )
        )
    return steps


def assert_close(got: NDArray[Any], want: NDArray[Any], bound: float = 2e-5) -> None:
    """Largest error within `bound` of the largest value wanted."""
    assert got.shape == want.shape
    assert got.dtype == np.float32
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    assert error < bound, f"relative error {error:.3g} is not below {bound}"
