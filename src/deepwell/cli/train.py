"""`deepwell train`: run the stages of training with a progress bar; Ctrl-C saves, the same command goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepwell.cli.extras import needing
from deepwell.train.config import TrainConfig

if TYPE_CHECKING:
    from deepwell.train.loop import Metrics


def run(config: TrainConfig) -> int:
    with needing("train", "training"):
        from deepwell.train.run import train
    console = Console(highlight=False, markup=False)
    console.print(f"{config.size} in {config.out}: {config.steps:,} steps of {config.batch_tokens:,} tokens")
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=120) as progress:
        task = progress.add_task("training", total=config.steps, said="preparing corpus, tokenizer and tokens")

        def on_step(step: int, metrics: Metrics | None) -> None:
            progress.update(task, completed=step)
            if metrics is not None:
                progress.update(task, said=_line(metrics))
                if metrics.alarm:
                    console.print(f"step {step}: {metrics.alarm}", style="yellow")

        outcome = train(config, on_step)
    finished = f"finished; try: deepwell serve {config.out / 'model'}"
    state = finished if outcome.finished else "saved; the same command goes on from here"
    console.print(f"step {outcome.state.step:,} of {config.steps:,}: {state}")
    return 0


def _line(metrics: Metrics) -> str:
    held_out = f", held-out {metrics.held_out_bpb:.3f} bits/byte" if metrics.held_out_bpb is not None else ""
    return f"{metrics.tokens_per_second:,.0f} tokens/s, loss {metrics.loss:.3f}{held_out}"
