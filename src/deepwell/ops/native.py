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

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell import _native
from deepwell._native import Cache, Matrix, View, available_isas, isa, set_isa, set_threads, threads
from deepwell.ops.base import Batch, GqaShape, IndexShape, MlaShape, Rotation, Routing
from deepwell.ops.storages import FLOATS, Storage

__all__ = [
    "FLOATS",
    "Cache",
    "KvB",
    "Matrix",
    "Plan",
    "Recorder",
    "Storage",
    "Vector",
    "available_isas",
    "isa",
    "set_isa",
    "set_threads",
    "threads",
    "vector",
]

MOST_CACHED_WIDTH = 1024
"""Values of a head, at most, in a bfloat16 cache."""
KERNELS = 1
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


class Plan:
    """A recorded decoder step. One call runs it; calls take turns."""

    def __init__(self, program: _native.Program) -> None:
        self._program = program

    @property
    def logits_width(self) -> int:
        return self._program.logits_width

    def bytes(self, rows: int, wanted: int) -> int:
        """Bytes of the arena and the logits for a step of `rows` rows, `wanted` of them selected."""
        return self._program.bytes(rows, wanted)

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


class Recorder:
    """`Ops` that notes what is done instead of doing it. One recorder makes one plan."""

    def __init__(self) -> None:
        self._program = _native.Program()

    def finish(self, logits: View, *further: View) -> Plan:
        """Close the plan; `logits` is its result, the whole of an operation on selected rows.

        `further` results, of all rows or of the selected ones, are given back by `Plan.run_all`.
        """
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

    def moe(
        self,
        x: View,
        router: Matrix,
        bias: Vector | None,
        gate_up: Matrix,
        down: Matrix,
        routing: Routing,
        layer: int,
        shared: tuple[Matrix, Matrix] | None = None,
    ) -> View:
        r, (shared_gate_up, shared_down) = routing, shared or (None, None)
        if router.rows != r.experts:
            raise ValueError(f"the router has {router.rows} rows, the routing {r.experts} experts")
        softmax = r.scoring == "softmax"
        return self._program.moe(
            x,
            router,
            bias,
            gate_up,
            down,
            shared_gate_up,
            shared_down,
            r.top_k,
            softmax,
            r.method,
            r.n_group,
            r.topk_group,
            r.normalize,
            r.scale,
        )

    def select(self, x: View) -> View:
        return self._program.select(x)
