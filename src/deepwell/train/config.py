"""Every choice of a training run, said once. The run writes it down and refuses to resume under another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0)]


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Train a DeepSeek-V3-shaped model on the Python standard library, from raw text to a checkpoint folder.

    Examples:
      deepwell train                              the embedded model, in under an hour of one core
      deepwell train --size mini-dense --out runs/mini-dense     its dense twin
      deepwell train --size nano --tokens 2000000 --out runs/quick

    The same command resumes an interrupted run, to the same bits.
    """

    size: Annotated[str, Meta(description="Shape of the model: nano, mini, tiny, or their dense twins.")] = "mini"
    out: Annotated[Path, Meta(description="Folder of the run: checkpoint, log, model, pictures.")] = Path("runs/mini")
    cache: Annotated[
        Path, Meta(description="Folder of tokenizers and tokens made from the same inputs, shared by runs.")
    ] = Path("runs/cache")
    compare: Annotated[
        Path | None, Meta(description="Folder of another finished run, such as the dense twin, to name in the card.")
    ] = None
    tokens: Annotated[Positive, Meta(description="Training tokens, padding included.")] = 9_000_000
    minutes: Annotated[
        Rate, Meta(description="Stop, resumable, after this many CPU minutes in all; 0 for no limit.")
    ] = 0.0
    context: Annotated[Positive, Meta(description="Tokens in a training row.")] = 1024
    batch_rows: Annotated[Positive, Meta(description="Rows in an optimiser step.")] = 4
    micro_rows: Annotated[Positive, Meta(description="Rows computed at once; the rest of a step accumulates.")] = 4
    learning_rate: Annotated[Rate, Meta(description="Peak learning rate.")] = 4e-3
    warmup: Annotated[Count, Meta(description="Steps of linear warm-up.")] = 100
    schedule: Annotated[
        Literal["multi-step", "cosine", "wsd"],
        Meta(description="How it decays: DeepSeek's steps at 80 % and 90 %, cosine to a tenth, or in the last fifth."),
    ] = "multi-step"
    weight_decay: Annotated[Rate, Meta(description="AdamW's decay of matrices.")] = 0.1
    clip: Annotated[Rate, Meta(description="Largest norm of the gradient.")] = 1.0
    precision: Annotated[
        Literal["float32", "bfloat16"], Meta(description="What matrix products are computed in; weights stay float32.")
    ] = "bfloat16"
    fim_rate: Annotated[Share, Meta(description="Share of texts shown as fill-in-the-middle.")] = 0.5
    test_share: Annotated[Share, Meta(description="Share of epochs that read a file of Python's own tests.")] = 0.5
    bias_speed: Annotated[Rate, Meta(description="Step of router biases towards balance; 0 in the last tenth.")] = 1e-3
    balance_loss: Annotated[Rate, Meta(description="Weight of the sequence-wise balance loss.")] = 1e-4
    mtp_loss: Annotated[
        Rate, Meta(description="Weight of the multi-token prediction loss; a third of it in the last tenth.")
    ] = 0.3
    mtp_from: Annotated[
        Share, Meta(description="Share of the run after which multi-token prediction is trained; 1 for never.")
    ] = 0.75
    seed: Annotated[Count, Meta(description="Seed of weights and data order.")] = 1
    threads: Annotated[Positive, Meta(description="CPU threads of torch.")] = 1
    save_minutes: Annotated[Rate, Meta(description="Minutes between checkpoints.")] = 5.0
    log_steps: Annotated[Positive, Meta(description="Steps between lines of the log.")] = 10
    eval_steps: Annotated[Count, Meta(description="Steps between quick held-out measurements; 0 for none.")] = 200

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.context

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, round(self.tokens / self.batch_tokens))

    def identity(self) -> dict[str, object]:
        """The choices that decide the result, for comparing runs; where and how long to run are not among them."""
        fields = msgspec.structs.asdict(self)
        for name in ("out", "cache", "compare", "minutes", "save_minutes", "log_steps", "eval_steps"):
            del fields[name]
        return fields
