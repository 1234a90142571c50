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
    KeysOptions,
    ListOptions,
    ModelsOptions,
    PerplexityOptions,
    PullOptions,
    RmOptions,
    ServeOptions,
    UsageOptions,
)
from deepwell.settings import Option
from deepwell.train.config import TrainConfig

GROUPS: dict[str, type[msgspec.Struct]] = {
    "serve": ServeOptions,
    "chat": ChatOptions,
    "generate": GenerateOptions,
    "models": ModelsOptions,
    "pull": PullOptions,
    "list": ListOptions,
    "rm": RmOptions,
    "train": TrainConfig,
    "convert": ConvertOptions,
    "calibrate": CalibrateOptions,
    "perplexity": PerplexityOptions,
    "keys": KeysOptions,
    "usage": UsageOptions,
    "bench": BenchOptions,
    "doctor": DoctorOptions,
    "completion": CompletionOptions,
}
"""In the order in which help and documentation list them. `deepwell.cli.<name>` runs a command."""


MODELS = "deepwell list --names 2>/dev/null"
"""What completion runs for the arguments that name a model."""


def names_model(option: Option) -> bool:
    """Whether an option takes what `deepwell list --names` prints, beside paths."""
    return option.argument and option.name in ("model", "source")
