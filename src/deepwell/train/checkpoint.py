"""A run on disk: one safetensors file with weights, router biases, AdamW's moments and the state of the loop.

Everything in one file and one rename: a checkpoint is either the old one or the new one. Nothing in it is executable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deepwell.errors import CheckpointError
from deepwell.files import write_whole

NAME = "checkpoint.safetensors"


class RunState(msgspec.Struct, frozen=True):
    """Where a run stands: steps done, what they cost, the identity of the inputs that it must go on with, and the
    records of steps that the log has not got yet. `sha256` is of all that and of the tensors; empty if not taken."""

    step: int
    cpu_seconds: float
    wall_seconds: float
    config: dict[str, object]
    inputs: dict[str, str]
    unlogged: list[Any] = []
    sha256: str = ""


def save_run(folder: Path, weights: dict[str, Tensor], optimizer: torch.optim.AdamW, state: RunState) -> None:
    """Write the run into `folder`, replacing what was there."""
    tensors = {f"weight.{key}": tensor.detach() for key, tensor in weights.items()}
    for key, parameter in weights.items():
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value.detach()
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    signed = msgspec.structs.replace(state, sha256=_digest(state, tensors))
    write_whole(folder / NAME, save(tensors, {"state": msgspec.json.encode(signed).decode()}))


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
    """Copy the run in `folder` into `weights` and `optimizer`, in place. CheckpointError if a byte of it changed."""
    path = folder / NAME
    with safe_open(path, "pt") as file, torch.no_grad():
        names = set(file.keys())
        state = load_state(folder)
        if state and state.sha256 not in ("", _digest(state, {name: file.get_tensor(name) for name in names})):
            raise CheckpointError(f"{path}: is damaged: its digest differs; put back a copy, or choose another folder")
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


def _digest(state: RunState, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the state and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(state, sha256="")))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
