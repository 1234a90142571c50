"""Identity by content: any byte and any option that reaches the kernels makes another model, and nothing else does."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf_files
import msgspec
import numpy as np
import pytest
import seeded
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deepwell.errors import CheckpointError
from deepwell.loading.convert import write_packed
from deepwell.loading.identity import Identity
from deepwell.loading.pack import DType
from deepwell.loading.runner import NativeRunner
from deepwell.ops import native
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.digests import Digests
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.importance import importance_shapes
from deepwell.weights.source import Source, open_source
from fakes import write_tiny_tokenizer


def name_of(path: Path, dtype: DType = "auto", **options: Any) -> bytes:
    return NativeRunner(open_source(path), dtype, blocks=1, **options).fingerprint


class NotFinite(Exception):
    """The bit that was flipped made an infinity, which is refused."""


def named(path: Path, make: Any) -> Any:
    try:
        return make(path)
    except CheckpointError as error:
        raise (NotFinite if "finite" in str(error) else AssertionError)(str(error)) from error


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("v3")
    seeded.save("v3", made)
    write_tiny_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of two kinds beside floats."""
    kinds = {"ffn_down": GGMLQuantizationType.Q8_0, "attn_q": GGMLQuantizationType.Q4_0}

    def kind(name: str) -> GGMLQuantizationType:
        return next((kinds[part] for part in kinds if part in name), GGMLQuantizationType.BF16)

    return gguf_files.save("llama", tmp_path_factory.mktemp("gguf"), quantise=kind)[1]


def spans(source: Source) -> list[tuple[Path, int, int]]:
    """Where the bytes of each tensor lie: file, first byte, length."""
    assert isinstance(source, Checkpoint | GgufCheckpoint)
    found = []
    for tensor in source.tensors.values():
        raw = tensor.blocks().tobytes() if isinstance(source, GgufCheckpoint) else tensor.raw.tobytes()  # type: ignore[union-attr]
        at = tensor.file.read_bytes().find(raw)
        assert at > 0
        found.append((tensor.file, at, len(raw)))
    return found


def with_a_bit_flipped(model: Path, copy: Path, data: st.DataObject) -> Path:
    """`model` at `copy`, but for one bit of one byte of some tensor."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    changed = Path(shutil.copytree(model, copy / "m")) if model.is_dir() else Path(shutil.copy(model, copy))
    where, begin, length = data.draw(st.sampled_from(spans(open_source(model))))
    at, bit = begin + data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7))
    target = changed / where.name if changed.is_dir() else changed
    raw = bytearray(target.read_bytes())
    raw[at] ^= 1 << bit
    target.write_bytes(raw)
    return changed


@pytest.mark.parametrize("kind", ["folder", "file"])
@settings(max_examples=25)
@given(data=st.data())
def test_one_bit_of_any_weight_makes_another_model(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    model = request.getfixturevalue(kind)
    changed = with_a_bit_flipped(model, tmp_path_factory.getbasetemp() / f"flipped-{kind}", data)
    with suppress(NotFinite):
        assert named(changed, name_of) != name_of(model)


@settings(max_examples=10)
@given(data=st.data())
def test_the_packed_file_of_changed_weights_is_another_model(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """In place, a changed byte is refused (tests/weights/test_packed.py); packed anew, it has another name."""
    base = tmp_path_factory.getbasetemp()
    changed = with_a_bit_flipped(folder, base / "flipped-packed", data)
    names = []
    for at, path in enumerate((folder, changed)):
        out = base / f"packed-{at}.deepwell"
        with suppress(NotFinite):
            named(path, lambda path, out=out: write_packed(path, out, "auto", silent))
            names.append(name_of(out))
    assert len(set(names)) == len(names)


def test_every_option_that_reaches_the_kernels_makes_another_model(tmp_path: Path) -> None:
    model = embedded_path()
    config = open_source(model).config
    rng = np.random.default_rng(0)
    importance = tmp_path / "importance.safetensors"
    shapes = importance_shapes(config)
    save_file({key: rng.random(shape, np.float32) ** 8 for key, shape in shapes.items()}, importance)
    names = [
        name_of(model),
        name_of(model, cache_dtype="bfloat16"),
        name_of(model, mtp=True),
        name_of(model, "float32"),
        name_of(model, "int8"),
        name_of(model, "int4"),
        name_of(model, "int4", importance=importance),
        name_of(model, "int4", importance=importance, mtp=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "KERNELS", native.KERNELS + 1)
        names.append(name_of(model))
    assert len(set(names)) == len(names)


def test_the_config_is_part_of_the_model(folder: Path) -> None:
    config = open_source(folder).config
    other = msgspec.structs.replace(config, eps=config.eps * 2)
    one, two = (Identity(c, {}, (1,), "float32", 1).digest for c in (config, other))
    assert one != two
    whole = msgspec.structs.replace(config, rope=msgspec.structs.replace(config.rope, theta=10000))
    same = msgspec.structs.replace(config, rope=msgspec.structs.replace(config.rope, theta=10000.0))
    assert Identity(whole, {}, (1,), "float32", 1).digest == Identity(same, {}, (1,), "float32", 1).digest


def test_the_same_content_elsewhere_is_the_same_model(folder: Path, file: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    os.utime(moved / "model.safetensors", (1, 1))
    assert name_of(moved) == name_of(folder)
    seeded.save("v3", tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert name_of(tmp_path / "shards") == name_of(folder)
    copy = Path(shutil.copy(file, tmp_path / "copy.gguf"))
    assert name_of(copy) == name_of(file)


@pytest.mark.parametrize("dtype", ["auto", "int8", "int4"])
def test_a_packed_file_is_the_model_it_was_made_of(dtype: DType, tmp_path: Path) -> None:
    write_packed(embedded_path(), tmp_path / "x.deepwell", dtype, silent)
    for options in ({}, {"mtp": True}):
        assert name_of(tmp_path / "x.deepwell", **options) == name_of(embedded_path(), dtype, **options)


def test_a_packed_file_says_its_contents_without_hashing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(embedded_path(), tmp_path / "x.deepwell", "int8", silent)
    wanted = name_of(embedded_path(), "int8")

    def hashed(self: Digests, raw: Any) -> Any:
        raise AssertionError("a start from a packed file must not hash")

    monkeypatch.setattr(Digests, "start", hashed)
    assert name_of(tmp_path / "x.deepwell") == wanted
    with pytest.raises(AssertionError, match="must not hash"):
        name_of(tmp_path / "x.deepwell", "int4")  # packed anew, so its bytes are others


def test_pieces_do_not_depend_on_threads() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (9 << 20) + 5, np.uint8)
    digests = Digests()
    try:
        first = digests.start(raw)()
        assert first == digests.start(raw.copy())()
        for at in (0, (4 << 20) - 1, 4 << 20, len(raw) - 1):
            changed = raw.copy()
            changed[at] ^= 1
            assert digests.start(changed)() != first
    finally:
        digests.close()
