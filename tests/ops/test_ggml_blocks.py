"""ggml's blocks in the native backend: packed value for value, and multiplied to the same bits in every way.

Products are held against float64 with the inputs rounded to 8 bits as `deepwell.ops.base` says. K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from float64_ops import choose, coded
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from op_backends import assert_close, int32, moe, normal, packed, rows_batch

from deepwell.ops import native
from deepwell.ops.base import Routing
from deepwell.ops.native import Matrix, Recorder, Storage
from deepwell.weights.gguf.ggml_types import BY_NAME, GgmlType
from ggml_blocks import Blocks, random_blocks, random_weights

GGML: dict[Storage, str] = {"int8": "q8_0", "int4": "q4_0"}
GGML |= {s: s for s in ("q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4")}
ISAS = native.available_isas()
ROWS = (1, 2, 3, 4, 5, 8, 9, 33, 130)
K, N, INTER = 768, 41, 256
BOUND = 5e-6
ROUTING = Routing(5, 2, "softmax", "greedy", normalize=True, scale=1.5)

each_storage = pytest.mark.parametrize("storage", GGML)
Floats = NDArray[np.float32]
Build = Callable[[Recorder, Any], Any]


def kind(storage: Storage) -> GgmlType:
    return BY_NAME[GGML[storage]]


def filled(storage: Storage, blocks: Blocks, cols: int, pairs: bool = False) -> Matrix:
    """Blocks (matrices, rows, bytes per row), or of one matrix."""
    stack = blocks if blocks.ndim == 3 else blocks[None]
    matrix = Matrix(len(stack), stack.shape[1], cols, storage, pairs)
    for i, one in enumerate(stack):
        matrix.fill_blocks(i, 0, one)
    return matrix


def run(build: Build, x: Floats, isa: str = ISAS[0], threads: int = 2) -> Floats:
    """The operation that `build` records, over rows x."""
    recorder = Recorder()
    recorder.embed(packed(np.zeros((1, 1), np.float32), "float32"))
    plan = recorder.finish(recorder.select(build(recorder, recorder.input(x.shape[1]))))
    rows = int32(range(len(x)))
    batch = rows_batch(len(x))
    batch = type(batch)(np.zeros_like(rows), rows, np.zeros_like(rows), batch.block_table_SP, rows)
    before = native.isa(), native.threads()
    native.set_isa(isa)
    native.set_threads(threads)
    try:
        return plan.run_all(batch, native.Cache([], 3), [x])[0]
    finally:
        native.set_isa(before[0])
        native.set_threads(before[1])


def assert_same_bits_in_every_way(build: Build, x: Floats) -> Floats:
    """Whatever the instruction set, the count of rows, the place among them and the threads; gives the result."""
    whole = run(build, x)
    for isa in ISAS:
        for rows in ROWS:
            np.testing.assert_array_equal(run(build, x[:rows], isa), whole[:rows], f"{isa}, {rows} rows")
        for row in (1, 63, 129):
            np.testing.assert_array_equal(run(build, x[row : row + 1], isa)[0], whole[row], f"{isa}, row {row}")
    for threads in (1, 3):
        for rows in (1, 9, 130):
            np.testing.assert_array_equal(run(build, x[-rows:], threads=threads), whole[-rows:], f"{threads} threads")
    return whole


# ---- values


@each_storage
@pytest.mark.parametrize("seed", range(3))
def test_values_bit_for_bit(storage: Storage, seed: int) -> None:
    """Several matrices of an odd height, as ggml_types and as the gguf package decode them."""
    t = kind(storage)
    cols = (256, 1024, 1280 if t.width == 256 else 1280 + 96)[seed]
    blocks = random_blocks(t, 3 * 37, cols, seed, 10.0 ** (seed - 2)).reshape(3, 37, -1)
    matrix = filled(storage, blocks, cols)
    for i in range(3):
        got = matrix.dequantize(i)
        np.testing.assert_array_equal(got.view(np.uint32), t.float32(blocks[i]).view(np.uint32))
        theirs = quants.dequantize(blocks[i], GGMLQuantizationType[t.name.upper()]).astype(np.float32)
        np.testing.assert_array_equal(got.view(np.uint32), theirs.view(np.uint32))


@each_storage
@pytest.mark.parametrize("pairs", [False, True])
def test_rows_filled_in_pieces(storage: Storage, pairs: bool) -> None:
    """From rows that are no multiples of 16, in any order, over what was there before; a gate beside its other half."""
    t, rows = kind(storage), 64
    blocks = random_blocks(t, 2 * rows, 512, 4).reshape(2, rows, -1)
    matrix = filled(storage, random_blocks(t, 2 * rows, 512, 5).reshape(2, rows, -1), 512, pairs)
    for index, start, stop in ((1, 0, rows), (0, 7, 23), (0, 23, 24), (0, 0, 7), (0, 24, rows)):
        matrix.fill_blocks(index, start, blocks[index, start:stop])
    for i in range(2):
        np.testing.assert_array_equal(matrix.dequantize(i), t.float32(blocks[i]))


@each_storage
def test_embedding(storage: Storage) -> None:
    t = kind(storage)
    blocks = random_blocks(t, 50, 512, 6)
    recorder = Recorder()
    plan = recorder.finish(recorder.select(recorder.embed(filled(storage, blocks, 512))))
    batch = rows_batch(50, seed=2)
    np.testing.assert_array_equal(plan.run(batch, native.Cache([], 1)), t.float32(blocks)[batch.selected_L])


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_codes_are_blocks_written_otherwise(storage: Storage) -> None:
    t, rng = kind(storage), np.random.default_rng(7)
    low, high = (-128, 128) if storage == "int8" else (-8, 8)
    codes = rng.integers(low, high, (37, 96), dtype=np.int8)
    scales = rng.standard_normal((37, 3)).astype(np.float16)
    matrix = Matrix(1, 37, 96, storage)
    matrix.fill_coded(0, 0, codes, scales.view(np.uint16))
    np.testing.assert_array_equal(matrix.dequantize(), codes * np.repeat(scales.astype(np.float32), 32, axis=1))
    blocks = np.zeros(37 * 3, t.layout)
    blocks["d"] = scales.reshape(-1)
    groups = codes.reshape(-1, 32)
    if storage == "int8":
        blocks["qs"] = groups
    else:
        unsigned = (groups + 8).astype(np.uint8)
        blocks["qs"] = unsigned[:, :16] | unsigned[:, 16:] << 4
    again = filled(storage, blocks.view(np.uint8).reshape(37, -1), 96)
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


# ---- products


def of_outlier(rows: int) -> Floats:
    """Normal inputs of several magnitudes, with a row of zeros, one outlier and groups of zeros."""
    x = normal(8, rows, K) * np.float32(10.0) ** np.random.default_rng(9).integers(-3, 3, (rows, 1)).astype(np.float32)
    x[2] = 0
    x[3, 5] = 400
    x[4, 128:256] = 0
    return x


@each_storage
def test_linear(storage: Storage) -> None:
    t, x = kind(storage), of_outlier(130)
    blocks = random_weights(t, N, K, 10)
    matrix = filled(storage, blocks, K)
    got = assert_same_bits_in_every_way(lambda ops, v: ops.linear(v, matrix), x)
    want = coded(x) @ t.float32(blocks).astype(np.float64).T
    for row in range(130):  # row by row, for their magnitudes differ
        assert_close(got[row], want[row], BOUND)


@each_storage
def test_head(storage: Storage) -> None:
    """What the codes of a row leave over is coded as well."""
    t, x = kind(storage), of_outlier(130)
    blocks = random_weights(t, N, K, 10)
    matrix = filled(storage, blocks, K)
    got = assert_same_bits_in_every_way(lambda ops, v: ops.head(v, matrix), x)
    weights, first = t.float32(blocks).astype(np.float64).T, coded(x)
    want = (first + coded(x - first)) @ weights
    for row in range(130):
        assert_close(got[row], want[row], BOUND)
        assert np.abs(got[row] - x[row] @ weights).max() <= np.abs(first[row] @ weights - x[row] @ weights).max() / 50


@each_storage
@pytest.mark.parametrize("inter", [48, 40])
def test_gated(storage: Storage, inter: int) -> None:
    """In pairs of tiles and, where the height allows none, by way of `linear`: the same bits."""
    t, x = kind(storage), normal(11, 130, K)
    blocks = random_weights(t, 2 * inter, K, 12)
    bias = native.vector(normal(13, 2 * inter))
    matrix = filled(storage, blocks, K, pairs=2 * inter % 32 == 0)
    assert matrix.pairs == (inter == 48)
    got = assert_same_bits_in_every_way(lambda ops, v: ops.gated(v, matrix, bias), x)
    plain = filled(storage, blocks, K)
    np.testing.assert_array_equal(run(lambda ops, v: ops.gated(v, plain, bias), x), got)
    gate, up = np.split(coded(x) @ t.float32(blocks).astype(np.float64).T + normal(13, 2 * inter), 2, axis=1)
    assert_close(got, gate / (1 + np.exp(-gate)) * up, BOUND)


@cache
def experts(storage: Storage) -> tuple[Blocks, Blocks, Floats]:
    t, e = kind(storage), ROUTING.experts
    up = random_weights(t, e * 2 * INTER, K, 14).reshape(e, 2 * INTER, -1)
    down = random_weights(t, e * N, INTER, 15).reshape(e, N, -1)
    return up, down, normal(16, e, K) * np.float32(K**-0.5)


@each_storage
def test_moe(storage: Storage) -> None:
    """Hidden rows are those of `gated`, bit for bit (above), and are rounded to 8 bits from there."""
    t, x = kind(storage), normal(17, 130, K)
    up, down, router_ED = experts(storage)
    shared = filled(storage, up[0], K, pairs=True), filled(storage, down[1], INTER)
    router = packed(router_ED, "float32")
    gate_up, downs = filled(storage, up, K, pairs=True), filled(storage, down, INTER)
    got = assert_same_bits_in_every_way(
        lambda ops, v: moe(ops, v, router, None, gate_up, downs, ROUTING, shared), x[:130]
    )

    def expert(e: int, d: int) -> NDArray[np.float64]:
        one = filled(storage, up[e], K, pairs=True)
        hidden = run(lambda ops, v: ops.gated(v, one), x)
        return coded(hidden) @ t.float32(down[d]).astype(np.float64).T

    outs = [expert(e, e) for e in range(ROUTING.experts)]
    want = expert(0, 1)
    for row, logits in enumerate(x.astype(np.float64) @ router_ED.T.astype(np.float64)):
        want[row] += sum(w * outs[e][row] for e, w in choose(logits, None, ROUTING))
    assert_close(got, want, BOUND)


@each_storage
def test_one_expert_is_a_feed_forward(storage: Storage) -> None:
    x, (up, down, router) = normal(18, 9, K), experts(storage)
    gate_up, downs = filled(storage, up[0], K, pairs=True), filled(storage, down[0], INTER)
    one = packed(router[:1], "float32")
    routed = run(lambda ops, v: moe(ops, v, one, None, gate_up, downs, Routing(1, 1, "softmax", "greedy")), x)
    dense = run(lambda ops, v: ops.linear(ops.gated(v, gate_up), downs), x)
    np.testing.assert_array_equal(routed, dense)


# ---- what is refused


@each_storage
def test_blocks_of_a_wrong_size(storage: Storage) -> None:
    t = kind(storage)
    matrix, good = Matrix(2, 20, 512, storage), random_blocks(t, 20, 512, 19)
    size = good.shape[1]
    for wrong in (good[:, :-1], np.concatenate([good, good], axis=1), good[:, :0]):
        with pytest.raises(ValueError, match=f"the rows have {wrong.shape[1]} bytes, the matrix needs {size}"):
            matrix.fill_blocks(0, 0, np.ascontiguousarray(wrong))
    with pytest.raises(ValueError, match=r"rows 1\.\.21 do not fit in a matrix of 20 rows"):
        matrix.fill_blocks(0, 1, good)
    with pytest.raises(ValueError, match=r"matrix index 2 is outside 0\.\.1"):
        matrix.fill_blocks(2, 0, good)
    with pytest.raises(ValueError, match=f"are no whole blocks of {t.width}"):
        Matrix(1, 16, 256 + 16, storage).fill_blocks(0, 0, good[:16])
    if storage not in ("int8", "int4"):
        with pytest.raises(ValueError, match="is filled with blocks, not with values"):
            matrix.fill(0, 0, normal(0, 20, 512))


@each_storage
def test_scales_that_are_not_finite(storage: Storage) -> None:
    """The row is named, and keeps what it had."""
    t = kind(storage)
    fields = [f for f in ("d", "dmin", "m") if f in (t.layout.names or ())]
    values: list[Any] = [np.nan, np.inf, -np.inf] if fields else [253, 255]
    for field in fields or ["e"]:
        for value in values:
            good = random_blocks(t, 40, 512, 20)
            matrix, bad = filled(storage, good, 512), good.copy()
            bad.reshape(-1).view(t.layout)[field][-1] = value
            with pytest.raises(ValueError, match="row 39 has a scale that is not a finite number"):
                matrix.fill_blocks(0, 0, bad)
            np.testing.assert_array_equal(matrix.dequantize(), t.float32(good))


def test_the_largest_scales_are_taken() -> None:
    t = kind("mxfp4")
    blocks = random_blocks(t, 16, 256, 21)
    blocks.reshape(-1).view(t.layout)["e"] = 252
    assert np.isfinite(filled("mxfp4", blocks, 256).dequantize()).all()
    assert np.array_equal(filled("mxfp4", blocks, 256).dequantize(), t.float32(blocks))


@pytest.mark.parametrize("storage", native.FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(storage: Storage, value: float) -> None:
    w = normal(0, 20, 40)
    w[17, 39] = value
    with pytest.raises(ValueError, match="row 17 has a value that is not finite or too large for"):
        packed(w, storage)


@pytest.mark.parametrize(("storage", "value"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_floats_too_large_to_be_stored(storage: Storage, value: float) -> None:
    with pytest.raises(ValueError, match=f"too large for {storage}"):
        packed(np.full((1, 1), value, np.float32), storage)


def test_codes_out_of_range() -> None:
    codes, scales = np.zeros((4, 64), np.int8), np.zeros((4, 2), np.uint16)
    matrix = Matrix(1, 4, 64, "int4")
    for wrong in (-9, 8, 127):
        codes[3, 63] = wrong
        with pytest.raises(ValueError, match=rf"code {wrong} is outside -8\.\.7"):
            matrix.fill_coded(0, 0, codes, scales)
    codes[3, 63] = 7
    for shape in ((4, 1), (3, 2), (4, 3)):
        with pytest.raises(ValueError, match="codes must be n x 64 and scales n x 2"):
            matrix.fill_coded(0, 0, codes, np.zeros(shape, np.uint16))
    scales[3, 1] = np.float16(np.inf).view(np.uint16)
    with pytest.raises(ValueError, match="a scale is not finite"):
        matrix.fill_coded(0, 0, codes, scales)
    with pytest.raises(ValueError, match="codes fill int8 and int4, not q4_k"):
        Matrix(1, 4, 256, "q4_k").fill_coded(0, 0, np.zeros((4, 256), np.int8), np.zeros((4, 8), np.uint16))


@each_storage
def test_pairs_of_odd_heights(storage: Storage) -> None:
    for rows in (16, 33, 48, 80):
        with pytest.raises(ValueError, match=f"a multiple of 32 rows, not {rows}"):
            Matrix(1, rows, 256, storage, pairs=True)
    matrix = Matrix(1, 64, 256, storage, pairs=True)
    with pytest.raises(ValueError, match="a matrix of pairs is for gated, not for linear"):
        run(lambda ops, v: ops.linear(v, matrix), normal(0, 1, 256))


@pytest.mark.parametrize("storage", native.FLOATS)
def test_floats_have_neither_blocks_nor_pairs(storage: Storage) -> None:
    with pytest.raises(ValueError, match="is filled with values, not with blocks"):
        Matrix(1, 32, 256, storage).fill_blocks(0, 0, np.zeros((32, 34), np.uint8))
    with pytest.raises(ValueError, match="pairs need a quantised storage"):
        Matrix(1, 32, 256, storage, pairs=True)
