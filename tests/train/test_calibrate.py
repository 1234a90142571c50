"""Calibration: mean squares of what really enters each matrix, against hooks in transformers' own modules."""

from pathlib import Path

import numpy as np
import pytest
import seeded
import torch

from deepwell.cli.main import main
from deepwell.errors import CheckpointError
from deepwell.train.calibrate import measure
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.importance import importance_shapes, read_importance
from deepwell.weights.quantize import dequantise_int4, quantise_int4
from fakes import write_tiny_tokenizer

TEXT = "def add(first, second):\n    return first + second\n" * 40


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        (
            "v3",
            {
                "layers.0.attn.q_a": "model.layers.0.self_attn.q_a_proj",
                "layers.1.attn.q_b": "model.layers.1.self_attn.q_b_proj",
                "layers.1.attn.kv_b": "model.layers.1.self_attn.kv_b_proj",
                "layers.2.attn.o": "model.layers.2.self_attn.o_proj",
                "layers.0.ffn.down": "model.layers.0.mlp.down_proj",
                "layers.2.ffn.shared.gate_up": "model.layers.2.mlp.shared_experts.gate_proj",
                "head": "lm_head",
            },
        ),
        (
            "v32",
            {
                "layers.1.attn.indexer.q_b": "model.layers.1.self_attn.indexer.wq_b",
                "layers.2.attn.indexer.k": "model.layers.2.self_attn.indexer.wk",
                "layers.2.attn.o": "model.layers.2.self_attn.o_proj",
            },
        ),
        ("llama-tied-bias", {"layers.1.attn.k": "model.layers.1.self_attn.k_proj", "embed": "lm_head"}),
    ],
)
def test_mean_squares_are_those_of_transformers(name: str, modules: dict[str, str], tmp_path: Path) -> None:
    reference = seeded.save(name, tmp_path)
    tokens_BS = torch.from_numpy(np.random.default_rng(0).integers(0, 320, (3, 50)))
    seen: dict[str, torch.Tensor] = {}
    for key, module in modules.items():
        reference.get_submodule(module).register_forward_pre_hook(
            lambda _, inputs, key=key: seen.__setitem__(key, inputs[0].double().square().flatten(0, -2).mean(0))
        )
    with torch.no_grad():
        reference(tokens_BS)
    checkpoint = Checkpoint(tmp_path)
    importance = measure(checkpoint, tokens_BS)
    assert {key: tuple(values.shape) for key, values in importance.items()} == importance_shapes(checkpoint.config)
    for key, wanted in seen.items():
        torch.testing.assert_close(importance[key].double(), wanted, rtol=1e-4, atol=1e-8)


def test_experts_count_the_tokens_that_chose_them(tmp_path: Path) -> None:
    """The mean squares of all experts, weighted by their tokens, are those of all chosen (token, slot) pairs."""
    seeded.save("v3", tmp_path)
    tokens_BS = torch.from_numpy(np.random.default_rng(1).integers(0, 320, (1, 3)))
    importance = measure(Checkpoint(tmp_path), tokens_BS)["layers.1.ffn.experts.gate_up"]
    # 3 tokens choose 4 of 16 experts each: at least 4 experts saw nobody and took the mean of all tokens
    rows, counts = torch.unique(importance, dim=0, return_counts=True)
    assert counts.max() >= 4
    assert len(rows) > 1


def test_the_command_writes_what_quantising_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text, out = tmp_path / "model", tmp_path / "text.txt", tmp_path / "i.safetensors"
    seeded.save("v3", model)
    write_tiny_tokenizer(model)
    text.write_text(TEXT)
    assert main(["calibrate", str(model), "--text", str(text), "--out", str(out), "--tokens", "200"]) == 0
    assert "importances from 2" in capsys.readouterr().out
    checkpoint = Checkpoint(model)
    importance = read_importance(out, checkpoint.config)
    param = next(p for p in checkpoint.params if p.key == "layers.0.ffn.down")
    w_NK, weight_K = checkpoint.whole(param), importance[param.key].astype(np.float64)
    plain, weighted = (
        (weight_K * (w_NK - dequantise_int4(*quantise_int4(w_NK, i))) ** 2).sum() for i in (None, importance[param.key])
    )
    assert weighted < plain


@pytest.mark.parametrize("name", ["v3", "llama-gqa-linear"])
def test_files_are_measured_as_folders_are(name: str, tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text.txt"
    seeded.save(name, model)
    write_tiny_tokenizer(model)
    text.write_text(TEXT)
    measured = []
    for kind in ("model", "x.gguf", "x.deepwell"):
        source, out = tmp_path / kind, tmp_path / f"{kind}.importance"
        if kind != "model":
            assert main(["convert", str(model), str(source), "--dtype", "float32"]) == 0
        assert main(["calibrate", str(source), "--text", str(text), "--out", str(out), "--tokens", "200"]) == 0
        measured.append(read_importance(out, Checkpoint(model).config))
    for other in measured[1:]:
        for key, values in measured[0].items():
            np.testing.assert_allclose(other[key], values, rtol=1e-4, atol=1e-8)


def test_what_cannot_be_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "short.txt", tmp_path / "i.safetensors"
    text.write_text("x = 1")
    for name, why in ((text, "calibrating needs at least 32"), (tmp_path / "absent", "cannot be read: No such file")):
        assert main(["calibrate", "--text", str(name), "--out", str(out)]) == 2
        assert why in capsys.readouterr().err
    text.write_text(TEXT)
    assert main(["calibrate", "--text", str(text), "--out", str(tmp_path / "no" / "folder")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_importances_of_another_model_are_refused(tmp_path: Path) -> None:
    folders = {}
    for name in ("v3", "v3-plain", "llama"):
        folders[name] = tmp_path / name
        seeded.save(name, folders[name])
        write_tiny_tokenizer(folders[name])
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "i.safetensors"
    assert main(["calibrate", str(folders["v3"]), "--text", str(tmp_path / "text.txt"), "--out", str(out)]) == 0
    for other in ("v3-plain", "llama"):
        with pytest.raises(CheckpointError, match=r"i\.safetensors: .*made for another model"):
            read_importance(out, Checkpoint(folders[other]).config)
