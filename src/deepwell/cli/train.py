"""`deepwell train`: run the stages of training with a progress bar; Ctrl-C saves, the same command goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepwell.cli.extras import needing
from deepwell.train.config import TrainConfig

if TYPE_CHECKING:
    from deepwell.train.loop import Metrics, Outcome

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal, at least."""


def run(config: TrainConfig) -> int:
    with needing("train", "training"):
        from deepwell.train.run import train
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{config.size} in {config.out}: {config.steps:,} steps of {config.batch_tokens:,} tokens")
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    preparing = "preparing corpus, tokenizer and tokens"
    if not console.is_terminal:
        console.print(preparing)
    with Progress(*columns, console=console, speed_estimate_period=120, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=config.steps, said=preparing)
        said = -LINE_SECONDS

        def on_step(step: int, metrics: Metrics | None) -> None:
            nonlocal said
            progress.update(task, completed=step)
            if metrics is None:
                return
            progress.update(task, said=_line(metrics))
            if metrics.alarm:
                console.print(f"step {step}: {metrics.alarm}", style="yellow")
            if not console.is_terminal and time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                console.print(f"step {step:,} of {config.steps:,}: {_line(metrics)}")

        outcome = train(config, on_step)
    return _end(config, outcome, console)


def _end(config: TrainConfig, outcome: Outcome, console: Console) -> int:
    """Say how far it got; an exit code: of a signal that ended it, as shells have it."""
    if outcome.finished:
        state = f"finished; try: deepwell serve {config.out / 'model'}"
    else:
        state = f"saved in {config.out}; the same command goes on from here"
    console.print(f"step {outcome.state.step:,} of {config.steps:,}: {state}")
    return 0 if outcome.finished or outcome.signal is None else 128 + outcome.signal


def _line(metrics: Metrics) -> str:
    held_out = f", held-out {metrics.held_out_bpb:.3f} bits/byte" if metrics.held_out_bpb is not None else ""
    return f"{metrics.tokens_per_second:,.0f} tokens/s, loss {metrics.loss:.3f}{held_out}"
