"""The searched int4 scales: never worse than plain rounding, better by a margin, and exactly in the native format."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import CheckpointError
from deepwell.ops.native import Matrix
from deepwell.weights.quantize import dequantise_int4, quantise_int4


def plain(w_NK: np.ndarray) -> np.ndarray:
    """What the native backend makes of the weights by rounding alone."""
    matrix = Matrix(1, *w_NK.shape, "int4")
    matrix.fill(0, 0, w_NK)
    return matrix.dequantize(0)


def error(w_NK: np.ndarray, made_NK: np.ndarray, importance_K: np.ndarray | float = 1.0) -> float:
    """Weighted root mean square, relative to the weights'."""
    w, made = w_NK.astype(np.float64), made_NK.astype(np.float64)
    return float(np.sqrt((importance_K * (w - made) ** 2).sum() / (importance_K * w**2).sum()))


def test_gaussian_weights() -> None:
    """Measured: 0.0859 by rounding, 0.0811 by search; weighted 0.0858, 0.0704."""
    random = np.random.default_rng(0)
    w_NK = random.standard_normal((128, 1024)).astype(np.float32)
    importance_K = np.exp(1.5 * random.standard_normal(1024)).astype(np.float32)
    searched, weighted = (dequantise_int4(*quantise_int4(w_NK, i)) for i in (None, importance_K))
    assert error(w_NK, searched) < 0.96 * error(w_NK, plain(w_NK))
    assert error(w_NK, weighted, importance_K) < 0.9 * error(w_NK, searched, importance_K)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 100), st.floats(-12, 4), st.booleans())
def test_never_worse_than_rounding_in_any_group(seed: int, rows: int, cols: int, scale: float, used: bool) -> None:
    random = np.random.default_rng(seed)
    w_NK = (random.standard_t(3, (rows, cols)) * 10.0**scale).astype(np.float32)
    w_NK[random.random((rows, cols)) < 0.2] = 0
    importance_K = random.gamma(0.3, size=cols).astype(np.float32) if used else np.ones(cols, np.float32)
    q_NK, d_NG = quantise_int4(w_NK, importance_K)
    assert q_NK.dtype == np.int8
    assert q_NK.min() >= -8
    assert q_NK.max() <= 7
    assert d_NG.shape == (rows, -(-cols // 32))
    made_NK, rounded_NK = dequantise_int4(q_NK, d_NG), plain(w_NK)
    # the search adds a thousandth of the mean to each importance
    counted_K = importance_K.astype(np.float64) / (importance_K.mean() or 1.0) + 1e-3
    for start in range(0, cols, 32):
        group = slice(start, start + 32)
        ours, theirs = (
            (counted_K[group] * (w_NK[:, group].astype(np.float64) - made[:, group]) ** 2).sum(1)
            for made in (made_NK, rounded_NK)
        )
        assert (ours <= theirs * (1 + 1e-5)).all()


def test_exact_values_stay_exact() -> None:
    q_NK = np.random.default_rng(1).integers(-8, 8, (20, 64)).astype(np.float32)
    q_NK[:, 0] = q_NK[:, 32] = -8
    np.testing.assert_array_equal(dequantise_int4(*quantise_int4(q_NK * 0.25)), q_NK * 0.25)
    zeros_NK = np.zeros((2, 40), np.float32)
    assert not dequantise_int4(*quantise_int4(zeros_NK)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_weights_that_do_not_fit(bad: float) -> None:
    with pytest.raises(CheckpointError, match="not finite or too large for int4's float16 scale"):
        quantise_int4(np.array([[1.0, bad]], np.float32))


@pytest.mark.parametrize("importance", [[1.0], [1.0, -1.0], [1.0, np.nan]])
def test_importances_that_do_not_fit(importance: list[float]) -> None:
    with pytest.raises(CheckpointError, match="importances must be 2 finite numbers of at least 0"):
        quantise_int4(np.ones((3, 2), np.float32), np.array(importance, np.float32))
