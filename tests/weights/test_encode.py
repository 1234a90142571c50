"""float32 to ggml's types: the bytes of the gguf package where it can write a type, small errors where it cannot."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from deepwell.weights.encode import ENCODERS, encode, fits
from deepwell.weights.gguf.ggml_types import BY_NAME

ROWS = np.random.default_rng(0).standard_normal((96, 512), np.float32) * np.float32(0.05)
ROWS[3] = 0
ROWS[4, :256] = 1e-12
ROWS[5] = np.abs(ROWS[5])
ROWS[6] = -np.abs(ROWS[6])
ROWS[7, ::3] = np.rint(ROWS[7, ::3] * 100) / 2
ROWS[8, 100] = -3.0


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_bytes_are_those_of_the_gguf_package(name: str) -> None:
    kind = GGMLQuantizationType[name.upper()]
    wanted = gguf.quants.quantize(ROWS, kind).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(encode(name, ROWS), wanted)


@pytest.mark.parametrize(("name", "gain"), [("q5_0", 0.98), ("q4_0", 0.95)])
def test_searched_blocks_err_less_than_those_of_the_gguf_package(name: str, gain: float) -> None:
    kind = GGMLQuantizationType[name.upper()]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(ROWS, kind), kind).reshape(-1, 32)
    ours = gguf.quants.dequantize(encode(name, ROWS).reshape(len(ROWS), -1), kind).reshape(-1, 32)
    x = ROWS.reshape(-1, 32).astype(np.float64)
    weight = np.sqrt(np.square(x).mean(-1, keepdims=True) + np.square(x))
    errors = [(weight * np.square(x - back)).sum(-1) for back in (ours, theirs)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < gain * errors[1].sum()


@pytest.mark.parametrize(("name", "bound"), [("q6_k", 0.0174), ("q4_k", 0.0708)])
def test_the_error_of_super_blocks(name: str, bound: float) -> None:
    """Root mean square over the spread of normal values; llama-quantize has 0.0177 and 0.0715."""
    rows = np.random.default_rng(1).standard_normal((64, 1024), np.float32)
    raw = encode(name, rows).reshape(64, -1)
    back = gguf.quants.dequantize(raw, GGMLQuantizationType[name.upper()])
    assert np.sqrt(np.square(back - rows).mean()) < bound


@pytest.mark.parametrize("name", ["q6_k", "q4_k"])
def test_odd_rows_stay_what_they_are(name: str) -> None:
    back = BY_NAME[name].float32(encode(name, ROWS).reshape(len(ROWS), -1))
    assert np.isfinite(back).all()
    assert (back[3] == 0).all()
    for row in (5, 6, 7, 8):
        assert np.abs(back[row] - ROWS[row]).max() <= np.abs(ROWS[row]).max() / (7 if name == "q4_k" else 25)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_a_type_holds_exactly_comes_back(name: str) -> None:
    once = BY_NAME[name].float32(encode(name, ROWS).reshape(len(ROWS), -1))
    if name in ("f32", "f16", "bf16"):
        assert fits(name, once)
        assert fits(name, ROWS) == (name == "f32")
    again = BY_NAME[name].float32(encode(name, once).reshape(len(ROWS), -1))
    assert np.abs(again - once).max() <= np.abs(once).max() / 8


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q5_0", "q4_0", "q4_k", "q6_k"])
def test_values_too_large_are_refused(name: str) -> None:
    rows = np.full((1, 256), 3.4e38, np.float32)
    with pytest.raises(ValueError, match=r"holds 3\.4e\+38, which is too large"):
        encode(name, rows)
    assert not fits(name, rows)


def test_rows_without_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="has rows of 96 values; q4_k needs a multiple of 256"):
        encode("q4_k", np.zeros((2, 96), np.float32))


@pytest.mark.parametrize("scale", [3e-5, 1e-5, 3e-6, 1e-6, 1e-7])
@pytest.mark.parametrize("name", ["q6_k", "q5_0", "q4_k", "q4_0"])
def test_very_small_values_are_never_worse_than_zeros(name: str, scale: float) -> None:
    """Their scales are among float16's last ones, which have few places."""
    rows = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32) * np.float32(scale)
    back = BY_NAME[name].float32(encode(name, rows).reshape(4, -1))
    lost = float(np.square(back - rows).sum() / np.square(rows).sum())
    assert lost <= 1
    assert scale < 1e-6 or lost < 0.2
