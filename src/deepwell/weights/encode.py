"""float32 rows to the bytes of a ggml type: the way back of `ggml_types`, for the types that files are written in.

Floats round to nearest, ties to even. q8_0, q5_0 and q4_0 take the scale from a block's largest value, as ggml's
reference code does, bit for bit. q4_k and q6_k do the same in two steps (a scale of scales), and then refit once;
llama-quantize searches longer, and its files of these two types are slightly better. Names: N blocks, G groups of a
block, I values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.weights.gguf.ggml_types import BY_NAME

F32 = NDArray[np.float32]
Raw = NDArray[np.uint8]
_CACHED_VALUES = 1 << 16
"""Values encoded at once: their copies stay in the processor's cache."""


def encode(name: str, rows: F32) -> Raw:
    """The bytes of `rows` (rows, columns) as the type of that name. ValueError for values that it cannot hold."""
    kind = BY_NAME[name]
    if rows.shape[-1] % kind.width:
        raise ValueError(f"has rows of {rows.shape[-1]} values; {name} needs a multiple of {kind.width}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    step = max(1, _CACHED_VALUES // max(1, rows.shape[-1]))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [ENCODERS[name](rows[at : at + step]).reshape(-1).view(np.uint8) for at in range(0, len(rows), step)]
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


def _extreme(x: F32) -> F32:
    """Of the last axis, the value of the largest size, with its sign."""
    at = np.abs(x).argmax(axis=-1)[..., None]
    found: F32 = np.take_along_axis(x, at, axis=-1)[..., 0]
    return found


def _q4_0(rows: F32) -> NDArray[Any]:
    x_NI = rows.reshape(-1, 32)
    d_N = _extreme(x_NI) / np.float32(-8)
    q_NI = np.trunc(x_NI * _inverse(d_N)[:, None] + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return _blocks("q4_0", rows, d=d_N, qs=_packed(q_NI, 16, 4))


def _q5_0(rows: F32) -> NDArray[Any]:
    x_NI = rows.reshape(-1, 32)
    d_N = _extreme(x_NI) / np.float32(-16)
    q_NI = np.trunc(x_NI * _inverse(d_N)[:, None] + np.float32(16.5)).clip(0, 31).astype(np.uint8)
    high_N = ((q_NI >> np.uint8(4)).astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    return _blocks("q5_0", rows, d=d_N, qs=_packed(q_NI & np.uint8(15), 16, 4), qh=high_N)


def _q6_k(rows: F32) -> NDArray[Any]:
    """Sixteen groups of 16 with a signed 8-bit scale each; quants are -32 to 31."""
    x_NGI = rows.reshape(-1, 16, 16)
    wanted_NG = _extreme(x_NGI) / np.float32(-32)
    q = np.rint(x_NGI * _inverse(wanted_NG)[..., None]).clip(-32, 31)
    wanted_NG = _quotient((x_NGI * q).sum(-1), (q * q).sum(-1))
    d_N = (_extreme(wanted_NG) / np.float32(-128)).astype("<f2").astype(np.float32)
    scales_NG = np.rint(wanted_NG * _inverse(d_N)[:, None]).clip(-128, 127)
    q_NV = np.rint(x_NGI * _inverse(d_N[:, None] * scales_NG)[..., None]).clip(-32, 31).reshape(-1, 256)
    codes = (q_NV + 32).astype(np.uint8)
    return _blocks(
        "q6_k",
        rows,
        d=d_N,
        scales=scales_NG.astype(np.int8),
        ql=_packed(codes & np.uint8(15), 64, 4),
        qh=_packed(codes >> np.uint8(4), 32, 2),
    )


def _q4_k(rows: F32) -> NDArray[Any]:
    """Eight groups of 32 with a 6-bit scale and minimum each: a value is d · scale · q - dmin · minimum."""
    x_NGI = rows.reshape(-1, 8, 32)
    minimum_NG, scale_NG = _fitted(x_NGI)
    d_N, dmin_N = ((x.max(axis=1) / np.float32(63)).astype("<f2").astype(np.float32) for x in (scale_NG, minimum_NG))
    scales = np.rint(scale_NG * _inverse(d_N)[:, None]).clip(0, 63)
    minimums = np.rint(minimum_NG * _inverse(dmin_N)[:, None]).clip(0, 63)
    shifted = x_NGI + (dmin_N[:, None] * minimums)[..., None]
    q_NV = np.rint(shifted * _inverse(d_N[:, None] * scales)[..., None]).clip(0, 15).reshape(-1, 256)
    return _blocks(
        "q4_k",
        rows,
        d=d_N,
        dmin=dmin_N,
        scales=_six_bits(scales.astype(np.uint8), minimums.astype(np.uint8)),
        qs=_packed(q_NV.astype(np.uint8), 32, 4),
    )


def _fitted(x_NGI: F32) -> tuple[F32, F32]:
    """Minimum (as a size below 0) and scale of each group: of some ranges tried, least squares takes the best."""
    low_NG = np.minimum(x_NGI.min(-1), 0)
    span_NG = x_NGI.max(-1) - low_NG
    best: F32 = np.full(low_NG.shape, np.inf, np.float32)
    minimum, scale = -low_NG, span_NG / np.float32(15)
    for levels in (15.0, 14.6, 14.2, 15.4, 15.8):
        q = np.rint((x_NGI - low_NG[..., None]) * (np.float32(levels) * _inverse(span_NG))[..., None]).clip(0, 15)
        mean_q, mean_x = q.mean(-1), x_NGI.mean(-1)
        off = q - mean_q[..., None]
        s = _quotient((off * x_NGI).sum(-1), (off * off).sum(-1))
        m = s * mean_q - mean_x
        m = np.maximum(m, 0)
        error = np.square(s[..., None] * q - m[..., None] - x_NGI).sum(-1)
        better = (error < best) & (s > 0)
        best[better], minimum[better], scale[better] = error[better], m[better], s[better]
    return minimum, scale


def _quotient(top: F32, bottom: F32) -> F32:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


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
