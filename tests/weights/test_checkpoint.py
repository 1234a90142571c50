"""Checkpoints are untrusted: each way of being broken gives an error that names the file, the tensor and the reason."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeded
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deepwell.errors import CheckpointError, ConfigError
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.safetensors import read


def write(file: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return file


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_equal_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
    save_file(saved, tmp_path / "x.safetensors")
    for name, tensor in read(tmp_path / "x.safetensors").items():
        assert tensor.shape == tuple(saved[name].shape)
        np.testing.assert_array_equal(tensor.float32(), saved[name].float().numpy())


BROKEN = {
    "empty": (b"", "no whole safetensors file"),
    "huge header": (struct.pack("<Q", 1 << 60) + b"{}", "no whole safetensors file"),
    "not json": (struct.pack("<Q", 4) + b"abcd", "header is broken"),
    "deep json": (struct.pack("<Q", 200_000) + b"[" * 200_000, "header is broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_header(name: str, tmp_path: Path) -> None:
    raw, reason = BROKEN[name]
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*" + (reason if raw else "is empty")):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("header", "size", "reason"),
    [
        ({"w": entry(0, 16, [2, 2])}, 12, "tensor w ends 4 bytes after the file"),
        ({"w": entry(0, 16, [2, 3])}, 16, r"tensor w of shape \[2, 3\] cannot have 16 bytes"),
        ({"w": entry(0, 16, [-2, -2])}, 16, "tensor w has shape"),
        ({"w": entry(16, 0, [2, 2])}, 16, "tensor w has shape"),
        ({"w": entry(0, 8, [2], "I32")}, 8, "tensor w is of type I32; supported are F32, F16, BF16"),
        ({"v": entry(0, 8, [2]), "w": entry(4, 12, [2])}, 12, "tensor w starts at byte 4, but tensor v ends at 8"),
        ({"v": entry(0, 8, [2]), "w": entry(12, 20, [2])}, 20, "tensor w starts at byte 12"),
        ({"w": entry(0, 8, [2])}, 12, "4 bytes follow the last tensor"),
        ({"w": {"dtype": "F32", "shape": [2]}}, 8, "header is broken"),
        ({"w": entry(0, 8, [1 << 62, 1 << 62])}, 8, "cannot have 8 bytes"),
    ],
)
def test_bad_entry(header: Any, size: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(write(tmp_path / "x.safetensors", header, bytes(size)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_tensors_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    file.write_bytes(raw)
    try:
        tensors = read(file)
    except CheckpointError as e:
        told = str(e)
    else:
        assert all(np.isfinite(t.float32()).all() for t in tensors.values())
        return
    assert str(file) in told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    seeded.save("v3", tmp_path)
    return tmp_path


def resave(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_sharded_equals_single(tmp_path: Path) -> None:
    seeded.save("v3", tmp_path / "one")
    seeded.save("v3", tmp_path / "many", max_shard_size="100KB")
    one, many = Checkpoint(tmp_path / "one"), Checkpoint(tmp_path / "many")
    assert len({t.file for t in many.tensors.values()}) > 1
    for param in one.params:
        np.testing.assert_array_equal(one.whole(param), many.whole(param))
    assert one.sample == many.sample


def test_another_models_sample_differs(tmp_path: Path) -> None:
    seeded.save("v3", tmp_path / "a", seed=0)
    seeded.save("v3", tmp_path / "b", seed=1)
    assert Checkpoint(tmp_path / "a").sample != Checkpoint(tmp_path / "b").sample


def test_missing_extra_misshapen(folder: Path) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    kept = load_file(folder / "model.safetensors")[name]
    resave(folder, lambda t: t.pop(name))
    with pytest.raises(CheckpointError, match=rf"tensor {name} is missing; the config calls for \(32, 64\)"):
        Checkpoint(folder)
    resave(folder, lambda t: t.update({name: kept[:-1].clone()}))
    with pytest.raises(CheckpointError, match=r"has shape \(31, 64\); the config calls for \(32, 64\)"):
        Checkpoint(folder)
    resave(folder, lambda t: t.update({name: kept, "model.layers.0.mlp.fourth.weight": kept.clone()}))
    with pytest.raises(CheckpointError, match=r"fourth\.weight is none of a deepseek_v3 model's"):
        Checkpoint(folder)


def test_nan_is_named(folder: Path) -> None:
    resave(folder, lambda t: t["model.norm.weight"].__setitem__(0, float("nan")))
    checkpoint = Checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.norm\.weight holds values"):
        checkpoint.whole(next(p for p in checkpoint.params if p.key == "norm"))


def test_missing_shard_and_escaping_index(tmp_path: Path) -> None:
    seeded.save("llama", tmp_path, max_shard_size="50KB")
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    shard = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / shard).rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=f"{shard}: is missing"):
        Checkpoint(tmp_path)
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    index_file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="allowed are"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are llama, qwen2, qwen3, deepseek, "),
        ({"num_hidden_layers": "three"}, "num_hidden_layers is 'three'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_experts_per_tok": 99}, "cannot choose 99 of 16 experts"),
        ({"n_group": 5}, "cannot choose 4 of 16 experts"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope scaling 'spiral' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"scoring_func": "argmax"}, "scoring_func is 'argmax'; allowed are softmax, sigmoid"),
        ({"vocab_size": 321}, "has shape"),
        ({"use_sliding_window": True}, "use_sliding_window is true; supported is attention to the whole sequence"),
    ],
)
def test_config_errors(folder: Path, change: dict[str, Any], reason: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((ConfigError, CheckpointError), match=reason):
        Checkpoint(folder)


def test_older_rope_keys_mean_the_same(folder: Path) -> None:
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    new = Checkpoint(folder).config
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    raw["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    file.write_text(json.dumps(raw))
    assert Checkpoint(folder).config == new


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name, what in (("model.gguf", "is a file"), ("absent", "does not exist")):
        with pytest.raises(CheckpointError, match=rf"{name}: {what}; give a folder with config\.json"):
            Checkpoint(tmp_path / name)
