"""The native backend: the decoder runs once over symbolic arrays, and C++ then executes the recorded plan.

    recorder = Recorder()
    plan = recorder.finish(decoder.logits(recorder, decoder.hidden(recorder)))
    cache = Cache(layer_widths, blocks)
    logits_LV = plan.run(batch, cache)

A plan is a list of instructions, one per operation, over buffers whose width is known and whose rows are the step's
tokens (after `select`, the selected rows). Every width is checked while recording. `finish` lays the buffers into one
arena, reusing the place of results nobody reads any more. `run` checks the batch, then executes without the GIL.

Weights are `Matrix` (a float storage, int8 or int4 in groups of 32 columns, or ggml's blocks as they are;
native/matrix.h states layout and rounding), `Vector` (float32) and `KvB`. ops/base.py states the arithmetic; every
instruction set gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell import _native
from deepwell._native import Cache, Matrix, Sampler, View, available_isas, isa, set_isa, set_threads, threads
from deepwell.ops.base import Batch, GqaShape, IndexShape, MlaShape, Rotation, Routing
from deepwell.ops.sampling import Ask, Chosen, RowLogprob, SamplingRules
from deepwell.ops.storages import FLOATS, Storage

__all__ = [
    "FLOATS",
    "Cache",
    "KvB",
    "Matrix",
    "Plan",
    "Recorder",
    "Sampler",
    "Storage",
    "Vector",
    "available_isas",
    "choose",
    "isa",
    "sampler",
    "set_isa",
    "set_threads",
    "threads",
    "vector",
]

MOST_CACHED_WIDTH = 1024
"""Values of a head, at most, in a bfloat16 cache."""
KERNELS = 3
"""Version of the results: raise it with any change, here or in native/, that alters a bit of a key, a value or a logit.
Cached keys and values, and seeds, of other versions are then no longer taken for this one's."""
Vector = _native.Vector


def gate_up_matrix(count: int, rows: int, cols: int, storage: Storage) -> Matrix:
    """A matrix for `gated` or for experts: rows of the gate, then as many of the up projection.

    Quantised ones lay the two side by side, where their height allows it, and are then computed in one pass.
    """
    return Matrix(count, rows, cols, storage, pairs=side_by_side(rows, storage))


def side_by_side(rows: int, storage: Storage) -> bool:
    """Whether `gate_up_matrix` lays the tiles of both halves beside each other."""
    return storage not in FLOATS and rows % 32 == 0


def vector(values: NDArray[Any]) -> Vector:
    """A norm's weight or a bias, kept in float32."""
    return Vector(np.ascontiguousarray(values, dtype=np.float32))


class KvB:
    """MLA's kv_b (heads·(nope+value), latent), split per head for absorbed attention.

    `k_b` holds per head the transposed key half (latent, nope), `v_b` the value half (value, latent). Quantised storage
    groups the columns of these two, so the key half is grouped along nope.
    """

    def __init__(
        self, heads: int, nope: int, value: int, latent: int, storage: Storage, values: Storage | None = None
    ) -> None:
        """`values` is the storage of the value half, the same as the key half's if None."""
        self.nope, self.value = nope, value
        self.k_b = Matrix(heads, latent, nope, storage)
        self.v_b = Matrix(heads, value, latent, values or storage)

    @classmethod
    def of(cls, nope: int, value: int, k_b: Matrix, v_b: Matrix) -> KvB:
        """From two matrices that are packed already."""
        made = cls.__new__(cls)
        made.nope, made.value, made.k_b, made.v_b = nope, value, k_b, v_b
        return made

    @property
    def nbytes(self) -> int:
        return self.k_b.nbytes + self.v_b.nbytes

    def fill(self, head: int, values: NDArray[np.float32]) -> None:
        """Pack whole heads from `head` on: values is (n·(nope+value), latent), as checkpoints store it."""
        per_head = values.reshape(-1, self.nope + self.value, values.shape[-1])
        for i, w in enumerate(per_head):
            self.k_b.fill(head + i, 0, np.ascontiguousarray(w[: self.nope].T))
            self.v_b.fill(head + i, 0, np.ascontiguousarray(w[self.nope :]))


def sampler(rules: SamplingRules, vocab: int, prompt: Sequence[int]) -> Sampler:
    """The state of one request for `Ask`: its rules, and the tokens seen so far.

    `choose` and `Plan.step` change it. The prompt matters to the repetition penalty alone. Raises ValueError for rules
    out of range and for tokens, of the bias or the prompt, outside the vocabulary.
    """
    return Sampler(
        vocab,
        rules.temperature,
        rules.top_p,
        rules.top_k,
        rules.min_p,
        rules.presence_penalty,
        rules.frequency_penalty,
        rules.repetition_penalty,
        list(rules.logit_bias.items()),
        prompt,
    )


def choose(logits_LV: NDArray[np.float32], asks: Sequence[Ask]) -> list[Chosen]:
    """Answer each ask by its rows. Raises ValueError, and changes nothing, for asks that do not fit the logits."""
    return _chosen(_native.choose(logits_LV, asks))


def _chosen(answers: Iterable[_native.Answer]) -> list[Chosen]:
    return [
        Chosen(
            tokens,
            tuple(RowLogprob(*one) for one in logprobs),
            tuple(RowLogprob(*one) for one in scores),
            sound,
        )
        for tokens, logprobs, scores, sound in answers
    ]


class Plan:
    """A recorded decoder step. One call runs it; calls take turns."""

    def __init__(self, program: _native.Program) -> None:
        self._program = program

    @property
    def logits_width(self) -> int:
        return self._program.logits_width

    def run(self, batch: Batch, cache: Cache) -> NDArray[np.float32]:
        """Extend the cache by the batch's tokens and return logits_LV. Raises ValueError for a bad batch."""
        return self.run_all(batch, cache)[0]

    def run_all(
        self, batch: Batch, cache: Cache, inputs: Sequence[NDArray[np.float32]] = ()
    ) -> list[NDArray[np.float32]]:
        """As `run`, from the recorded inputs, a row per token each; returns logits_LV and the further results."""
        b = batch
        return self._program.run(
            b.tokens_T, b.positions_T, b.sequence_T, b.block_table_SP, b.selected_L, cache, list(inputs)
        )

    def step(
        self,
        batch: Batch,
        cache: Cache,
        asks: Sequence[Ask],
        inputs: Sequence[NDArray[np.float32]] = (),
        states: bool = False,
    ) -> tuple[list[Chosen], list[NDArray[np.float32]]]:
        """Extend the cache by the batch's tokens and answer the asks, whose rows are the selected ones.

        The logits never leave C++. With `states`, the further results are given back too, else an empty list. Raises
        ValueError for a bad batch or bad asks; then nothing was computed and no sampler changed.
        """
        b = batch
        answers, further = self._program.step(
            b.tokens_T, b.positions_T, b.sequence_T, b.block_table_SP, b.selected_L, cache, list(inputs), asks, states
        )
        return _chosen(answers), further

    def bytes(self, rows: int, wanted: int) -> int:
        """Memory that `step` takes for `rows` tokens, `wanted` of them with logits: intermediate results and logits.

        It is allocated by the first step that needs it and kept for the next. Weights and cache are not part of it, nor
        is what is given back to Python.
        """
        return self._program.bytes(rows, wanted)


class MoeRoutes(msgspec.Struct, frozen=True, eq=False):
    """An MoE layer that is being recorded, routed so far. Nothing is computed and nothing can be read."""

    x: View
    router: Matrix
    bias: Vector | None
    routing: Routing


class MoeSent(msgspec.Struct, frozen=True, eq=False):
    """The same, dispatched."""

    x: View
    routes: MoeRoutes


class MoeDone(msgspec.Struct, frozen=True, eq=False):
    """The same, with its experts. `combine` makes one instruction of it all (native/experts.cpp)."""

    sent: MoeSent
    gate_up: Matrix
    down: Matrix


M = TypeVar("M")


class Recorder:
    """`Ops` that notes what is done instead of doing it. One recorder makes one plan."""

    def __init__(self) -> None:
        self._program = _native.Program()
        self._moe: Any = None

    def finish(self, logits: View, *further: View) -> Plan:
        """Close the plan; `logits` is its result, the whole of an operation on selected rows.

        `further` results, of all rows or of the selected ones, are given back by `Plan.run_all`.
        """
        self._follow(type(None), None, None)
        self._program.finish(logits, list(further))
        return Plan(self._program)

    def input(self, width: int) -> View:
        """Rows that the caller of the plan gives, one per token of the step."""
        return self._program.input(width)

    def embed(self, table: Matrix) -> View:
        return self._program.embed(table)

    def rms_norm(self, x: View, weight: Vector, eps: float, heads: int = 1) -> View:
        return self._program.rms_norm(x, weight, eps, heads)

    def layer_norm(self, x: View, weight: Vector, bias: Vector, eps: float) -> View:
        return self._program.layer_norm(x, weight, bias, eps)

    def linear(self, x: View, weight: Matrix, bias: Vector | None = None) -> View:
        return self._program.linear(x, weight, bias)

    def head(self, x: View, weight: Matrix) -> View:
        return self._program.head(x, weight)

    def split(self, x: View, widths: Sequence[int]) -> tuple[View, ...]:
        return tuple(self._program.split(x, list(widths)))

    def concat(self, xs: Sequence[View]) -> View:
        return self._program.concat(list(xs))

    def add(self, x: View, y: View) -> View:
        return self._program.add(x, y)

    def rope(self, x: View, heads: int, rotation: Rotation) -> View:
        interleaved = rotation.layout == "interleaved"
        freq, magnitude = list(rotation.inv_freq), rotation.magnitude
        return self._program.rope(x, heads, freq, interleaved, magnitude, rotation.leading)

    def gqa(self, q: View, k: View, v: View, layer: int, shape: GqaShape) -> View:
        return self._program.gqa(q, k, v, layer, shape.heads, shape.kv_heads, shape.head_dim, shape.scale)

    def index(self, q: View, k: View, weight: View, layer: int, shape: IndexShape) -> View:
        return self._program.index(q, k, weight, layer, shape.heads, shape.head_dim, shape.top_k, shape.scale)

    def mla(
        self,
        q: View,
        latent: View,
        k_rope: View,
        kv_b: KvB,
        layer: int,
        shape: MlaShape,
        chosen: View | None = None,
    ) -> View:
        s = shape
        return self._program.mla(
            q, latent, k_rope, kv_b.k_b, kv_b.v_b, layer, s.heads, s.nope, s.rope, s.value, s.scale, chosen
        )

    def gated(self, x: View, gate_up: Matrix, bias: Vector | None = None) -> View:
        return self._program.gated(x, gate_up, bias)

    def route(self, x: View, router: Matrix, bias: Vector | None, routing: Routing, layer: int) -> MoeRoutes:
        if router.rows != routing.experts:
            raise ValueError(f"the router has {router.rows} rows, the routing {routing.experts} experts")
        return self._follow(type(None), None, MoeRoutes(x, router, bias, routing))

    def dispatch(self, x: View, routes: MoeRoutes) -> MoeSent:
        return self._follow(MoeRoutes, routes, MoeSent(x, routes))

    def experts(self, sent: MoeSent, gate_up: Matrix, down: Matrix) -> MoeDone:
        return self._follow(MoeSent, sent, MoeDone(sent, gate_up, down))

    def combine(self, x: View, routes: MoeRoutes, done: MoeDone, shared: tuple[Matrix, Matrix] | None = None) -> View:
        self._follow(MoeDone, done, None)
        if not (routes is done.sent.routes and x is routes.x is done.sent.x):
            raise ValueError("an MoE layer dispatches and combines the rows that it routed, and no others")
        r, (shared_gate_up, shared_down) = routes.routing, shared or (None, None)
        return self._program.moe(
            x,
            routes.router,
            routes.bias,
            done.gate_up,
            done.down,
            shared_gate_up,
            shared_down,
            r.top_k,
            r.scoring == "softmax",
            r.method,
            r.n_group,
            r.topk_group,
            r.normalize,
            r.scale,
        )

    def _follow(self, kind: type, before: Any, made: M) -> M:
        """`made`, the next of an MoE layer: after `before`, which is of that kind and was recorded last."""
        if before is not self._moe or not isinstance(before, kind):
            done = {type(None): "none begun", MoeRoutes: "route", MoeSent: "dispatch", MoeDone: "experts"}
            raise ValueError(
                "a plan takes route, dispatch, experts and combine of an MoE layer in this order, each with the result "
                f"of the one before, and of one layer after the other; here the last was: {done[type(self._moe)]}"
            )
        self._moe = made
        return made

    def select(self, x: View) -> View:
        return self._program.select(x)
