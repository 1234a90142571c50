"""Every block format: bit by bit what the gguf package's dequantiser gives, and what the formula says."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from deepwell.weights.gguf.ggml_types import BY_CODE, BY_NAME, TYPES, GgmlType, bits_per_value
from ggml_blocks import random_blocks

ROWS, BLOCKS = 7, 5


def random_rows(t: GgmlType, seed: int) -> NDArray[np.uint8]:
    """Rows of random bytes with finite scales of a magnitude that the seed chooses."""
    return random_blocks(t, ROWS, BLOCKS * 256, seed, 10.0 ** (seed % 7 - 4))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", BY_NAME)
def test_bit_by_bit_as_the_reference(name: str, seed: int) -> None:
    raw = random_rows(BY_NAME[name], seed)
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(raw.reshape(-1), GGMLQuantizationType[name.upper()]).astype(np.float32)
    got = BY_NAME[name].float32(raw)
    assert got.shape == (ROWS, BLOCKS * 256)
    np.testing.assert_array_equal(got.reshape(-1).view(np.uint32), wanted.reshape(-1).view(np.uint32))


def test_codes_and_sizes() -> None:
    for t in TYPES:
        kind = GGMLQuantizationType(t.code)
        assert kind.name.lower() == t.name
        assert gguf.GGML_QUANT_SIZES[kind] == (t.width, t.layout.itemsize)
        assert BY_CODE[t.code] is t
    assert bits_per_value("q4_0") == 4.5
    assert bits_per_value("q6_k") == 6.5625


def test_many_rows_are_decoded_in_pieces() -> None:
    """More values than one piece holds, from a view whose rows are not next to each other."""
    t = BY_NAME["q4_0"]
    wide = np.tile(random_rows(t, 0), (120, 8))[::2]
    whole = t.float32(wide)
    np.testing.assert_array_equal(whole[:2], t.float32(wide[:2]))
    np.testing.assert_array_equal(whole[-3:], t.float32(wide[-3:]))
    assert whole.size > 1 << 20


def half(raw: NDArray[np.uint8], at: int) -> np.float32:
    return np.float32(raw[at : at + 2].view(np.float16)[0])


def f32(*factors: float | np.floating) -> np.float32:
    out = np.float32(1)
    for factor in factors:
        out = np.float32(out * np.float32(factor))
    return out


def six_bits(s: NDArray[np.uint8], j: int) -> tuple[int, int]:
    """Scale and minimum of group j, as the format's definition spells them out."""
    if j < 4:
        return int(s[j] & 63), int(s[j + 4] & 63)
    return int(s[j + 4] & 15) | int(s[j - 4] >> 6) << 4, int(s[j + 4] >> 4) | int(s[j] >> 6) << 4


def value(name: str, b: NDArray[np.uint8], i: int) -> np.float32:
    """Value i of block b, one at a time, from the byte offsets of the format."""
    if name == "q8_0":
        return f32(half(b, 0), b[2 + i].view(np.int8))
    if name in ("q4_0", "q4_1", "q5_0", "q5_1"):
        offset = b[{"q4_0": 2, "q4_1": 4, "q5_0": 6, "q5_1": 8}[name] :]
        q = int(offset[i % 16] >> (4 * (i // 16)) & 15)
        if name[1] == "5":
            at = 2 if name == "q5_0" else 4
            q |= (int(b[at : at + 4].view(np.uint32)[0]) >> i & 1) << 4
        if name.endswith("0"):
            return f32(half(b, 0), q - (8 if name == "q4_0" else 16))
        return np.float32(f32(half(b, 0), q) + half(b, 2))
    if name in ("q4_k", "q5_k"):
        scale, minimum = six_bits(b[4:16], i // 32)
        qs = b[16:] if name == "q4_k" else b[48:]
        q = int(qs[i // 64 * 32 + i % 32] >> (4 * (i // 32 % 2)) & 15)
        if name == "q5_k":
            q |= int(b[16 + i % 32] >> (i // 32) & 1) << 4
        return np.float32(f32(half(b, 0), scale, q) - f32(half(b, 2), minimum))
    if name == "q6_k":
        low = int(b[i // 128 * 64 + i % 64] >> (4 * (i % 128 // 64)) & 15)
        high = int(b[128 + i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3)
        return f32(half(b, 208), b[192 + i // 16].view(np.int8), (low | high << 4) - 32)
    if name == "q2_k":
        q = int(b[16 + i // 128 * 32 + i % 32] >> (2 * (i % 128 // 32)) & 3)
        return np.float32(f32(half(b, 80), b[i // 16] & 15, q) - f32(half(b, 82), b[i // 16] >> 4))
    raise KeyError(name)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "q2_k"])
def test_values_as_the_formula_says(name: str) -> None:
    t = BY_NAME[name]
    raw = random_rows(t, 9)
    block = raw.reshape(-1)[: t.layout.itemsize]
    got = t.float32(raw)[0, : t.width]
    assert got.tolist() == [value(name, block, i) for i in range(t.width)]


def test_what_a_quantiser_made_is_near_what_it_was_given() -> None:
    values = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    for name, error in (("q8_0", 0.02), ("q4_0", 0.3), ("q5_1", 0.15), ("bf16", 0.02), ("f16", 0.002)):
        raw = quants.quantize(values, GGMLQuantizationType[name.upper()])
        assert np.abs(BY_NAME[name].float32(raw.view(np.uint8).reshape(4, -1)) - values).max() < error
