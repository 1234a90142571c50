"""The commands and their options: the one list that parsing, help, completion and documentation walk."""

from __future__ import annotations

import msgspec

from deepwell.options import (
    BenchOptions,
    CalibrateOptions,
    ChatOptions,
    CompletionOptions,
    ConvertOptions,
    DoctorOptions,
    GenerateOptions,
    ModelsOptions,
    PerplexityOptions,
    PullOptions,
    ServeOptions,
)
from deepwell.train.config import TrainConfig

GROUPS: dict[str, type[msgspec.Struct]] = {
    "serve": ServeOptions,
    "chat": ChatOptions,
    "generate": GenerateOptions,
    "models": ModelsOptions,
    "pull": PullOptions,
    "train": TrainConfig,
    "convert": ConvertOptions,
    "calibrate": CalibrateOptions,
    "perplexity": PerplexityOptions,
    "bench": BenchOptions,
    "doctor": DoctorOptions,
    "completion": CompletionOptions,
}
"""In the order in which help and documentation list them. `deepwell.cli.<name>` runs a command."""


def suggested(command: str, option: str) -> tuple[str, ...]:
    """What completion offers for an argument that also takes other values."""
    if (command, option) != ("models", "model"):
        return ()
    # Only here, for it takes numpy.
    from deepwell.model.published import published

    return tuple(model.name for model in published().values())
