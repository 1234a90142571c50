"""`deepwell pull ORG/NAME`: fetch a model from a hub, or what is newer of it, and print where it lies."""

from __future__ import annotations

from pathlib import Path

from deepwell.cli.hub import located
from deepwell.errors import ConfigError
from deepwell.options import PullOptions


def run(options: PullOptions) -> int:
    model = Path(options.model)
    if model.exists():
        raise ConfigError(f"{model} is on this machine already; pull takes a short name, or ORG/NAME of a hub")
    place = located(model, renew=True)
    if place == model:
        raise ConfigError(f"{model} is no name of a model on a hub: ORG/NAME, ORG/NAME@REVISION or ORG/NAME:FILE")
    print(place)
    return 0
