"""Attention over a bfloat16 cache: against float64 with the documented rounding, over shapes of pages and heads."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from float64_ops import Array, RoundedOps
from numpy.typing import NDArray
from op_backends import BLOCK_TOKENS, NativeBackend, blocks_of, int32, normal, packed, packed_batch

from deepwell.ops import native
from deepwell.ops.base import Batch, GqaShape, MlaShape

ISAS = native.available_isas()
Floats = NDArray[np.float32]
LENGTHS = (1, 2, 31, 63, 64, 65, 129, 161)

BOUND = 2.0**-9
"""Of the largest value wanted. Weights, and the absorbed queries of latent attention, come out of float32 and may
round to the other neighbour in bfloat16, half of 2^-8 away from the middle; everything else is exact to float32."""
MEAN_BOUND = 1e-5
"""Of the mean error, for such roundings are rare."""

GQA = [(4, 4, 16), (4, 2, 32), (8, 2, 48), (7, 1, 64), (8, 2, 80), (3, 3, 112), (2, 1, 1024)]
MLA = [
    (4, 16, 8, 24, 32),
    (1, 5, 3, 9, 21),
    (9, 8, 16, 16, 40),
    (3, 1, 1, 1, 1),
    (3, 32, 64, 32, 512),
    (9, 8, 31, 8, 65),
]


class Case:
    """Attention of one layer over rows [q | k | v], or [q | latent | k_rope], and its weights."""

    def __init__(self, shape: GqaShape | MlaShape, seed: int = 0) -> None:
        self.shape = shape
        if isinstance(shape, GqaShape):
            kv = shape.kv_heads * shape.head_dim
            self.widths, self.cached = (shape.heads * shape.head_dim, kv, kv), 2 * kv
            self.kv_b = np.zeros((0, 0), np.float32)
        else:
            self.widths = (shape.heads * (shape.nope + shape.rope), shape.latent, shape.rope)
            self.cached = shape.latent + shape.rope
            self.kv_b = normal(seed, shape.heads * (shape.nope + shape.value), shape.latent) * shape.latent**-0.5

    def rows(self, count: int, seed: int = 1) -> Floats:
        return normal(seed, count, sum(self.widths))

    def graph(self, ops: Any, x: Any, kv_b: Any) -> Any:
        parts = ops.split(x, self.widths)
        if isinstance(self.shape, GqaShape):
            return ops.gqa(*parts, 0, self.shape)
        return ops.mla(*parts, kv_b, 0, self.shape)

    def plan(self) -> native.Plan:
        kv_b = None
        if isinstance(self.shape, MlaShape):
            kv_b = NativeBackend(ISAS[0]).handle("kv_b", self.kv_b, self.shape)
        recorder = native.Recorder()
        recorder.embed(packed(np.zeros((1, 1), np.float32), "float32"))
        return recorder.finish(recorder.select(self.graph(recorder, recorder.input(sum(self.widths)), kv_b)))

    def wanted(self, steps: list[tuple[Batch, Floats]]) -> list[Array]:
        cache: Any = {}
        kv_b = self.kv_b.astype(np.float64)
        return [self.graph(RoundedOps(b, cache, bfloat16_cache=True), x.astype(float), kv_b) for b, x in steps]


CASES = [Case(GqaShape(*s, scale=2 * s[2] ** -0.5)) for s in GQA]
CASES += [Case(MlaShape(*s, scale=2 * (s[1] + s[2]) ** -0.5)) for s in MLA]
each_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda c: "-".join(map(str, msgspec.structs.astuple(c.shape)[:-1]))
)


def batch_of(pieces: list[tuple[int, int]], blocks: NDArray[np.int32]) -> Batch:
    """(first position, rows) of each sequence, on the given pages."""
    batch = packed_batch(pieces)
    return Batch(np.zeros_like(batch.tokens_T), batch.positions_T, batch.sequence_T, blocks, batch.selected_L)


def tables(lengths: tuple[int, ...]) -> NDArray[np.int32]:
    pages = [-(-n // BLOCK_TOKENS) for n in lengths]
    dealt = iter(np.random.default_rng(3).permutation(sum(pages)))
    return int32([[next(dealt) if p < n else 0 for p in range(max(pages))] for n in pages])


def on(isa: str, plan: native.Plan, batch: Batch, cache: native.Cache, x: Floats) -> Floats:
    before = native.isa()
    native.set_isa(isa)
    try:
        return plan.run_all(batch, cache, [x])[0]
    finally:
        native.set_isa(before)


@each_case
def test_against_float64(case: Case) -> None:
    """Prompts that end on every side of a page border, then a token more each, and then some; alike everywhere."""
    table, starts = tables(tuple(n + 4 for n in LENGTHS)), np.array(LENGTHS)
    steps = []
    for begin, counts in ((0 * starts, starts), (starts, 0 * starts + 1), (starts + 1, 0 * starts + 3)):
        batch = batch_of(list(zip(begin.tolist(), counts.tolist(), strict=True)), table)
        steps.append((batch, case.rows(len(batch.tokens_T), seed=len(steps) + 1)))
    plan, wanted = case.plan(), case.wanted(steps)
    caches = {isa: native.Cache([case.cached], blocks_of([steps[0][0]]), bfloat16=True) for isa in ISAS}
    for (batch, x), want in zip(steps, wanted, strict=True):
        first, *others = (on(isa, plan, batch, caches[isa], x) for isa in ISAS)
        for other in others:
            np.testing.assert_array_equal(first, other)
        error, largest = np.abs(first - want), np.abs(want).max()
        assert error.max() < BOUND * largest, f"{error.max() / largest:.2e}"
        assert error.mean() < MEAN_BOUND * largest, f"{error.mean() / largest:.2e}"


@each_case
def test_the_rounding_is_seen(case: Case) -> None:
    """The bound would not hold without the rounding: float32 answers lie well outside of it."""
    batch = batch_of([(0, 65)], tables((65,)))
    x = case.rows(65)
    rounded = case.plan().run_all(batch, native.Cache([case.cached], 2, bfloat16=True), [x])[0]
    exact = case.plan().run_all(batch, native.Cache([case.cached], 2), [x])[0]
    assert np.abs(rounded - exact).mean() > 10 * MEAN_BOUND * np.abs(exact).max()


@each_case
@pytest.mark.parametrize("bfloat16", [True, False])
def test_what_a_page_held_before_leaves_no_trace(case: Case, bfloat16: bool) -> None:
    """An earlier sequence left NaN and infinities in all slots of the pages; lengths ascend, so that they stay."""
    plan, table = case.plan(), tables((192,))
    dirt = np.full((192, sum(case.widths)), np.nan, np.float32)
    dirt[::3], dirt[1::3] = np.inf, -np.inf
    used = {isa: native.Cache([case.cached], 3, bfloat16) for isa in ISAS}
    for isa, cache in used.items():
        on(isa, plan, batch_of([(0, 192)], table), cache, dirt)
    for length in (1, 5, 16, 31, 62, 67, 126, 130):
        fresh, x = native.Cache([case.cached], 3, bfloat16), case.rows(length + 2, seed=length)
        for begin, count in ((0, length), (length, 1), (length + 1, 1)):
            batch, rows = batch_of([(begin, count)], table), x[begin : begin + count]
            want = on(ISAS[0], plan, batch, fresh, rows)
            assert np.isfinite(want).all()
            for isa, cache in used.items():
                got = on(isa, plan, batch, cache, rows)
                np.testing.assert_array_equal(got, want, f"{isa}, {count} rows from {begin}")


@each_case
def test_chunks_and_neighbours_leave_no_trace(case: Case) -> None:
    table, plan = tables((131, 70, 131)), case.plan()
    x = case.rows(131 + 70 + 131)
    x[-131:] = x[:131]
    whole = plan.run_all(batch_of([(0, 131), (0, 70), (0, 131)], table), native.Cache([case.cached], 8, True), [x])[0]
    np.testing.assert_array_equal(whole[:131], whole[-131:])
    for chunk in (1, 3, 63, 64):
        cache = native.Cache([case.cached], 8, True)
        for begin in range(0, 131, chunk):
            count = min(chunk, 131 - begin)
            part = plan.run_all(batch_of([(begin, count)], table[:1]), cache, [x[begin : begin + count]])[0]
            np.testing.assert_array_equal(part, whole[begin : begin + count], f"chunks of {chunk}, at {begin}")


@pytest.mark.parametrize("shape", [GqaShape(2, 1, 24, 1.0), GqaShape(1, 1, 1040, 1.0), MlaShape(1, 8, 8, 8, 1020, 1.0)])
def test_shapes_that_need_float32(shape: GqaShape | MlaShape) -> None:
    case = Case(shape)
    with pytest.raises(ValueError, match="layer 0 needs a float32 cache"):
        case.plan().run_all(batch_of([(0, 1)], tables((1,))), native.Cache([case.cached], 1, True), [case.rows(1)])
