"""Weights to 4 bits with searched scales, weighted by how strongly each input column is used where that is known.

The format is the native backend's int4 (native/storage.h): groups of 32 columns share a float16 scale d, a weight is
q * d with q in -8..7. native/search.h says how scales are searched.

Names carry shapes: N rows, K columns, G groups of a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepwell import _native
from deepwell.errors import CheckpointError
from deepwell.weights.importance import column_weights

GROUP = 32
F32 = NDArray[np.float32]


def quantise_int4(values_NK: F32, importance_K: F32 | None = None) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """q_NK (-8..7) and the bits of the float16 scales d_NG that make the smallest weighted error found.

    `importance_K` are mean squared activations of the input columns; without them, large weights count more.
    CheckpointError for values that are not finite or too large for a float16 scale, and for importances that are
    negative or of another width.
    """
    weight_K = None if importance_K is None else column_weights(importance_K, values_NK.shape[1])
    q_NK, d_NG = _native.search_scales(np.ascontiguousarray(values_NK, np.float32), 4, weight_K)
    if not np.isfinite(d_NG.view(np.float16)).all():
        raise CheckpointError("a weight is not finite or too large for int4's float16 scale")
    return q_NK, d_NG


def dequantise_int4(q_NK: NDArray[np.int8], d_NG: NDArray[np.uint16]) -> F32:
    """The values that a quantised matrix stands for."""
    d_NK = np.repeat(d_NG.view(np.float16).astype(np.float32), GROUP, axis=1)[:, : q_NK.shape[1]]
    product: F32 = q_NK * d_NK
    return product
