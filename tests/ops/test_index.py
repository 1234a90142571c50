"""The native indexer beyond the contract: bfloat16 keys, long pasts, numbers that are none, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from float64_ops import RoundedOps
from op_backends import NATIVE_BACKENDS, NativeBackend, halves, int32, packed, two_steps

from deepwell.ops import native
from deepwell.ops.base import Batch, IndexShape, MlaShape

MLA = MlaShape(2, 4, 2, 3, 5, 0.5)


def one_sequence(start: int, rows: int) -> Batch:
    at = np.arange(rows, dtype=np.int32)
    pages = np.arange((start + rows - 1) // 64 + 1, dtype=np.int32)[None]
    return Batch(np.zeros_like(at), at + start, np.zeros_like(at), pages, at)


def index_plan(shape: IndexShape) -> native.Plan:
    recorder = native.Recorder()
    recorder.embed(packed(np.zeros((1, 1), np.float32), "float32"))
    widths = (shape.heads * shape.head_dim, shape.head_dim, shape.heads)
    return recorder.finish(recorder.select(recorder.index(*(recorder.input(w) for w in widths), 0, shape)))


@pytest.mark.parametrize("backend", NATIVE_BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("shape", [(3, 8, 16), (1, 2, 1), (5, 34, 129)], ids=str)
def test_bfloat16_keys(backend: NativeBackend, shape: tuple[int, int, int]) -> None:
    """Halves fit bfloat16, so that the choice is exact; the keys of the cache are rounded to it otherwise."""
    heads, head_dim, top_k = shape
    index = IndexShape(heads, head_dim, top_k, 0.25)
    widths = (heads * head_dim, head_dim, heads)
    weights = {"x": halves(3, 1000, sum(widths))}

    def graph(ops: Any, w: Any) -> Any:
        return ops.index(*ops.split(ops.embed(w["x"]), widths), 0, index)

    steps, cache = two_steps(1), {}
    got = NativeBackend(backend.isa, bfloat16_cache=True).run(graph, weights, steps, [head_dim])
    for g, step in zip(got, steps, strict=True):
        ops = RoundedOps(step, cache, bfloat16_cache=True)
        np.testing.assert_array_equal(g, graph(ops, {"x": weights["x"].astype(float)}))


def test_more_scores_than_are_kept_at_once() -> None:
    """80 rows behind 65,536 keys of zeros: their own keys score above or below all those."""
    depth, rows, shape = 65536, 80, IndexShape(1, 2, 100, 1.0)
    q, weight = np.ones((rows, 2), np.float32), np.ones((rows, 1), np.float32)
    k = np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)
    cache = native.Cache([2], depth // 64 + 2)
    [got] = index_plan(shape).run_all(one_sequence(depth, rows), cache, [q, k, weight])
    for t in range(rows):
        better = [depth + s for s in range(t + 1) if k[s].sum() > 0]
        assert got[t].tolist() == [*range(100 - len(better)), *better]


def test_numbers_that_are_none_are_never_preferred() -> None:
    """A weight that is no number leaves no order: the first positions, and nothing outside."""
    shape = IndexShape(2, 4, 8, 1.0)
    q, k = (np.random.default_rng(i).standard_normal((200, w)).astype(np.float32) for i, w in ((0, 8), (1, 4)))
    weight = np.full((200, 2), np.nan, np.float32)
    [got] = index_plan(shape).run_all(one_sequence(0, 200), native.Cache([4], 4), [q, k, weight])
    np.testing.assert_array_equal(got[8:], np.tile(np.arange(8.0, dtype=np.float32), (192, 1)))
    q[::2] = np.nan
    [got] = index_plan(shape).run_all(one_sequence(0, 200), native.Cache([4], 4), [q, k, np.ones_like(weight)])
    assert ((got[8:] >= 0) & (got[8:] <= np.arange(8, 200)[:, None])).all()


def test_positions_that_no_float_names() -> None:
    shape = IndexShape(1, 2, 4, 1.0)
    batch = one_sequence(1 << 24, 1)
    batch = Batch(batch.tokens_T, batch.positions_T, batch.sequence_T, 0 * batch.block_table_SP, batch.selected_L)
    given = [np.zeros((1, w), np.float32) for w in (2, 2, 1)]
    with pytest.raises(ValueError, match="position 16777216 is beyond the 16777216 that an indexer can name"):
        index_plan(shape).run_all(batch, native.Cache([2], 1), given)


def record(change: Callable[[native.Recorder, Any], Any]) -> Any:
    recorder = native.Recorder()
    x = recorder.embed(packed(np.zeros((4, 60), np.float32), "float32"))
    return change(recorder, x)


def mla(recorder: native.Recorder, x: Any, chosen: Any) -> Any:
    kv_b = native.KvB(MLA.heads, MLA.nope, MLA.value, MLA.latent, "float32")
    parts = recorder.split(x, (12, 5, 2, 41))
    return recorder.mla(*parts[:3], kv_b, 0, MLA, chosen)


def index(recorder: native.Recorder, x: Any, shape: IndexShape, layer: int = 1) -> Any:
    return recorder.index(*recorder.split(x, (8, 4, 2, 46))[:3], layer, shape)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r, x: index(r, x, IndexShape(2, 4, 0, 1.0)), "a top_k of at most 1048576"),
        (lambda r, x: index(r, x, IndexShape(2, 4, (1 << 20) + 1, 1.0)), "a top_k of at most 1048576"),
        (lambda r, x: index(r, x, IndexShape(3, 4, 8, 1.0)), "the queries of index has 8 columns, expected 12"),
        (lambda r, x: index(r, r.select(x), IndexShape(2, 4, 8, 1.0)), "index works on all rows, before select"),
        (lambda r, x: mla(r, x, x), "the chosen positions of mla must be those of index"),
        (
            lambda r, x: mla(r, x, r.split(index(r, x, IndexShape(2, 4, 8, 1.0)), (3, 5))[0]),
            "the chosen positions of mla must be those of index",
        ),
        (lambda r, x: mla(r, x, index(r, x, IndexShape(2, 4, 8, 1.0), 0)), "layer 0 is used twice"),
        (
            lambda r, x: mla(r, x, record(lambda other, y: index(other, y, IndexShape(2, 4, 8, 1.0)))),
            "the chosen positions of mla belongs to another plan",
        ),
    ],
)
def test_what_is_refused(change: Callable[[native.Recorder, Any], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        record(change)


def test_odd_widths_need_float32() -> None:
    given = [np.zeros((1, w), np.float32) for w in (3, 3, 1)]
    with pytest.raises(ValueError, match="layer 0 needs a float32 cache"):
        index_plan(IndexShape(1, 3, 4, 1.0)).run_all(one_sequence(0, 1), native.Cache([3], 1, True), given)
    [got] = index_plan(IndexShape(1, 3, 4, 1.0)).run_all(one_sequence(0, 1), native.Cache([3], 1), given)
    np.testing.assert_array_equal(got, int32([[0, -1, -1, -1]]))
