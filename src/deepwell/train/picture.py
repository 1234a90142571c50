"""The run as a picture: loss, held-out bits per byte, and how evenly experts are used."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepwell.json_lines import read_lines
from deepwell.train.loop import Metrics


def read_log(path: Path) -> list[Metrics]:
    """The lines of a run's log, oldest first. DeepwellError if it is damaged."""
    return read_lines(path, Metrics)


def draw_run(log: Path, picture: Path) -> None:
    """Draw `log` into an SVG; the same log gives the same bytes."""
    lines = read_log(log)
    moe = any(line.max_violation for line in lines)
    with mpl.rc_context({"svg.hashsalt": "deepwell", "font.size": 9}):
        figure = Figure(figsize=(8, 5.4 if moe else 3.6), layout="constrained")
        panels = figure.subplots(2 if moe else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + moe])[:, 0]
        _draw_losses(panels[0], lines)
        if moe:
            panels[1].plot(_millions(lines), [line.max_violation + 1 for line in lines], color="tab:red", lw=0.9)
            panels[1].set(ylabel="busiest expert,\ntimes its share", ylim=(0, None))
        panels[-1].set_xlabel("training tokens, millions")
        for panel in panels:
            panel.grid(alpha=0.25)
        figure.savefig(picture, format="svg", metadata={"Date": None})


def _draw_losses(panel: Axes, lines: list[Metrics]) -> None:
    panel.plot(_millions(lines), [line.loss for line in lines], lw=0.9, label="training loss, nats per token")
    with_mtp = [line for line in lines if line.mtp_loss is not None]
    if with_mtp:
        panel.plot(_millions(with_mtp), [line.mtp_loss or 0.0 for line in with_mtp], lw=0.9, label="MTP loss")
    measured = [line for line in lines if line.held_out_bpb is not None]
    if measured:
        values = [line.held_out_bpb or 0.0 for line in measured]
        panel.plot(_millions(measured), values, "o-", ms=3, lw=0.9, label="held-out bits per byte (quick sample)")
    panel.set_ylim(0, min(7.0, max(line.loss for line in lines) * 1.05))
    panel.legend(frameon=False)


def _millions(lines: list[Metrics]) -> list[float]:
    return [line.tokens / 1e6 for line in lines]
