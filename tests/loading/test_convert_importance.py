"""`convert --importance` to GGUF: each matrix is searched with the importances of its own columns, whoever measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import seeded
from safetensors.numpy import save_file

from deepwell.errors import CheckpointError
from deepwell.loading.convert import as_hugging_face, prepare
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.encode import SEARCHED, encode
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.ggml_types import BY_NAME
from deepwell.weights.gguf.layout import as_gguf
from deepwell.weights.importance import QUERY, gguf_tensors, importance_shapes, read_importance
from fakes import write_tiny_tokenizer

Arrays = dict[str, np.ndarray]


def model_of(name: str, folder: Path) -> Checkpoint:
    seeded.save(name, folder)
    write_tiny_tokenizer(folder)
    return Checkpoint(folder)


def importances(source: Checkpoint) -> Arrays:
    random = np.random.default_rng(7)
    shapes = importance_shapes(source.config)
    return {key: random.gamma(0.4, size=shape).astype(np.float32) for key, shape in shapes.items()}


def write_imatrix(file: Path, measured: Arrays, counts: Callable[[int], list[float]]) -> Path:
    writer = gguf.GGUFWriter(file, "imatrix")
    for name, values in measured.items():
        seen = np.array(counts(len(values)), np.float32)[:, None]
        writer.add_tensor(f"{name}.in_sum2", values * seen)
        writer.add_tensor(f"{name}.counts", seen)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file


def as_imatrix(source: Checkpoint, importance: Arrays) -> Arrays:
    """As llama-imatrix sees them: a row for each head of the values, though they share their inputs' key."""
    measured = {name: np.atleast_2d(importance[key]) for name, key in gguf_tensors(source.config).items()}
    return {n: np.repeat(v, source.config.heads, 0) if "attn_v_b" in n else v for n, v in measured.items()}


@pytest.mark.parametrize("name", ["v3-wide", "qwen2-wide"])
@pytest.mark.parametrize("dtype", SEARCHED)
def test_every_matrix_is_searched_with_its_own(name: str, dtype: str, tmp_path: Path) -> None:
    source = model_of(name, tmp_path / "model")
    importance = importances(source)
    save_file(importance, tmp_path / "importance")
    prepare(source.path, "gguf", dtype, importance=tmp_path / "importance").write(tmp_path / "x.gguf", lambda *_: None)
    written = GgufCheckpoint(tmp_path / "x.gguf").tensors
    keys, searched = gguf_tensors(source.config), 0
    for tensor in as_gguf(source.config, as_hugging_face(source)):
        kind, rows = written[tensor.name].dtype, tensor.read(0, tensor.count)
        weights = np.atleast_2d(importance[keys[tensor.name]]) if tensor.name in keys else [None]
        parts = np.split(rows, len(weights))
        wanted = np.concatenate([encode(kind, part, one) for part, one in zip(parts, weights, strict=True)])
        assert np.array_equal(written[tensor.name].blocks().reshape(-1), wanted), tensor.name
        if kind in SEARCHED and weights[0] is not None:
            searched += 1
            assert not np.array_equal(wanted, encode(kind, rows)), tensor.name
    assert searched >= (15 if name == "v3-wide" else 8)


@pytest.mark.parametrize("kind", SEARCHED)
def test_the_weighted_error_is_smaller(kind: str) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((32, 512), np.float32)
    importance_K = np.exp(2 * random.standard_normal(512)).astype(np.float32)
    plain, weighed = (BY_NAME[kind].float32(encode(kind, rows, i).reshape(32, -1)) for i in (None, importance_K))
    lost = [float((importance_K * np.square(back - rows)).sum()) for back in (plain, weighed)]
    assert lost[1] < 0.97 * lost[0]
    assert np.array_equal(encode("q8_0", rows, importance_K), encode("q8_0", rows))


@pytest.mark.parametrize("name", ["v3-wide", "qwen2-wide"])
def test_what_llama_imatrix_writes_is_read(name: str, tmp_path: Path) -> None:
    source = model_of(name, tmp_path / "model")
    importance = importances(source)
    file = write_imatrix(tmp_path / "i.gguf", as_imatrix(source, importance), lambda n: [4.0 + i for i in range(n)])
    read = read_importance(file, source.config)
    assert read.keys() == importance.keys()
    for key, values in importance.items():
        np.testing.assert_allclose(read[key], values, rtol=1e-6)


def test_experts_that_saw_nothing_take_the_mean_of_the_others(tmp_path: Path) -> None:
    source = model_of("v3-wide", tmp_path / "model")
    importance = importances(source)
    file = write_imatrix(
        tmp_path / "i.gguf",
        as_imatrix(source, importance),
        lambda n: [float(i != 1) for i in range(n)] if n > 1 else [1.0],
    )
    [key] = [key for key in importance if key.endswith("layers.1.ffn.experts.down")]
    read, given = read_importance(file, source.config)[key], importance[key]
    np.testing.assert_allclose(read[1], np.delete(given, 1, 0).mean(0), rtol=1e-6)
    np.testing.assert_allclose(read[2], given[2], rtol=1e-6)


def test_the_head_and_kv_b_may_be_missing(tmp_path: Path) -> None:
    """llama-imatrix leaves the head out unless asked, and other programs do not split kv_b."""
    source = model_of("v3-wide", tmp_path / "model")
    measured = as_imatrix(source, importances(source))
    least = {n: v for n, v in measured.items() if n != "output.weight" and "k_b" not in n and "v_b" not in n}
    file = write_imatrix(tmp_path / "i.gguf", least, lambda n: [1.0] * n)
    read = read_importance(file, source.config)
    assert importance_shapes(source.config).keys() - read.keys() == {
        key for key in importance_shapes(source.config) if key == "head" or key.endswith(("kv_b", QUERY))
    }
    prepare(source.path, "packed", "int4", importance=file).write(tmp_path / "x.deepwell", lambda *_: None)
    prepare(source.path, "gguf", "q4_0", importance=file).write(tmp_path / "x.gguf", lambda *_: None)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, other = model_of("v3-wide", tmp_path / "model"), model_of("qwen2-wide", tmp_path / "other")
    measured = as_imatrix(source, importances(source))
    name = "blk.0.attn_output.weight"
    broken: dict[str, tuple[Arrays, str]] = {
        "another": (as_imatrix(other, importances(other)), "has no tensor .*: it was made for another model"),
        "narrow": (measured | {name: measured[name][:, :-1]}, f"{name} has importances of shape"),
        "negative": (measured | {name: -measured[name]}, f"{name}.in_sum2 holds sums of squares or counts below 0"),
        "model": ({}, "holds no tensor named ….in_sum2"),
    }
    for title, (arrays, said) in broken.items():
        file = write_imatrix(tmp_path / f"{title}.gguf", arrays, lambda n: [1.0] * n)
        with pytest.raises(CheckpointError, match=said):
            prepare(source.path, "gguf", "q4_0", importance=file)
    unseen = write_imatrix(tmp_path / "unseen.gguf", measured, lambda n: [0.0] * n)
    with pytest.raises(CheckpointError, match="or of no rows"):
        read_importance(unseen, source.config)
    save_file(importances(other), tmp_path / "of-another.safetensors")
    with pytest.raises(CheckpointError, match=r"of-another\.safetensors: .*made for another model"):
        prepare(source.path, "gguf", "q4_k", importance=tmp_path / "of-another.safetensors")
