"""A run on disk: one safetensors file with weights, router biases, AdamW's moments and the state of the loop.

Everything in one file and one rename: a checkpoint is either the old one or the new one. Nothing in it is executable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deepwell.errors import CheckpointError
from deepwell.train.files import write_atomically

NAME = "checkpoint.safetensors"


class RunState(msgspec.Struct, frozen=True):
    """Where a run stands: steps done, what they cost, the identity of the inputs that it must go on with, and the
    records of steps that the log has not got yet."""

    step: int
    cpu_seconds: float
    wall_seconds: float
    config: dict[str, object]
    inputs: dict[str, str]
    unlogged: list[Any] = []


def save_run(folder: Path, weights: dict[str, Tensor], optimizer: torch.optim.AdamW, state: RunState) -> None:
    """Write the run into `folder`, replacing what was there."""
    tensors = {f"weight.{key}": tensor.detach() for key, tensor in weights.items()}
    for key, parameter in weights.items():
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value.detach()
    metadata = {"state": msgspec.json.encode(state).decode()}
    write_atomically(folder / NAME, save({k: t.contiguous() for k, t in tensors.items()}, metadata))


def load_state(folder: Path) -> RunState | None:
    """The state of the run in `folder`, None if there is none yet."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return msgspec.json.decode((file.metadata() or {})["state"], type=RunState)
    except (SafetensorError, KeyError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of a training run ({error})") from None


def load_run(folder: Path, weights: dict[str, Tensor], optimizer: torch.optim.AdamW) -> None:
    """Copy the run in `folder` into `weights` and `optimizer`, in place."""
    path = folder / NAME
    with safe_open(path, "pt") as file, torch.no_grad():
        names = set(file.keys())
        for key, parameter in weights.items():
            if f"weight.{key}" not in names:
                raise CheckpointError(f"{path}: weight {key} is missing")
            parameter.copy_(file.get_tensor(f"weight.{key}"))
            moments = {
                name: file.get_tensor(f"{name}.{key}")
                for name in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in names
            }
            if moments:
                optimizer.state[parameter] = moments
