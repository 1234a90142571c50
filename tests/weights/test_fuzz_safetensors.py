"""Damaged checkpoints: whatever happened to the bytes, the answer is what the file holds or a CheckpointError."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import CheckpointError
from deepwell.weights.block_fp8 import BlockFormat, pair
from deepwell.weights.safetensors import Tensor, read

FORM = BlockFormat("F8_E4M3", 4, 4)
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


def small_file() -> tuple[dict[str, Any], bytes]:
    """Header and data of a file with every type, two of them a block-FP8 pair."""
    random, header, data = np.random.default_rng(0), {"__metadata__": {"format": "pt"}}, b""
    shapes = {"w": ("F8_E4M3", [5, 6]), "w_scale_inv": ("F8_E8M0", [2, 2]), "a": ("F32", [3, 2]), "b": ("F16", [4])}
    for name, (dtype, shape) in (shapes | {"c": ("BF16", [2, 0]), "d": ("BF16", [7])}).items():
        size = int(np.prod(shape)) * _WIDTH[dtype]
        raw = random.integers(0, 60, size, dtype=np.uint8).tobytes()  # codes of finite numbers in every type
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += raw
    return header, data


HEADER, DATA = small_file()


def joined(header: Any, data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


WHOLE = joined(HEADER, DATA)


def try_to_read(file: Path, raw: bytes) -> None:
    """Read all there is; errors must name the file, tensors be as large as they say."""
    file.write_bytes(raw)
    try:
        tensors = pair(read(file), FORM)
        values = {name: tensor.float32() for name, tensor in tensors.items()}
    except CheckpointError as error:
        told = str(error)
    else:
        check_values(tensors, values, len(raw))
        return
    assert file.name in told


def check_values(tensors: dict[str, Tensor], values: dict[str, Any], size: int) -> None:
    assert sum(tensor.raw.nbytes for tensor in tensors.values()) <= size
    for name, tensor in tensors.items():
        assert values[name].shape == tensor.shape
        assert np.isfinite(values[name]).all()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.safetensors"


def test_the_undamaged_file(file: Path) -> None:
    file.write_bytes(WHOLE)
    tensors = pair(read(file), FORM)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "w": (5, 6), "a": (3, 2), "b": (4,), "c": (2, 0), "d": (7,)
    }  # fmt: skip
    try_to_read(file, WHOLE)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes(file: Path, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(WHOLE)
    for place, bits in flips:
        raw[place] ^= bits
    try_to_read(file, bytes(raw))


def test_every_truncation(file: Path) -> None:
    for length in range(len(WHOLE)):
        file.write_bytes(WHOLE[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            read(file)


NUMBERS = st.one_of(
    st.integers(-3, 80), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63)]), st.floats()
)
VALUES = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=5), st.lists(NUMBERS, max_size=4),
    st.sampled_from([*_WIDTH, "I8", "F64"]), st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(HEADER)),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "begin", "end", "more", "name", "remove"]),
    value=VALUES,
    tail=st.binary(max_size=6),
)
def test_edited_headers(file: Path, name: str, field: str, value: Any, tail: bytes) -> None:
    header = {key: dict(entry) for key, entry in HEADER.items()}
    entry = header[name]
    if field == "remove":
        del header[name]
    elif field == "name":
        header[str(value)] = header.pop(name)
    elif field in ("begin", "end") and name != "__metadata__":
        entry["data_offsets"] = [value, entry["data_offsets"][1]] if field == "begin" else [0, value]
    else:
        entry[field] = value
    try_to_read(file, joined(header, DATA + tail))


@settings(max_examples=200, deadline=None)
@given(header=st.dictionaries(st.text(max_size=4), VALUES, max_size=4), data=st.binary(max_size=40))
def test_any_json_header(file: Path, header: Any, data: bytes) -> None:
    try_to_read(file, joined(header, data))
