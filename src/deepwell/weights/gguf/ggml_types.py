"""The block formats of ggml: how each lays out its bytes, and the exact float32 values they stand for.

A row of a tensor is a run of blocks; a block packs 1, 32 or 256 neighbouring values and the scales they share. Each
`layout` is the block as a numpy record, field by field in file order. Quants come in runs: the low nibbles (or bit
pairs) of a run of bytes are its first values, the next higher ones the values after them. Names: N blocks, d scale,
m minimum, q quant; a super-block is 256 values in groups of 16 or 32 with small scales of their own.

Every product and sum is rounded to float32 in the order that ggml's reference code takes, so values agree bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_CHUNK_VALUES = 1 << 20
"""Values decoded at a time, so that intermediate arrays stay small."""


class GgmlType(msgspec.Struct, frozen=True):
    """One format. `code` is its number in a GGUF file; a block has `width` values in `layout.itemsize` bytes."""

    name: str
    code: int
    width: int
    layout: np.dtype[Any]
    decode: Callable[[NDArray[Any]], Floats]

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values, a multiple of `width`."""
        return columns // self.width * self.layout.itemsize

    def float32(self, blocks: NDArray[np.uint8]) -> Floats:
        """Values (rows, columns) of raw rows (rows, bytes per row). Infinite or NaN scales give such values."""
        rows, size = blocks.shape
        columns = size // self.layout.itemsize * self.width
        values = np.empty((rows, columns), np.float32)
        step = max(1, _CHUNK_VALUES // max(1, columns))
        with np.errstate(all="ignore"):
            for row in range(0, rows, step):
                part = np.ascontiguousarray(blocks[row : row + step]).view(self.layout).reshape(-1)
                values[row : row + step] = self.decode(part).reshape(-1, columns)
        return values


def _runs(packed: NDArray[np.uint8], run: int, bits: int) -> NDArray[np.uint8]:
    """q_NV: every run of `run` bytes gives its lowest `bits` bits, then the next ones, up to the highest."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return ((packed.reshape(len(packed), -1, 1, run) >> shifts) & np.uint8(2**bits - 1)).reshape(len(packed), -1)


def _float(field: NDArray[Any]) -> Floats:
    return field.astype(np.float32)


def _scaled(d_NG: Floats, q_NV: NDArray[Any], m_NG: Floats | None = None) -> Floats:
    """d · q (- m), where each of G groups has a scale (and a minimum) of its own."""
    groups = _float(q_NV).reshape(*d_NG.shape, -1)
    values = d_NG[..., None] * groups
    return values if m_NG is None else values - m_NG[..., None]


def _f32(block: NDArray[Any]) -> Floats:
    return _float(block["x"])


def _bf16(block: NDArray[Any]) -> Floats:
    return (block["x"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def _q8_0(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], block["qs"])


def _q4_0(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], _runs(block["qs"], 16, 4).astype(np.int8) - np.int8(8))


def _q4_1(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], _runs(block["qs"], 16, 4), -_float(block["m"])[:, None])


def _five_bits(block: NDArray[Any]) -> NDArray[np.uint8]:
    high = (block["qh"][:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return _runs(block["qs"], 16, 4) | (high.astype(np.uint8) << np.uint8(4))


def _q5_0(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], _five_bits(block).astype(np.int8) - np.int8(16))


def _q5_1(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], _five_bits(block), -_float(block["m"])[:, None])


def _q2_k(block: NDArray[Any]) -> Floats:
    """A scale byte per 16 values: its low nibble times d, its high nibble times dmin."""
    d, dmin, scales = _float(block["d"])[:, None], _float(block["dmin"])[:, None], block["scales"]
    return _scaled(d * _float(scales & 15), _runs(block["qs"], 32, 2), dmin * _float(scales >> 4))


def _q3_k(block: NDArray[Any]) -> Floats:
    """Sixteen 6-bit scales less 32: eight bytes of nibbles, then four bytes of bit pairs above them.

    A quant is two bits, less 4 where its bit in hmask is *not* set.
    """
    scales = _runs(block["scales"][:, :8], 8, 4) | (_runs(block["scales"][:, 8:], 4, 2) << np.uint8(4))
    low = _runs(block["qs"], 32, 2).astype(np.int8)
    missing = (_runs(block["hmask"], 32, 1) ^ np.uint8(1)) << np.uint8(2)
    d = _float(block["d"])[:, None] * _float(scales.astype(np.int8) - np.int8(32))
    return _scaled(d, low - missing.astype(np.int8))


def _six_bit_pairs(block: NDArray[Any]) -> tuple[Floats, Floats]:
    """d_NG and m_NG of 8 groups, from 12 bytes of 6-bit scales and minimums.

    Bytes 0-3 and 4-7 hold the first four scales and minimums in their low six bits; bytes 8-11 the low nibbles of the
    last four scales and, above, of the last four minimums, whose two high bits are on top of bytes 0-3 and 4-7.
    """
    first, second, third = block["scales"][:, :4], block["scales"][:, 4:8], block["scales"][:, 8:]
    high = np.uint8(0x30)
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & high)], axis=1)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & high)], axis=1)
    return _float(block["d"])[:, None] * _float(scales), _float(block["dmin"])[:, None] * _float(minimums)


def _q4_k(block: NDArray[Any]) -> Floats:
    d, m = _six_bit_pairs(block)
    return _scaled(d, _runs(block["qs"], 32, 4), m)


def _q5_k(block: NDArray[Any]) -> Floats:
    d, m = _six_bit_pairs(block)
    return _scaled(d, _runs(block["qs"], 32, 4) | (_runs(block["qh"], 32, 1) << np.uint8(4)), m)


def _q6_k(block: NDArray[Any]) -> Floats:
    """Four low bits in runs of 64 bytes, two high bits in runs of 32; a signed scale per 16 values."""
    q = _runs(block["ql"], 64, 4) | (_runs(block["qh"], 32, 2) << np.uint8(4))
    return _scaled(_float(block["d"])[:, None] * _float(block["scales"]), q.astype(np.int8) - np.int8(32))


_NON_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _iq4_nl(block: NDArray[Any]) -> Floats:
    return _scaled(_float(block["d"])[:, None], _NON_LINEAR[_runs(block["qs"], 16, 4)])


def _iq4_xs(block: NDArray[Any]) -> Floats:
    """Eight 6-bit scales less 32: nibbles in scales_l, two bits each in scales_h."""
    low = _runs(block["scales_l"], 1, 4)
    high = (block["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & np.uint16(3)
    scales = (low | (high.astype(np.uint8) << np.uint8(4))).astype(np.int8) - np.int8(32)
    return _scaled(_float(block["d"])[:, None] * _float(scales), _NON_LINEAR[_runs(block["qs"], 16, 4)])


def _mxfp4(block: NDArray[Any]) -> Floats:
    """e is the exponent of a power of two, halved because the values are doubled; 0 and 1 give subnormal halves."""
    e = block["e"].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (np.maximum(e, 1) - 1) << np.uint32(23))
    return _scaled(bits.astype(np.uint32).view(np.float32)[:, None], _E2M1_DOUBLED[_runs(block["qs"], 16, 4)])


_Field = tuple[str, str] | tuple[str, str, int]


def _type(code: int, name: str, width: int, fields: Sequence[_Field], decode: Callable[..., Floats]) -> GgmlType:
    return GgmlType(name, code, width, np.dtype(list(fields)), decode)


_D, _DMIN, _M = ("d", "<f2"), ("dmin", "<f2"), ("m", "<f2")
_SCALES_12 = ("scales", "u1", 12)

TYPES = (
    _type(0, "f32", 1, [("x", "<f4")], _f32),
    _type(1, "f16", 1, [("x", "<f2")], _f32),
    _type(30, "bf16", 1, [("x", "<u2")], _bf16),
    _type(8, "q8_0", 32, [_D, ("qs", "i1", 32)], _q8_0),
    _type(2, "q4_0", 32, [_D, ("qs", "u1", 16)], _q4_0),
    _type(3, "q4_1", 32, [_D, _M, ("qs", "u1", 16)], _q4_1),
    _type(6, "q5_0", 32, [_D, ("qh", "<u4"), ("qs", "u1", 16)], _q5_0),
    _type(7, "q5_1", 32, [_D, _M, ("qh", "<u4"), ("qs", "u1", 16)], _q5_1),
    _type(10, "q2_k", 256, [("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN], _q2_k),
    _type(11, "q3_k", 256, [("hmask", "u1", 32), ("qs", "u1", 64), _SCALES_12, _D], _q3_k),
    _type(12, "q4_k", 256, [_D, _DMIN, _SCALES_12, ("qs", "u1", 128)], _q4_k),
    _type(13, "q5_k", 256, [_D, _DMIN, _SCALES_12, ("qh", "u1", 32), ("qs", "u1", 128)], _q5_k),
    _type(14, "q6_k", 256, [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D], _q6_k),
    _type(20, "iq4_nl", 32, [_D, ("qs", "u1", 16)], _iq4_nl),
    _type(23, "iq4_xs", 256, [_D, ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)], _iq4_xs),
    _type(39, "mxfp4", 32, [("e", "u1"), ("qs", "u1", 16)], _mxfp4),
)
BY_CODE = {t.code: t for t in TYPES}
BY_NAME = {t.name: t for t in TYPES}
NAMES = ", ".join(t.name for t in TYPES)


def bits_per_value(name: str) -> float:
    """Bits that a value takes in the format of that name, scales included."""
    t = BY_NAME[name]
    return 8 * t.layout.itemsize / t.width


def values_in(shape: Sequence[int]) -> int:
    """Values of a tensor of that shape, in Python's unbounded integers."""
    return math.prod(shape)
