"""A run that is stopped, by a limit, a signal or a crash, goes on to the same bits as one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from deepwell.errors import CheckpointError, DeepwellError
from deepwell.model.presets import preset
from deepwell.train import run
from deepwell.train.checkpoint import NAME, load_state
from deepwell.train.config import TrainConfig
from deepwell.train.loop import LOG, Metrics, Outcome, Pretraining, check_same
from deepwell.train.picture import read_log
from deepwell.train.trainee import Trainee


def pretrain(config: TrainConfig, on_step: Callable[[int, Metrics | None], None] = lambda s, m: None) -> Outcome:
    shape, corpus = preset(config.size), run.prepare_corpus(config)
    return run.pretrain(config, shape, corpus, run.prepare_tokenizer(config, shape, corpus), on_step)


def same_run(one: Path, other: Path) -> bool:
    """Weights, router biases and moments bit for bit, and the same log but for its clocks."""
    ours, theirs = load_file(one / NAME), load_file(other / NAME)
    assert set(ours) == set(theirs)
    assert any(key.startswith("exp_avg_sq.") for key in ours)
    assert any(key.endswith("router_bias") for key in ours) == ("router" in " ".join(ours))
    clockless = [
        [msgspec.structs.replace(line, tokens_per_second=0.0, cpu_seconds=0.0) for line in read_log(folder / LOG)]
        for folder in (one, other)
    ]
    return all(torch.equal(ours[key], theirs[key]) for key in ours) and clockless[0] == clockless[1]


def interrupt_at(*steps: int) -> Callable[[int, Metrics | None], None]:
    def on_step(step: int, metrics: Metrics | None) -> None:
        if step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


@pytest.mark.parametrize("size", ["toy", "toy-dense"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_by_sigterm_and_resumed_gives_the_same_bits(
    toy_config: TrainConfig, size: str, precision: str, tmp_path: Path
) -> None:
    config = msgspec.structs.replace(toy_config, size=size, precision=precision)
    assert pretrain(config).finished
    stopped = msgspec.structs.replace(config, out=tmp_path / "stopped")
    for steps_done in (3, 7):
        outcome = pretrain(stopped, interrupt_at(steps_done))
        assert (outcome.finished, outcome.state.step, outcome.signal) == (False, steps_done, signal.SIGTERM)
    assert pretrain(stopped).finished
    assert same_run(config.out, stopped.out)


def test_a_crash_loses_only_what_the_last_checkpoint_had_not_seen(toy_config: TrainConfig, tmp_path: Path) -> None:
    """Steps after the checkpoint are computed again, their log lines written once, a half-written file ignored."""

    def crash(step: int, metrics: Metrics | None) -> None:
        if step == 9:
            raise KeyboardInterrupt

    pretrain(toy_config)
    crashed = msgspec.structs.replace(toy_config, out=tmp_path / "crashed")
    pretrain(crashed, interrupt_at(4))
    with pytest.raises(KeyboardInterrupt):
        pretrain(crashed, crash)
    (crashed.out / f".{NAME}.w0123456789ab.part").write_bytes(b"half of a checkpoint")
    state = load_state(crashed.out)
    assert state is not None
    assert state.step == 4
    pretrain(crashed)
    assert same_run(toy_config.out, crashed.out)


def test_the_cpu_limit_stops_and_counts_over_resumes(toy_config: TrainConfig) -> None:
    config = msgspec.structs.replace(toy_config, minutes=1e-6)
    first, second = pretrain(config), pretrain(config)
    assert (first.state.step, second.state.step) == (1, 2)
    assert second.state.cpu_seconds > first.state.cpu_seconds > 0


def test_a_finished_run_is_not_trained_again(toy_config: TrainConfig) -> None:
    pretrain(toy_config)
    before = (toy_config.out / NAME).read_bytes()
    again = pretrain(toy_config)
    assert again.finished
    assert (toy_config.out / NAME).read_bytes() == before


def test_another_recipe_is_refused_by_name(toy_config: TrainConfig) -> None:
    pretrain(toy_config, interrupt_at(2))
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.004, is 0.1"):
        pretrain(msgspec.structs.replace(toy_config, learning_rate=0.1))
    with pytest.raises(CheckpointError, match=r"tokens was 3072, is 6144\. Choose another folder or the old values"):
        pretrain(msgspec.structs.replace(toy_config, tokens=6144))
    pretrain(msgspec.structs.replace(toy_config, save_minutes=9.0), interrupt_at(3))


def test_another_recipe_is_refused_before_anything_is_read(
    toy_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(toy_config, interrupt_at(2))
    monkeypatch.setattr(run, "build_corpus", lambda: pytest.fail("read the corpus"))
    with pytest.raises(CheckpointError, match="tokens was 3072, is 6144"):
        run.train(msgspec.structs.replace(toy_config, tokens=6144))


def test_other_tokens_are_refused_as_an_input(toy_config: TrainConfig) -> None:
    pretrain(toy_config, interrupt_at(2))
    state = load_state(toy_config.out) or pytest.fail("no run")
    with pytest.raises(CheckpointError, match="cannot resume: the tokens it began with would be made otherwise"):
        check_same(toy_config, state, {**state.inputs, "tokens": "others"})


def test_a_broken_checkpoint_is_named(toy_config: TrainConfig) -> None:
    pretrain(toy_config, interrupt_at(2))
    (toy_config.out / NAME).write_bytes((toy_config.out / NAME).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=NAME):
        pretrain(toy_config)


def test_microbatches_add_up_to_the_step(toy_config: TrainConfig, tmp_path: Path) -> None:
    whole = msgspec.structs.replace(toy_config, out=tmp_path / "whole", micro_rows=4)
    pretrain(toy_config, interrupt_at(1))
    pretrain(whole, interrupt_at(1))
    ours, theirs = load_file(toy_config.out / NAME), load_file(whole.out / NAME)
    for key, tensor in ours.items():
        if key.startswith("exp_avg."):
            assert torch.allclose(tensor, theirs[key], rtol=1e-3, atol=2e-6), key


def test_the_loss_falls(toy_config: TrainConfig) -> None:
    config = msgspec.structs.replace(toy_config, tokens=60 * 256, learning_rate=1e-2, log_steps=10, eval_steps=0)
    pretrain(config)
    losses = [line.loss for line in read_log(config.out / LOG)]
    assert losses[-1] < losses[0] - 1.0


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_touches_weights(toy_config: TrainConfig) -> None:
    pretrain(toy_config, interrupt_at(2))
    before = (toy_config.out / NAME).read_bytes()
    shape, corpus = preset(toy_config.size), run.prepare_corpus(toy_config)
    tokenizer = run.prepare_tokenizer(toy_config, shape, corpus)
    broken = Trainee(shape, toy_config.seed)
    inputs = (load_state(toy_config.out) or pytest.fail("no run")).inputs
    loop = Pretraining(toy_config, broken, run.prepare_tokens(toy_config, corpus, tokenizer), (2, 0), inputs)
    with torch.no_grad():
        broken.weights["head"][60, 0] = float("inf")
    with pytest.raises(DeepwellError, match="gradient of step 3 is not finite"):
        loop.run()
    assert (toy_config.out / NAME).read_bytes() == before
