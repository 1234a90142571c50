"""`train` from raw text to a model folder that plain transformers loads and that says what it is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepwell.model.presets import preset
from deepwell.ops.torch_ops import TorchOps
from deepwell.train.config import TrainConfig
from deepwell.train.finish import load_trainee, read_evaluation
from deepwell.train.picture import draw_run
from deepwell.train.run import train, training_flops
from deepwell.train.stages import read_stages, sha256_of


@pytest.fixture
def finished(whole_run: TrainConfig, toy_config: TrainConfig) -> TrainConfig:
    """The whole run, where its shape is known by name."""
    return whole_run


def test_the_folder_loads_in_transformers_with_the_same_logits(finished: TrainConfig) -> None:
    folder = finished.out / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("def value(x):\n    return x", return_tensors="pt")["input_ids"]
    trainee = load_trainee(finished, preset(finished.size), rounded=True)
    with torch.no_grad():
        theirs = model(ids).logits[0]
        ops = TorchOps(ids)
        ours = trainee.decoder.logits(ops, trainee.decoder.hidden(ops))
    assert float((ours - theirs).abs().max()) < 1e-4


def test_every_stage_is_recorded_and_each_input_is_an_earlier_output(finished: TrainConfig) -> None:
    stages = read_stages(finished.out)
    assert [s.stage for s in stages] == ["corpus", "tokenizer", "tokens", "pretrain", "evaluate", "export"]
    made: set[str] = set()
    for stage in stages:
        given = {name: value for name, value in stage.inputs.items() if name != "tokens"}
        assert set(given.values()) <= made, stage.stage
        made |= set(stage.outputs.values())
        assert stage.seconds > 0
        assert stage.peak_rss > 10 << 20
    pretrain = stages[3]
    assert pretrain.tokens == 12 * 256
    assert pretrain.flops == pytest.approx(training_flops(finished, preset("toy"), 12))
    assert pretrain.config == finished.identity()
    for name, digest in stages[-1].outputs.items():
        assert sha256_of(finished.out / "model" / name) == digest


def test_flops_count_six_per_active_weight_and_the_attention_of_half_a_row() -> None:
    shape = preset("nano-dense")
    config = TrainConfig(size="nano-dense", tokens=4096, context=1024, batch_rows=4, mtp_from=1.0)
    attention = 128 * 64 + 4 * 48 * 64 + 128 * (64 + 16) + 4 * 64 * 64 + 128 * 128
    weights = 4 * (attention + 3 * 128 * 240) + 2048 * 128
    scores = 4 * 3 * 2 * 4 * (48 + 32) * 512
    assert training_flops(config, shape, 1) == pytest.approx(4096 * (6 * weights + scores))


def test_the_card_says_data_licence_results_and_limits(finished: TrainConfig, tmp_path: Path) -> None:
    card = (finished.out / "model" / "README.md").read_text()
    evaluation = read_evaluation(finished.out)
    assert evaluation is not None
    assert f"| **toy, as shipped (bfloat16)** | {evaluation.held_out_bpb:.3f} |" in card
    for name, value in evaluation.compressors.items():
        assert f"| {name} | {value:.3f} |" in card
    for words in ("Python Software Foundation License", "can and cannot do", "![loss](loss.svg)", "- seed: 1"):
        assert words in card
    assert (finished.out / "model" / "PYTHON-LICENSE.txt").is_file()
    twin = msgspec.structs.replace(finished, size="toy-dense", out=tmp_path / "twin", compare=finished.out)
    train(twin)
    other = (twin.out / "model" / "README.md").read_text()
    assert f"| run, same data, steps and active FLOPs | {evaluation.held_out_bpb:.3f} |" in other


def test_the_picture_is_the_same_for_the_same_log(finished: TrainConfig, tmp_path: Path) -> None:
    draw_run(finished.out / "metrics.jsonl", tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (finished.out / "model" / "loss.svg").read_bytes()
