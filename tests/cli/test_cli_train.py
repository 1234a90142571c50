"""`deepwell train` at its end: what it says, and what it returns."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rich.console import Console

from deepwell.cli.train import _end
from deepwell.train.config import TrainConfig
from deepwell.train.loop import Outcome, RunState


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
