"""Weights to 4 bits with a searched scale, optionally weighted by how strongly each input column is used.

The format is the native backend's int4 (native/matrix.h): groups of 32 columns share a float16 scale d, a weight is
q * d with q in -8..7. Rounding to nearest takes d from the group's largest weight; here several scales are tried, each
is refitted by least squares, and the one with the smallest error Σ importance_k (w_k - q_k d)² stays. Plain rounding is
one of the candidates, so that the result is never worse than it.

Names carry shapes: N rows, K columns, G groups of a row, I = 32 columns of a group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError

GROUP = 32
_LEVELS = np.array([-8.0, -8.75, -8.4, -7.7, -7.4, -7.0, 7.0, 7.5, 8.0], dtype=np.float32)
"""What the group's largest weight is divided to, first plain rounding's -8; the sign decides which end has the 8."""
_CHUNK_VALUES = 1 << 16
"""Weights searched at once: their copies stay in the processor's cache."""

F32 = NDArray[np.float32]


def quantise_int4(values_NK: F32, importance_K: F32 | None = None) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """q_NK (-8..7) and the bits of the float16 scales d_NG that make the smallest weighted error found.

    `importance_K` are mean squared activations of the input columns, None for equal ones. CheckpointError for values
    that are not finite or too large for a float16 scale, and for importances that are negative or of another width.
    """
    rows, cols = values_NK.shape
    groups = -(-cols // GROUP)
    weight_GI = _weights(importance_K, cols, groups)
    q_NK, d_NG = np.empty((rows, cols), np.int8), np.empty((rows, groups), np.uint16)
    step = max(1, _CHUNK_VALUES // (groups * GROUP))
    for start in range(0, rows, step):
        chunk_NK = values_NK[start : start + step]
        padded = np.zeros((len(chunk_NK), groups * GROUP), np.float32)
        padded[:, :cols] = chunk_NK
        q_NGI, d = _search(padded.reshape(-1, groups, GROUP), weight_GI)
        q_NK[start : start + step] = q_NGI.reshape(len(chunk_NK), -1)[:, :cols]
        d_NG[start : start + step] = d.view(np.uint16)
    return q_NK, d_NG


def dequantise_int4(q_NK: NDArray[np.int8], d_NG: NDArray[np.uint16]) -> F32:
    """The values that a quantised matrix stands for."""
    d_NK = np.repeat(d_NG.view(np.float16).astype(np.float32), GROUP, axis=1)[:, : q_NK.shape[1]]
    product: F32 = q_NK * d_NK
    return product


def _weights(importance_K: F32 | None, cols: int, groups: int) -> F32:
    """Importances by group; the columns that pad the last one weigh nothing."""
    weight_K = np.zeros(groups * GROUP, np.float32)
    if importance_K is None:
        weight_K[:cols] = 1.0
        return weight_K.reshape(groups, GROUP)
    if importance_K.shape != (cols,) or not np.isfinite(importance_K).all() or (importance_K < 0).any():
        raise CheckpointError(f"importances must be {cols} finite numbers of at least 0, one per input column")
    # scaled to a mean of 1, so that sums stay within float32; a column never used still counts a little
    mean = float(importance_K.mean(dtype=np.float64)) or 1.0
    weight_K[:cols] = importance_K / np.float32(mean) + np.float32(1e-3)
    return weight_K.reshape(groups, GROUP)


def _search(w_NGI: F32, weight_GI: F32) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    peak_NG = np.take_along_axis(w_NGI, np.abs(w_NGI).argmax(-1)[..., None], -1)[..., 0]
    with np.errstate(over="ignore", invalid="ignore"):
        best_d = (peak_NG / _LEVELS[0]).astype(np.float16)
    if not np.isfinite(best_d).all():
        raise CheckpointError("a weight is not finite or too large for int4's float16 scale")
    best_q = _round(w_NGI, best_d)
    best = _error(w_NGI, weight_GI, best_q, best_d)
    for level in _LEVELS[1:]:
        with np.errstate(over="ignore", invalid="ignore"):  # a scale that overflows has no finite error and loses
            d = _fitted(w_NGI, weight_GI, _round(w_NGI, (peak_NG / level).astype(np.float16)))
            q = _round(w_NGI, d)
            error = _error(w_NGI, weight_GI, q, d)
        better = error < best
        best[better], best_d[better], best_q[better] = error[better], d[better], q[better]
    return best_q.astype(np.int8), best_d


def _round(w_NGI: F32, d_NG: NDArray[np.float16]) -> F32:
    """The integers nearest to w / d, as the native backend rounds; a zero scale makes zeros."""
    d = d_NG.astype(np.float32)[..., None]
    q: F32 = np.divide(w_NGI, d, out=np.zeros_like(w_NGI), where=d != 0)
    np.rint(q, out=q)
    return np.clip(q, -8, 7, out=q)


def _fitted(w_NGI: F32, weight_GI: F32, q_NGI: F32) -> NDArray[np.float16]:
    """The least-squares scale for given integers."""
    top, bottom = (np.einsum("ngi,gi,ngi->ng", a, weight_GI, q_NGI) for a in (w_NGI, q_NGI))
    fitted: F32 = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return fitted.astype(np.float16)


def _error(w_NGI: F32, weight_GI: F32, q_NGI: F32, d_NG: NDArray[np.float16]) -> F32:
    off = w_NGI - q_NGI * d_NG.astype(np.float32)[..., None]
    error: F32 = np.einsum("ngi,gi,ngi->ng", off, weight_GI, off)
    return error
