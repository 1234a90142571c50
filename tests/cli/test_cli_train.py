"""`deepwell train` at its end: what it says, and what it returns."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from deepwell.cli import train as command
from deepwell.cli.train import _end
from deepwell.train.config import TrainConfig
from deepwell.train.loop import Metrics, Outcome, RunState


@pytest.mark.parametrize(
    ("finished", "number", "code", "said"),
    [
        (True, None, 0, "finished; try: deepwell serve runs/x/model"),
        (False, None, 0, "saved in runs/x; the same command goes on from here"),  # the limit of its time
        (False, signal.SIGINT, 130, "saved in runs/x; the same command goes on from here"),
        (False, signal.SIGTERM, 143, "saved in runs/x; the same command goes on from here"),
        (True, signal.SIGINT, 0, "finished; try: deepwell serve runs/x/model"),
    ],
)
def test_who_calls_learns_whether_it_finished(
    finished: bool, number: int | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = RunState(step=5, cpu_seconds=1.0, wall_seconds=1.0, config={}, inputs={}, unlogged=[])
    config = TrainConfig(out=Path("runs/x"))
    assert _end(config, Outcome(finished, state, number), Console(soft_wrap=True)) == code
    assert capsys.readouterr().out.endswith(f": {said}\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_progress_is_lines(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = Metrics(
        step=1,
        tokens=1,
        loss=2.5,
        mtp_loss=None,
        balance=0.0,
        grad_norm=1.0,
        learning_rate=0.1,
        tokens_per_second=1234.0,
        cpu_seconds=1.0,
        max_violation=0.0,
        dead_experts=0,
    )

    def train(config: TrainConfig, on_step: Callable[[int, Metrics | None], None]) -> Outcome:
        for step in (1, 2, 3):
            on_step(step, line)
        return Outcome(False, RunState(3, 1.0, 1.0, {}, {}, []), signal.SIGINT)

    monkeypatch.setattr("deepwell.train.run.train", train)
    if terminal:
        monkeypatch.setattr(command, "Console", partial(Console, force_terminal=True))
    assert command.run(TrainConfig(out=tmp_path)) == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("the same command goes on from here")
    if not terminal:
        assert lines[1] == "preparing corpus, tokenizer and tokens"
        assert lines[2] == f"step 1 of {TrainConfig().steps:,}: 1,234 tokens/s, loss 2.500"
        assert len(lines) == 4, "no more than a line every few seconds"
