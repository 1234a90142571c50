"""float32 rows to the bytes of a ggml type: the way back of `ggml_types`, for the types that files are written in.

Floats round to nearest, ties to even, and q8_0 takes the scale from a block's largest value, as ggml's reference code
does, bit for bit. Types of fewer bits have their scales searched (native/search.h), weighted by how strongly each input
column is used where that is known: the bytes differ from ggml's, the errors are smaller.
Names: N blocks, G groups of a block, I values, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell import _native
from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.importance import column_weights

F32 = NDArray[np.float32]
Raw = NDArray[np.uint8]
_CACHED_VALUES = 1 << 16
"""Values encoded at once: their copies stay in the processor's cache."""
_SEARCHED_VALUES = 1 << 22
"""The same where threads search scales."""


def encode(name: str, rows: F32, importance_K: F32 | None = None) -> Raw:
    """The bytes of `rows` (rows, columns) as the type of that name. ValueError for values that it cannot hold.

    `importance_K` are mean squares of the input columns; they weigh the search of the types in `SEARCHED` alone.
    CheckpointError for importances that are negative or of another width.
    """
    kind = BY_NAME[name]
    if rows.shape[-1] % kind.width:
        raise ValueError(f"has rows of {rows.shape[-1]} values; {name} needs a multiple of {kind.width}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    encoder, at_once = ENCODERS[name], _CACHED_VALUES
    if (searched := SEARCHED.get(name)) is not None:
        weight_K = None if importance_K is None else column_weights(importance_K, rows.shape[-1])
        encoder, at_once = partial(searched, weight_K=weight_K), _SEARCHED_VALUES
    step = max(1, at_once // max(1, rows.shape[-1]))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [encoder(rows[at : at + step]).reshape(-1).view(np.uint8) for at in range(0, len(rows), step)]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])


def fits(name: str, rows: F32) -> bool:
    """Whether a type of floats holds these values exactly."""
    try:
        raw = encode(name, rows)
    except ValueError:
        return False
    back = BY_NAME[name].float32(raw.reshape(len(rows), -1))
    return bool((back == rows).all())


def _f32(rows: F32) -> NDArray[Any]:
    return rows


def _f16(rows: F32) -> NDArray[Any]:
    return _finite(rows.astype("<f2"), rows, "float16")


def _bf16(rows: F32) -> NDArray[Any]:
    bits = rows.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    if (rounded & np.uint32(0x7F80) == 0x7F80).any():
        raise ValueError(f"holds {np.abs(rows).max():g}, which is too large for bfloat16")
    return rounded.astype("<u2")


def _finite(halves: NDArray[Any], values: F32, name: str) -> NDArray[Any]:
    if not np.isfinite(halves).all():
        raise ValueError(f"holds {np.abs(values).max():g}, which is too large for {name}")
    return halves


def _inverse(d: F32) -> F32:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _blocks(name: str, rows: F32, **fields: NDArray[Any]) -> NDArray[Any]:
    made = np.zeros(rows.size // BY_NAME[name].width, BY_NAME[name].layout)
    for field, values in fields.items():
        made[field] = _finite(values.astype("<f2"), rows, f"the scales of {name}") if field in ("d", "dmin") else values
    return made


def _packed(q_NV: NDArray[np.uint8], run: int, bits: int) -> NDArray[np.uint8]:
    """The inverse of `ggml_types._runs`: `bits` bits of 8 / bits neighbouring runs in each byte."""
    parts = q_NV.reshape(len(q_NV), -1, 8 // bits, run)
    made = np.zeros((len(q_NV), parts.shape[1], run), np.uint8)
    for place in range(8 // bits):
        made |= parts[:, :, place] << np.uint8(place * bits)
    return made.reshape(len(q_NV), -1)


def _q8_0(rows: F32) -> NDArray[Any]:
    x_NI = rows.reshape(-1, 32)
    d_N = np.abs(x_NI).max(axis=1) / np.float32(127)
    scaled = x_NI * _inverse(d_N)[:, None]
    size = np.abs(scaled)
    whole = np.floor(size)
    q_NI = np.copysign(whole + np.floor(2 * (size - whole)), scaled)  # halves away from zero, as C rounds
    return _blocks("q8_0", rows, d=d_N, qs=q_NI.astype(np.int8))


def _q4_0(rows: F32, weight_K: F32 | None = None) -> NDArray[Any]:
    q_NI, d_N = _symmetric(rows, 4, weight_K)
    return _blocks("q4_0", rows, d=d_N, qs=_packed(q_NI, 16, 4))


def _q5_0(rows: F32, weight_K: F32 | None = None) -> NDArray[Any]:
    q_NI, d_N = _symmetric(rows, 5, weight_K)
    high_N = ((q_NI >> np.uint8(4)).astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return _blocks("q5_0", rows, d=d_N, qs=_packed(q_NI & np.uint8(15), 16, 4), qh=high_N)


def _symmetric(rows: F32, bits: int, weight_K: F32 | None) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes from 0 on, by block, and its scale."""
    q, d = _native.search_scales(rows, bits, weight_K)
    return (q.reshape(-1, 32) + np.int8(1 << bits - 1)).view(np.uint8), d.reshape(-1).view(np.float16)


def _q6_k(rows: F32, weight_K: F32 | None = None) -> NDArray[Any]:
    """Sixteen groups of 16 with a signed 8-bit scale each; quants are -32 to 31."""
    q_NV, scales_NG, d = _native.search_q6_k(rows, weight_K)
    codes = (q_NV + np.int8(32)).view(np.uint8)
    return _blocks(
        "q6_k",
        rows,
        d=d.reshape(-1).view(np.float16),
        scales=scales_NG,
        ql=_packed(codes & np.uint8(15), 64, 4),
        qh=_packed(codes >> np.uint8(4), 32, 2),
    )


def _q4_k(rows: F32, weight_K: F32 | None = None) -> NDArray[Any]:
    """Eight groups of 32 with a 6-bit scale and minimum each: a value is d · scale · q - dmin · minimum."""
    q_NV, scales_NG, minimums_NG, d, dmin = _native.search_q4_k(rows, weight_K)
    return _blocks(
        "q4_k",
        rows,
        d=d.reshape(-1).view(np.float16),
        dmin=dmin.reshape(-1).view(np.float16),
        scales=_six_bits(scales_NG, minimums_NG),
        qs=_packed(q_NV, 32, 4),
    )


def _six_bits(scales: NDArray[np.uint8], minimums: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `ggml_types._six_bit_pairs`."""
    last_s, last_m = scales[:, 4:], minimums[:, 4:]
    first = scales[:, :4] | (last_s >> np.uint8(4)) << np.uint8(6)
    second = minimums[:, :4] | (last_m >> np.uint8(4)) << np.uint8(6)
    third = (last_s & np.uint8(15)) | (last_m & np.uint8(15)) << np.uint8(4)
    return np.concatenate([first, second, third], axis=1)


ENCODERS: Mapping[str, Callable[[F32], NDArray[Any]]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q8_0": _q8_0,
    "q6_k": _q6_k,
    "q5_0": _q5_0,
    "q4_k": _q4_k,
    "q4_0": _q4_0,
}
"""Types that files can be written in, the largest first."""
SEARCHED: Mapping[str, Callable[..., NDArray[Any]]] = {"q6_k": _q6_k, "q5_0": _q5_0, "q4_k": _q4_k, "q4_0": _q4_0}
"""Those of them whose scales are searched: they take the weights of columns too."""
