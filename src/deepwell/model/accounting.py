"""What a model costs: parameters, operations and bytes, counted from its parameter list."""

from __future__ import annotations

import msgspec

from deepwell.model.config import ModelConfig
from deepwell.model.params import Param, param_specs
from deepwell.ops.base import GqaShape

_BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.0 + 1.0, "int4": 4.0 + 1.0}
"""Bits per weight as stored; 8 and 4 bits carry a float32 scale per group of 32."""
_QUANTISED = ("matrix", "experts", "kv_b", "embedding")


class Accounting(msgspec.Struct, frozen=True):
    """Parameters are counts, bytes are bytes, FLOPs count a multiply-add as two.

    `active_params` are those one token uses, embedding rows it does not read excluded. `flops_per_token` is the
    forward pass of one token at `depth` earlier tokens. `weight_bytes` are without the `mtp_bytes` of the prediction
    modules. `weight_bytes_per_token` is what decoding one stream reads.
    `kv_bytes_per_token` is what a token adds to the cache; `mha_kv_bytes_per_token` what plain multi-head attention
    of the same heads would add.
    """

    total_params: int
    active_params: int
    mtp_params: int
    mtp_bytes: int
    flops_per_token: int
    weight_bytes: int
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    mha_kv_bytes_per_token: int


def account(config: ModelConfig, dtype: str = "float32", *, depth: int = 0, kv_bytes: int = 4) -> Accounting:
    """Count `config` with weights stored as `dtype` and cache values of `kv_bytes` bytes."""
    specs = param_specs(config)
    total = sum(p.size for p in specs)
    further = param_specs(config, mtp=True)[len(specs) :]
    active = sum(_active(p, config) for p in specs)
    dot = sum(_active(p, config) for p in specs if p.kind not in ("vector", "embedding"))
    if config.tied:
        dot += config.vocab * config.hidden
    width = config.cache_width * config.layers
    mha = 2 * config.heads * config.head_dim * config.layers
    return Accounting(
        total_params=total,
        active_params=round(active),
        mtp_params=sum(p.size for p in further),
        mtp_bytes=round(sum(p.size * _bits(p, dtype) for p in further) / 8),
        flops_per_token=round(2 * dot + _attention_flops(config, depth)),
        weight_bytes=round(sum(p.size * _bits(p, dtype) for p in specs) / 8),
        weight_bytes_per_token=round(sum(_active(p, config) * _bits(p, dtype) for p in specs) / 8),
        kv_bytes_per_token=width * kv_bytes,
        mha_kv_bytes_per_token=mha * kv_bytes,
    )


def _active(param: Param, config: ModelConfig) -> float:
    """Parameters of `param` that one token uses; a tied embedding is used whole, as the head."""
    if param.kind == "embedding":
        return param.size if config.tied else config.hidden
    return param.size * param.active


def _bits(param: Param, dtype: str) -> float:
    return _BITS[dtype] if param.kind in _QUANTISED else 32.0


def _attention_flops(config: ModelConfig, depth: int) -> float:
    """Scores and weighted sums over `depth` + 1 tokens, in the form the cache is kept in (MLA: absorbed)."""
    shape = config.attention
    if isinstance(shape, GqaShape):
        per_position = 2 * shape.heads * 2 * shape.head_dim
    else:
        per_position = 2 * shape.heads * (2 * shape.latent + shape.rope)
    return float(config.layers * (depth + 1) * per_position)
