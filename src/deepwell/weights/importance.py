"""How strongly each input column of each matrix is used: what `deepwell calibrate` writes and quantising reads.

A safetensors file with one float32 tensor per quantised parameter, named by the parameter's key (model/params.py):
mean squares of its input columns. Shapes: (K,) for a matrix of K inputs; (E, K) for experts, one row each; kv_b has
(C,) under its key for the value half and (heads, nope) under `<key>.query` for the key half, whose inputs are queries.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.model.config import ModelConfig
from deepwell.model.params import param_specs
from deepwell.weights.safetensors import read

QUERY = ".query"


def importance_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that an importance file of this model holds. A tied embedding counts as the head it also is."""
    shapes: dict[str, tuple[int, ...]] = {}
    for param in param_specs(config):
        if param.kind == "matrix" or (param.kind == "embedding" and config.tied):
            shapes[param.key] = param.shape[-1:]
        elif param.kind == "experts":
            shapes[param.key] = (param.shape[0], param.shape[2])
        elif param.kind == "kv_b" and config.mla is not None:
            shapes[param.key] = param.shape[-1:]
            shapes[param.key + QUERY] = (config.heads, config.mla.nope)
    return shapes


def read_importance(file: Path, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """The importances of a model's matrices. CheckpointError if the file is broken or of another model."""
    wanted, tensors = importance_shapes(config), read(file)
    _check_names(file, wanted.keys() - tensors.keys(), "has no")
    _check_names(file, tensors.keys() - wanted.keys(), "has an unknown")
    importance = {}
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or tensor.dtype != "F32":
            raise CheckpointError(
                f"{file}: tensor {name} is {tensor.dtype} of shape {tensor.shape}; "
                f"this model needs F32 of shape {wanted[name]}"
            )
        importance[name] = tensor.float32()
        if (importance[name] < 0).any():
            raise CheckpointError(f"{file}: tensor {name} holds mean squares below 0")
    return importance


def _check_names(file: Path, names: Set[str], what: str) -> None:
    if names:
        raise CheckpointError(f"{file}: {what} tensor {min(names)}: it was made for another model")
