"""Writing a model folder that plain transformers loads: official tensor names, bfloat16 values, config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from deepwell.model.config import ModelConfig
from deepwell.model.config_json import config_json
from deepwell.model.params import param_specs


def export(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    bos: int,
    eos: int,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write model.safetensors, config.json and generation_config.json; `weights` are by key, mtp included.

    Matrices are stored as `dtype`, vectors (norms, router bias) in float32. config.json asks readers to compute in
    float32, so that two engines agree to the token. An MTP module's copies of embedding and head are left out: they
    are the model's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for param in param_specs(config, mtp=True):
        kept = torch.float32 if param.kind == "vector" else dtype
        rows = weights[param.key].detach().to(kept).reshape(-1, *param.shape[-1:] if len(param.shape) > 1 else ())
        for source, piece in zip(param.sources, rows.chunk(len(param.sources)), strict=True):
            tensors[source] = piece.clone().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config_json(config, bos=bos, eos=eos, dtype="float32"))
    _write(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
