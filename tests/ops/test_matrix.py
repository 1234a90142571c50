"""Stored weights hold exactly what native/matrix.h says, and products with them are exact to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from float64_ops import coded
from numpy.typing import NDArray
from op_backends import NATIVE_BACKENDS, REFERENCE, NativeBackend, assert_close, normal, packed, rows_batch

from deepwell.ops import native
from deepwell.ops.native import KvB, Matrix, Storage, vector

STORAGES: list[Storage] = ["float32", "bfloat16", "float16", "int8", "int4"]


def as_stored(w: NDArray[np.float32], storage: Storage) -> NDArray[np.float32]:
    """The value of each weight after packing, by the documented rounding."""
    if storage == "float32":
        return w
    if storage == "bfloat16":
        u = w.view(np.uint32)
        return ((u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    if storage == "float16":
        return w.astype(np.float16).astype(np.float32)
    out = np.empty_like(w)
    for k in range(0, w.shape[1], 32):
        group = w[:, k : k + 32]
        peak = np.take_along_axis(group, np.abs(group).argmax(1)[:, None], 1)
        step, low, high = (np.abs(peak) / np.float32(127), -127, 127) if storage == "int8" else (peak / -8, -8, 7)
        scale = step.astype(np.float16).astype(np.float32)
        q = np.divide(group, scale, out=np.zeros_like(group), where=scale != 0)
        out[:, k : k + 32] = np.clip(np.rint(q), low, high) * scale
    return out


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(16, 64), (1, 1), (37, 95), (130, 33), (5, 200)], ids=str)
def test_values_are_stored_bit_for_bit(storage: Storage, shape: tuple[int, int]) -> None:
    """At all magnitudes down to scales that are subnormal in float16 or vanish, with zero groups and equal peaks."""
    w = normal(1, *shape) * (10.0 ** np.random.default_rng(2).integers(-9, 3, shape)).astype(np.float32)
    w[0, :32] = 0
    w[-1, -1] = -np.abs(w[-1]).max()
    assert np.array_equal(packed(w, storage).dequantize(), as_stored(w, storage))


@pytest.mark.parametrize("storage", STORAGES)
def test_filling_in_pieces_equals_filling_at_once(storage: Storage) -> None:
    w = normal(3, 3, 50, 70)
    pieces = Matrix(3, 50, 70, storage)
    for index, start, stop in ((2, 0, 50), (0, 7, 50), (1, 0, 16), (0, 0, 7), (1, 16, 50)):
        pieces.fill(index, start, w[index, start:stop])
    whole = packed(w, storage)
    for i in range(3):
        assert np.array_equal(pieces.dequantize(i), whole.dequantize(i))


def test_bytes_per_weight() -> None:
    for storage, bits in (("float32", 32), ("bfloat16", 16), ("float16", 16), ("int8", 8.5), ("int4", 4.5)):
        assert Matrix(2, 64, 128, storage).nbytes == 2 * 64 * 128 * bits / 8


@pytest.mark.parametrize("backend", NATIVE_BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", [(1, 256, 300), (1, 64, 48), (3, 33, 17), (9, 95, 40), (50, 130, 64)], ids=str)
def test_products_with_stored_weights(backend: NativeBackend, storage: Storage, shape: tuple[int, int, int]) -> None:
    rows, k, n = shape
    x, w = normal(4, rows, k), normal(5, n, k)

    def graph(ops: Any, handles: Any) -> Any:
        return ops.linear(ops.embed(handles["x"]), handles["w"])

    got = NativeBackend(backend.isa, storage).run(graph, {"x": x, "w": w}, [rows_batch(rows)])
    seen = x if storage in native.FLOATS else coded(x).astype(np.float64)
    want = REFERENCE.run(graph, {"x": seen, "w": as_stored(w, storage)}, [rows_batch(rows)])
    assert_close(got[0], want[0], 5e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_embedding_tables_of_any_storage(storage: Storage) -> None:
    table = normal(6, 50, 70)
    got = NativeBackend("scalar", storage).run(lambda ops, w: ops.embed(w["table"]), {"table": table}, [rows_batch(50)])
    want = as_stored(table, storage)[rows_batch(50).selected_L]
    assert np.array_equal(got[0], want)


@pytest.mark.parametrize("storage", STORAGES)
def test_kv_b_is_split_per_head(storage: Storage) -> None:
    heads, nope, value, latent = 3, 20, 9, 40
    w = normal(7, heads * (nope + value), latent)
    kv_b = KvB(heads, nope, value, latent, storage)
    kv_b.fill(1, w[nope + value :])
    kv_b.fill(0, w[: nope + value])
    for h, part in enumerate(w.reshape(heads, nope + value, latent)):
        assert np.array_equal(kv_b.k_b.dequantize(h), as_stored(np.ascontiguousarray(part[:nope].T), storage))
        assert np.array_equal(kv_b.v_b.dequantize(h), as_stored(part[nope:], storage))


@pytest.mark.parametrize(
    ("index", "start", "shape", "message"),
    [
        (2, 0, (4, 8), "matrix index 2 is outside 0..1"),
        (-1, 0, (4, 8), "matrix index -1"),
        (0, 3, (2, 8), "rows 3..5 do not fit in a matrix of 4 rows"),
        (0, -1, (2, 8), "do not fit"),
        (0, 0, (4, 9), "the rows have 9 columns, the matrix has 8"),
    ],
)
def test_fill_refuses_what_does_not_fit(index: int, start: int, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matrix(2, 4, 8, "int8").fill(index, start, normal(0, *shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_quantising_refuses_what_it_cannot_hold(storage: Storage, value: float) -> None:
    w = normal(0, 20, 40)
    w[17, 39] = value
    with pytest.raises(ValueError, match="row 17 has a value that is not finite or too large for int"):
        packed(w, storage)


@pytest.mark.parametrize(
    ("shape", "storage", "message"),
    [((0, 1, 1), "int8", "at least 1"), ((1, 1, -1), "int8", "at least 1"), ((1, 1, 1), "int2", "allowed: float32")],
)
def test_matrices_that_cannot_be(shape: tuple[int, int, int], storage: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matrix(*shape, storage)


def test_vectors_are_float32() -> None:
    assert vector(np.arange(5)).size == 5
