"""GGUF files are untrusted: each way of being broken gives an error that names file, field and what is allowed."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import CheckpointError, ConfigError
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf.reader import GgufFile, is_gguf
from deepwell.weights.source import open_source

Q8_0 = GGMLQuantizationType.Q8_0
U8, U32, BOOL, STRING, ARRAY, U64 = 0, 4, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, code: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", code) + value


def array(code: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", code, count) + items


def tensor(name: str, dims: list[int], code: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def whole(
    keys: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: int = 0,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    head = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys)))) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def nested(depth: int) -> bytes:
    return array(ARRAY, 1, nested(depth - 1)) if depth else array(U8, 1, b"x")


BROKEN: dict[str, tuple[bytes, str]] = {
    "another format": (whole(magic=b"PK\x03\x04"), "the magic is b'PK.*this is no GGUF file"),
    "cut in the magic": (b"GG", "the magic needs 4 bytes at byte 0, and the file ends at 2: it is cut off"),
    "version 1": (whole(version=1), "the version is 1; supported are 2 and 3"),
    "version 4": (whole(version=4), "the version is 4; supported are 2 and 3"),
    "big-endian": (whole(version=3 << 24), "is written big-endian; supported are little-endian files"),
    "too many tensors": (whole(counts=(1 << 60, 0)), f"the count of tensors is {1 << 60}; allowed are 131072"),
    "too many keys": (whole(counts=(0, 1 << 60)), f"the count of metadata keys is {1 << 60}; allowed are 65536"),
    "fewer keys than told": (whole(counts=(0, 99)), "metadata key  needs 4 bytes"),
    "long key": (whole([struct.pack("<Q", 5000)]), "name of metadata key 0 would be 5000 bytes long; allowed are 1024"),
    "two keys": (whole([key("a", U8, b"x")] * 2), "two metadata keys are named a"),
    "unknown value type": (whole([key("a", 13, b"x")]), "metadata key a has the value type 13; allowed are 0 to 12"),
    "long string": (whole([key("a", STRING, struct.pack("<Q", 1 << 40))]), "key a would be 1099511627776 bytes long"),
    "string beyond the end": (whole([key("a", STRING, struct.pack("<Q", 9999))]), "key a needs 9999 bytes at byte 45"),
    "not UTF-8": (whole([key("a", STRING, text(b"ab\xff"))]), "key a is not valid UTF-8 at byte 2 of 3"),
    "bad bool": (whole([key("a", BOOL, b"\x02")]), "key a has the bool 2; allowed are 0 and 1"),
    "array of unknown type": (whole([key("a", ARRAY, array(77, 1))]), "key a is an array of type 77"),
    "long array": (whole([key("a", ARRAY, array(U8, 1 << 50))]), f"key a has {1 << 50} items; all arrays together"),
    "array beyond the end": (whole([key("a", ARRAY, array(U64, 9999))]), "9999 items, more than the file could hold"),
    "strings beyond the end": (
        whole([key("a", ARRAY, array(STRING, 999))]),
        "999 items, more than the file could",
    ),
    "deep arrays": (whole([key("a", ARRAY, nested(6))]), "key a nests arrays more than 4 deep"),
    "alignment of 0": (whole([key("general.alignment", U32, bytes(4))]), "general.alignment is 0; allowed are powers"),
    "alignment of 24": (whole([key("general.alignment", U32, struct.pack("<I", 24))]), "general.alignment is 24"),
    "alignment as text": (whole([key("general.alignment", STRING, text("32"))]), "general.alignment is '32'"),
    "no dimensions": (whole([], [tensor("w", [])]), "tensor w has 0 dimensions; allowed are 1 to 4"),
    "five dimensions": (whole([], [tensor("w", [1] * 5)]), "tensor w has 5 dimensions"),
    "empty dimension": (whole([], [tensor("w", [4, 0])]), r"tensor w has shape \(0, 4\); allowed are dimensions of 1"),
    "huge dimension": (whole([], [tensor("w", [1 << 63, 2])]), "tensor w has shape"),
    "huge product": (
        whole([], [tensor("w", [1 << 32] * 4)], 64),
        r"shape .* ends \d+ bytes after the file",
    ),
    "unknown type": (
        whole([], [tensor("w", [32], 99)], 64),
        "w is of ggml type 99; supported are f32, f16, bf16",
    ),
    "partial block": (whole([], [tensor("w", [48], 2)], 64), "has rows of 48 values; q4_0 needs a multiple of 32"),
    "misaligned": (whole([], [tensor("w", [4], 0, 8)], 64), "tensor w starts at byte 8, which is no multiple of 32"),
    "cut data": (
        whole([], [tensor("w", [16])], 60),
        r"w of shape \(16,\) ends 4 bytes after the file: .*cut off",
    ),
    "offset beyond the end": (whole([], [tensor("w", [1], 0, 1 << 63)], 64), "tensor w .* after the file"),
    "overlap": (
        whole([], [tensor("v", [16]), tensor("w", [8], 0, 32)], 64),
        "tensor w starts at byte 32, but v ends at 64",
    ),
    "two tensors": (whole([], [tensor("w", [8]), tensor("w", [8], 0, 32)], 64), "two tensors are named w"),
    "fewer tensors than told": (whole(counts=(3, 0)), "tensor  needs 4 bytes at byte 32"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, tmp_path: Path) -> None:
    raw, reason = BROKEN[name]
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"x\.gguf: .*" + reason):
        GgufFile(tmp_path / "x.gguf")


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("empty.gguf", "none.gguf"):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be mapped"):
            GgufFile(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.gguf: does not exist; give .* a \.gguf or a \.deepwell file"):
        open_source(tmp_path / "none.gguf")


def test_a_header_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beyond the bytes allowed for a header is not read, however large the file is."""
    monkeypatch.setattr("deepwell.weights.gguf.reader.MAX_HEADER_BYTES", 4096)
    (tmp_path / "x.gguf").write_bytes(whole([key("a", STRING, text("x" * 5000))], data=10_000))
    with pytest.raises(CheckpointError, match=r"metadata key a lies beyond the 4096 bytes allowed for metadata and"):
        GgufFile(tmp_path / "x.gguf")


def test_items_of_all_arrays_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepwell.weights.gguf.reader.MAX_ITEMS", 10)
    (tmp_path / "x.gguf").write_bytes(whole([key(n, ARRAY, array(U8, 6, bytes(6))) for n in "ab"]))
    with pytest.raises(CheckpointError, match="metadata key b has 6 items; all arrays together may have 10"):
        GgufFile(tmp_path / "x.gguf")


def test_names_that_are_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(whole())
    (tmp_path / "other").write_bytes(b"hello")
    assert is_gguf(tmp_path / "blob")
    assert not is_gguf(tmp_path / "other")
    assert not is_gguf(tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_all_kinds_of_values(version: int, tmp_path: Path) -> None:
    values: dict[str, tuple[int, bytes, Any]] = {
        "u8": (0, b"\xff", 255),
        "i8": (1, b"\xff", -1),
        "u16": (2, b"\xfe\xff", 65534),
        "i16": (3, b"\xfe\xff", -2),
        "u32": (4, b"\xff" * 4, 2**32 - 1),
        "i32": (5, b"\xff" * 4, -1),
        "f32": (6, struct.pack("<f", 1e-6), 1e-6),
        "bool": (7, b"\x01", True),
        "text": (8, text("größe"), "größe"),
        "u64": (10, b"\xff" * 8, 2**64 - 1),
        "i64": (11, b"\xff" * 8, -1),
        "f64": (12, struct.pack("<d", 0.1), 0.1),
        "texts": (9, array(8, 2, text("a") + text("")), ["a", ""]),
        "bools": (9, array(7, 2, b"\x01\x00"), [True, False]),
        "none": (9, array(8, 0), []),
    }
    raw = whole([key(n, code, data) for n, (code, data, _) in values.items()], version=version)
    nest = key("nested", ARRAY, array(ARRAY, 2, array(U8, 2, b"\x01\x02") + array(STRING, 1, text("x"))))
    (tmp_path / "x.gguf").write_bytes(raw)
    (tmp_path / "y.gguf").write_bytes(whole([key("ints", ARRAY, array(5, 2, struct.pack("<2i", 7, -7))), nest]))
    metadata = GgufFile(tmp_path / "x.gguf").metadata
    assert metadata == {n: value for n, (_, _, value) in values.items()}
    assert type(metadata["bool"]) is bool
    more = GgufFile(tmp_path / "y.gguf").metadata
    assert more["ints"].tolist() == [7, -7]
    assert more["nested"][0].tolist() == [1, 2]
    assert more["nested"][1] == ["x"]


@pytest.mark.parametrize("alignment", [32, 128])
def test_what_the_gguf_package_writes(alignment: int, tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "x.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_custom_alignment(alignment)
    arrays = {"a": rng.standard_normal((3, 5, 32)), "b": rng.standard_normal(7), "c": rng.standard_normal((2, 64))}
    kinds = {"a": Q8_0, "b": gguf_files.F32, "c": gguf_files.BF16}
    wanted = {}
    for name, values in arrays.items():
        data = quants.quantize(values.astype(np.float32), kinds[name])
        wanted[name] = quants.dequantize(data, kinds[name])
        writer.add_tensor(name, data, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = GgufFile(file).tensors
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "a": ("q8_0", (3, 5, 32)),
        "b": ("f32", (7,)),
        "c": ("bf16", (2, 64)),
    }
    for name, t in tensors.items():
        np.testing.assert_array_equal(t.float32(), wanted[name])
    assert tensors["a"].blocks().shape == (15, 34)
    np.testing.assert_array_equal(tensors["a"][1].float32(), wanted["a"][1])
    np.testing.assert_array_equal(tensors["a"][1].blocks(), tensors["a"].blocks()[5:10])


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    raw = whole([], [tensor("w", [2])])
    (tmp_path / "x.gguf").write_bytes(raw + struct.pack("<2f", 1.0, float("inf")))
    with pytest.raises(CheckpointError, match=r"x\.gguf: tensor w holds values that are not finite numbers"):
        GgufFile(tmp_path / "x.gguf").tensors["w"].float32()


MOST_MEMORY = 96 << 20


def read_everything(path: Path) -> None:
    """All that a load reads. Only the errors made for users may come out, and memory must stay small."""
    tracemalloc.start()
    try:
        source = open_source(path)
        source.tokenizer()
        assert len(source.sample) == 16
        _ = source.config.rotation, source.config.attention, source.stored
        for param in source.params:
            source.whole(param)
    except (CheckpointError, ConfigError):
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < MOST_MEMORY


@pytest.fixture(scope="module", params=["qwen3", "v3"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound model.gguf, and the checkpoint it was made from."""
    folder = tmp_path_factory.mktemp("sound")
    _, file = gguf_files.save(request.param, folder)
    gguf_files.write_tiny_tokenizer(folder)
    file.rename(folder / "model.gguf")
    return folder


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=150)
@given(flips=flips, cut=st.none() | st.floats(0, 1), whole_file=st.booleans())
def test_damaged_gguf(sound: Path, flips: list[tuple[float, int]], cut: float | None, whole_file: bool) -> None:
    """Bytes changed anywhere, or in the metadata and tensor list alone, and files cut off."""
    raw = bytearray((sound / "model.gguf").read_bytes())
    reach = len(raw) if whole_file else raw.index(b"output_norm.weight")
    for place, byte in flips:
        raw[int(place * reach)] = byte
    damaged = sound / "damaged.gguf"
    damaged.unlink(missing_ok=True)
    damaged.write_bytes(raw if cut is None else raw[: int(cut * len(raw))])
    read_everything(damaged)


@settings(max_examples=60)
@given(flips=flips, cut=st.none() | st.floats(0, 1), whole_file=st.booleans())
def test_damaged_safetensors(sound: Path, flips: list[tuple[float, int]], cut: float | None, whole_file: bool) -> None:
    """The same for a folder: only errors made for users, whatever byte of model.safetensors is wrong."""
    raw = bytearray((sound / "model.safetensors").read_bytes())
    reach = len(raw) if whole_file else 8 + int.from_bytes(raw[:8], "little")
    for place, byte in flips:
        raw[int(place * reach)] = byte
    damaged = sound / "damaged"
    damaged.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (damaged / name).write_bytes((sound / name).read_bytes())
    (damaged / "model.safetensors").unlink(missing_ok=True)
    (damaged / "model.safetensors").write_bytes(raw if cut is None else raw[: int(cut * len(raw))])
    read_everything(damaged)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + raw)
    with contextlib.suppress(CheckpointError):
        GgufFile(file)


def test_the_sound_files_are_read(sound: Path) -> None:
    assert open_source(sound / "model.gguf").config.layers == Checkpoint(sound).config.layers == 3
