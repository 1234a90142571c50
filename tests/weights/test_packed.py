"""Packed files: the same bits as their source, and whatever happened to their bytes, a CheckpointError at worst."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args

import gguf_files
import msgspec
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepwell import _native
from deepwell.errors import CheckpointError, DeepwellError
from deepwell.loading.convert import packed_size, write_packed
from deepwell.loading.load import load_model
from deepwell.loading.pack import DType
from deepwell.loading.runner import NativeRunner
from deepwell.ops import native
from deepwell.ops.base import Batch
from deepwell.weights import embedded_path, packed
from deepwell.weights.packed import PackedModel, is_packed
from deepwell.weights.source import Source, open_source
from fakes import SPECIALS, write_tiny_tokenizer

TOKENS = np.random.default_rng(1).integers(0, 320, 70).astype(np.int32)


def convert(source: Path, out: Path, dtype: DType = "auto") -> PackedModel:
    write_packed(source, out, dtype, lambda done, total: None)
    return PackedModel(out)


def logits_of(source: Source, dtype: DType = "auto") -> tuple[bytes, NDArray[np.float32]]:
    """The runner's fingerprint and the logits of all TOKENS."""
    rows = np.arange(len(TOKENS), dtype=np.int32)
    pages = np.arange(2, dtype=np.int32)[None]
    runner = NativeRunner(source, dtype, blocks=8)
    return runner.fingerprint, runner.run(Batch(TOKENS, rows, np.zeros_like(rows), pages, rows))


def assert_same(source: Path, dtype: DType, out: Path) -> None:
    copy = convert(source, out, dtype)
    (name, wanted), (copied_name, got) = logits_of(open_source(source), dtype), logits_of(copy)
    assert name == copied_name
    assert np.array_equal(got, wanted)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A packed file with experts, pairs, both halves of kv_b, norms and a tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    _, file = gguf_files.save("v2-lite", folder, quantise=lambda name: GGMLQuantizationType.Q8_0)
    out = folder / "small.deepwell"
    convert(file, out)
    return out.read_bytes()


def blocks_of(storage: native.Storage, rows: int, cols: int) -> NDArray[np.uint8] | None:
    """Random rows of ggml's blocks, None for a storage that is filled with values."""
    probe = np.zeros((1, 0), np.uint8)
    try:
        native.Matrix(1, rows, cols, storage).fill_blocks(0, 0, probe)
    except ValueError as error:
        if "needs" not in str(error):
            return None
        width = int(str(error).rsplit(" ", 1)[1])
        return np.random.default_rng(7).integers(0, 0x7C, (rows, width), np.uint8)  # no scale is infinite
    raise AssertionError("rows without bytes were taken")


def filled(storage: native.Storage, pairs: bool = False) -> native.Matrix:
    matrix = native.Matrix(2, 64, 512, storage, pairs)
    blocks = blocks_of(storage, 64, 512)
    for index in range(2):
        if blocks is None:
            values = np.random.default_rng(index).standard_normal((64, 512)).astype(np.float32)
            matrix.fill(index, 0, values)
        else:
            matrix.fill_blocks(index, 0, np.roll(blocks, index, axis=0))
    return matrix


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("storage", get_args(native.Storage))
def test_a_mapped_matrix_is_the_one_that_was_packed(storage: native.Storage, pairs: bool, tmp_path: Path) -> None:
    if pairs and storage in native.FLOATS:
        pytest.skip("floats have no pairs")
    matrix = filled(storage, pairs)
    assert matrix.nbytes == native.Matrix.packed_bytes(2, 64, 512, storage, pairs) == len(matrix.bytes())
    file = tmp_path / "matrix"
    file.write_bytes(bytes(64) + matrix.bytes().tobytes())
    mapped = native.Matrix.mapped(2, 64, 512, storage, pairs, _native.MappedFile(str(file)), 64)
    for index in range(2):
        assert mapped.dequantize(index).tobytes() == matrix.dequantize(index).tobytes()
    assert not mapped.bytes().flags.writeable
    with pytest.raises(ValueError, match="a matrix in a mapped file cannot be filled"):
        mapped.fill(0, 0, np.zeros((64, 512), np.float32))


def test_the_layout_is_that_of_the_version() -> None:
    """Packed files outlive programs: who lays tiles out anew counts packed.VERSION up, then changes this digest."""
    digest = blake2b(digest_size=8)
    for storage in get_args(native.Storage):
        digest.update(filled(storage).bytes())
    assert (packed.VERSION, digest.hexdigest()) == (3, "c1e5049edc314786")


def test_native_refuses_places_outside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    mapped = _native.MappedFile(str(file))
    for offset, said in ((32, "no multiple of 64"), (4096, "do not fit"), (1 << 62, "do not fit")):
        with pytest.raises(ValueError, match=said):
            native.Matrix.mapped(1, 16, 32, "float32", False, mapped, offset)
    with pytest.raises(ValueError, match="of this size are not supported"):
        native.Matrix.packed_bytes(2**31 - 1, 2**28 - 1, 2**24 - 1, "float32")
    for name, said in (("nothing", "cannot be opened: No such file"), ("", "cannot be mapped")):
        with pytest.raises(ValueError, match=said):
            _native.MappedFile(str(tmp_path / name))


def test_the_checksum_sees_every_byte_and_no_number_of_threads() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2 << 20) + 77, np.uint8)
    before, threads = _native.checksum(raw), native.threads()
    try:
        native.set_threads(1)
        assert _native.checksum(raw) == before
    finally:
        native.set_threads(threads)
    for at in (0, 63, 64, (1 << 20) - 1, 1 << 20, len(raw) - 1):
        damaged = raw.copy()
        damaged[at] ^= 1
        assert _native.checksum(damaged) != before
    assert len({_native.checksum(raw[:n]) for n in range(130)}) == 130
    assert _native.checksum(np.zeros(64, np.uint8)) != _native.checksum(np.zeros(65, np.uint8))


@pytest.mark.parametrize("dtype", get_args(DType))
def test_a_folder_and_its_packed_file_compute_the_same_bits(dtype: DType, model_folder: Path, tmp_path: Path) -> None:
    assert_same(model_folder, dtype, tmp_path / "copy.deepwell")


@pytest.mark.parametrize("split_kv_b", [True, False])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16", "mixed"])
def test_a_gguf_file_and_its_packed_file_compute_the_same_bits(kind: str, split_kv_b: bool, tmp_path: Path) -> None:
    def quantise(name: str) -> GGMLQuantizationType:
        if "ffn_gate_inp" in name:
            return gguf_files.F32
        if kind == "mixed":
            return GGMLQuantizationType.Q4_0 if "down" in name or "v_b" in name else GGMLQuantizationType.Q5_1
        return GGMLQuantizationType[kind]

    _, file = gguf_files.save("v2-lite", tmp_path, quantise=quantise, split_kv_b=split_kv_b)
    assert_same(file, "auto", tmp_path / "copy.deepwell")


def test_the_indexers_of_a_sparse_model_go_with_it(tmp_path: Path) -> None:
    _, file = gguf_files.save("v32", tmp_path)
    write_tiny_tokenizer(tmp_path)
    for source, dtype in ((tmp_path, "int8"), (file, "auto")):
        assert_same(source, dtype, tmp_path / f"{dtype}.deepwell")


def test_the_prediction_module_goes_with_the_model(tmp_path: Path) -> None:
    """And the whole way through `load_model`: name, tokenizer, states and drafts are those of the source."""
    out = tmp_path / "well.deepwell"
    convert(embedded_path(), out, "int8")
    source = load_model(embedded_path(), dtype="int8", blocks=4, context=128, speculate="mtp")
    copy = load_model(out, blocks=4, context=128, speculate="mtp")
    assert (copy.name, copy.dtype, copy.runner.fingerprint) == ("well", "int8", source.runner.fingerprint)
    rows = np.arange(20, dtype=np.int32)
    pages = np.zeros((1, 1), np.int32)
    batch = Batch(rows + 300, rows, np.zeros_like(rows), pages, rows)
    for model in (source, copy):
        assert model.runner.has_draft_head
    (logits, states), (got_logits, got_states) = (
        m.runner.run_with_states(batch) for m in (source, copy) if m.runner.has_draft_head
    )
    assert np.array_equal(logits, got_logits)
    assert np.array_equal(states, got_states)
    drafts, got = (m.runner.draft_logits(batch, states)[0] for m in (source, copy) if m.runner.has_draft_head)
    assert np.array_equal(drafts, got)


def test_the_tokenizer_is_the_same(model_folder: Path, tmp_path: Path) -> None:
    for source in (embedded_path(), model_folder, gguf_files.save("llama", tmp_path)[1]):
        wanted, got = open_source(source).tokenizer(), convert(source, tmp_path / "copy.deepwell").tokenizer()
        assert (got.vocab_size, got.bos, got.eos) == (wanted.vocab_size, wanted.bos, wanted.eos)
        text = "def f(x):\n\treturn  'Größe' + 深度 🐳 <｜User｜> <think>" + "".join(map(chr, range(1, 400)))
        assert got.encode(text) == wanted.encode(text)
        assert list(map(got.token_bytes, range(got.vocab_size))) == list(map(wanted.token_bytes, range(got.vocab_size)))
        assert list(map(got.special, SPECIALS)) == list(map(wanted.special, SPECIALS))


def test_a_packed_file_can_be_kept_otherwise(model_folder: Path, tmp_path: Path) -> None:
    """From a float32 copy, what the folder would give: its values are all there."""
    copy = convert(model_folder, tmp_path / "copy.deepwell", "float32")
    for dtype in ("int4", "int8", "bfloat16"):
        assert np.array_equal(logits_of(copy, dtype)[1], logits_of(open_source(model_folder), dtype)[1])  # type: ignore[arg-type]


def test_size_and_progress(model_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "copy.deepwell"
    write_packed(model_folder, out, "int8", lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (out.stat().st_size, out.stat().st_size)
    assert all(done <= total for done, total in told)
    assert packed_size(open_source(model_folder), "int8") <= out.stat().st_size


def test_is_packed(small: bytes, tmp_path: Path) -> None:
    other = tmp_path / "named-otherwise"
    other.write_bytes(small)
    assert is_packed(other)
    assert isinstance(open_source(other), PackedModel)
    (tmp_path / "short.deepwell").write_bytes(b"x")
    assert is_packed(tmp_path / "short.deepwell")
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "nothing.deepwell")


def read_all(file: Path) -> None:
    """Open and read everything there is."""
    model = PackedModel(file)
    model.tokenizer()
    for param in (*model.params, *model.mtp_params):
        model.packed(param)


def refused(file: Path, raw: bytes) -> str:
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as told:
        read_all(file)
    assert str(file) in str(told.value)
    return str(told.value)


def test_a_cut_file_is_refused(small: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cut.deepwell"
    for length in (0, 1, 63, 64, 4095, 4096, 8192, len(small) // 2, len(small) - 1):
        refused(file, small[:length])
    assert "should have" in refused(file, small + b"\0")
    assert "not finished" in refused(file, bytes(4096) + small[4096:])


def test_another_version_is_named(small: bytes, tmp_path: Path) -> None:
    raw = small[:8] + (9).to_bytes(4, "little") + small[12:]
    assert "is of version 9; supported is 3: convert its source again" in refused(tmp_path / "x", raw)


@given(st.data())
def test_a_damaged_byte_is_noticed(small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever it is, but for the padding between sections, which nobody reads."""
    file = tmp_path_factory.getbasetemp() / "damaged.deepwell"
    file.write_bytes(small)
    header = PackedModel(file)._header
    sections = [part for entry in header.params for part in entry.parts] + [header.tokenizer]
    spans = [(0, 64), *((s.offset, s.offset + s.bytes) for s in sections), (len(small) - 100, len(small))]
    first, end = data.draw(st.sampled_from(spans))
    at, bit = data.draw(st.integers(first, end - 1)), data.draw(st.integers(0, 7))
    raw = bytearray(small)
    raw[at] ^= 1 << bit
    refused(file, bytes(raw))


def with_header(small: bytes, header: bytes) -> bytes:
    """The file with another header, whose digest is right: what someone hostile would write."""
    offset = int.from_bytes(small[16:24], "little")
    digest = blake2b(header, digest_size=32).digest()
    preamble = packed._PREAMBLE.pack(packed._MAGIC, packed.VERSION, 0, offset, len(header), digest)
    return preamble + small[len(preamble) : offset] + header


def header_of(small: bytes) -> Any:
    return msgspec.json.decode(small[int.from_bytes(small[16:24], "little") :])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all leaves of a JSON value."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, inner in items for place in places(inner, (*path, key))]
    return [path]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.sampled_from([2**24, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "float32", "int4", "q6_k", "greedy", "noaux_tc", "yarn", "qwen3", "00" * 16, "zz"]),
    st.just([]),
    st.just({}),
)


@given(st.data())
def test_a_forged_header_is_refused_or_harmless(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With a right digest. What still loads must run within its bounds."""
    header = header_of(small)
    everywhere = places(header)
    config = [place for place in everywhere if place[0] == "config"]
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(data.draw(st.sampled_from([everywhere, config]))))
        inner = header
        for key in path:
            inner = (
                inner[key]
                if isinstance(inner, dict | list) and key in (inner if isinstance(inner, dict) else range(len(inner)))
                else {}
            )
        if isinstance(inner, list | dict):
            inner[last] = data.draw(LEAVES)
    file = tmp_path_factory.getbasetemp() / "forged.deepwell"
    file.write_bytes(with_header(small, msgspec.json.encode(header)))
    try:
        read_all(file)
        logits_of(PackedModel(file))
    except DeepwellError:
        pass


def test_entries_that_do_not_fit_are_named(small: bytes, tmp_path: Path) -> None:
    def changed(**values: Any) -> str:
        header = header_of(small)
        header["params"][0]["parts"][0] |= values
        return refused(tmp_path / "x", with_header(small, msgspec.json.encode(header)))

    assert "embed takes" in changed(offset=0)
    assert "embed takes" in changed(bytes=1)
    assert "embed is kept as 'int3', which is no storage" in changed(storage="int3")
    assert "the bytes of embed are damaged" in changed(checksum=0)


KILLED = """
import os, sys
from pathlib import Path
from deepwell.cli import convert
from deepwell.cli.main import main
from deepwell.weights import packed

add, count = packed.PackedWriter.add, 0

def dying(self, *args):
    global count
    count += 1
    add(self, *args)
    if count == 20:
        os.kill(os.getpid(), 9)

packed.PackedWriter.add = dying
main(["convert", sys.argv[1], sys.argv[2], "--force"])
"""


def test_a_killed_writer_leaves_the_old_file(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.deepwell"
    out.write_text("precious")
    done = subprocess.run([sys.executable, "-c", KILLED, str(model_folder), str(out)], timeout=120, check=False)
    assert done.returncode == -9
    assert out.read_text() == "precious"
    (rest,) = set(tmp_path.iterdir()) - {out}
    assert rest.name.endswith(".part")
    with pytest.raises(CheckpointError):
        PackedModel(rest)


def test_a_full_disk_is_an_error_of_the_system(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        convert(model_folder, tmp_path / "out.deepwell")
