"""How strongly each input column of each matrix is used: what `deepwell calibrate` writes and quantising reads.

A safetensors file with one float32 tensor per quantised parameter, named by the parameter's key (model/params.py):
mean squares of its input columns. Shapes: (K,) for a matrix of K inputs; (E, K) for experts, one row each; kv_b has
(C,) under its key for the value half and (heads, nope) under `<key>.query` for the key half, whose inputs are queries.
A file of llama-imatrix (gguf/imatrix.py) is read as well.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import CheckpointError
from deepwell.model.config import ModelConfig
from deepwell.model.params import param_specs
from deepwell.weights.gguf.imatrix import read_imatrix
from deepwell.weights.gguf.names import gguf_name
from deepwell.weights.gguf.reader import is_gguf
from deepwell.weights.safetensors import read

F32 = NDArray[np.float32]
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


def gguf_tensors(config: ModelConfig) -> dict[str, str]:
    """The tensors of a GGUF file that importances weigh, and the key of each one's importances."""
    found: dict[str, str] = {}
    shapes = importance_shapes(config)
    for param in param_specs(config):
        if param.key not in shapes:
            continue
        if param.kind == "kv_b":
            whole = gguf_name(param.sources[0])[0]
            found[whole.replace("kv_b", "k_b")] = param.key + QUERY
            found[whole.replace("kv_b", "v_b")] = param.key
        else:
            found |= {gguf_name(source)[0]: param.key for source in param.sources}
    return found


def read_importance(file: Path, config: ModelConfig) -> dict[str, F32]:
    """The importances of a model's matrices. CheckpointError if the file is broken or of another model."""
    if is_gguf(file):
        return _of_imatrix(file, config)
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


def _of_imatrix(file: Path, config: ModelConfig) -> dict[str, F32]:
    """Those of a file of llama-imatrix, which leaves out the head unless asked, and kv_b where it is not split."""
    wanted, measured, importance = importance_shapes(config), read_imatrix(file), {}
    names = gguf_tensors(config)
    may_lack = {"head", "embed"} | {key for key in wanted if key + QUERY in wanted or key.endswith(QUERY)}
    _check_names(file, {name for name, key in names.items() if key not in may_lack} - measured.keys(), "has no")
    for name, key in names.items():
        if name not in measured:
            continue
        values = measured[name].mean(0) if len(wanted[key]) == 1 else measured[name]
        if values.shape != wanted[key]:
            raise CheckpointError(
                f"{file}: tensor {name} has importances of shape {values.shape}; this model needs {wanted[key]}"
            )
        importance[key] = values
    return importance


def column_weights(importance_K: F32, cols: int) -> F32:
    """Importances to a mean of 1, so that sums stay within float32; a column never used still counts a little.

    CheckpointError for importances that are no numbers from 0 on, or of another width.
    """
    if importance_K.shape != (cols,) or not np.isfinite(importance_K).all() or (importance_K < 0).any():
        raise CheckpointError(f"importances must be {cols} finite numbers of at least 0, one per input column")
    mean = float(importance_K.mean(dtype=np.float64)) or 1.0
    weight_K: F32 = importance_K / np.float32(mean) + np.float32(1e-3)
    return np.ascontiguousarray(weight_K)


def _check_names(file: Path, names: Set[str], what: str) -> None:
    if names:
        raise CheckpointError(f"{file}: {what} tensor {min(names)}: it was made for another model")
