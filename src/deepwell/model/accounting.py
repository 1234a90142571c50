"""What a model costs: parameters, operations and bytes, counted from its parameter list."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from deepwell.model.config import ModelConfig
from deepwell.model.params import Param, param_specs
from deepwell.ops.base import GqaShape

_BITS = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.5, "int4": 4.5, "q8_0": 8.5, "q4_0": 4.5,
    "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q2_k": 3.125, "q3_k": 3.625, "q4_k": 4.625, "q5_k": 5.625, "q6_k": 6.625,
    "iq4_nl": 4.5, "iq4_xs": 4.375, "mxfp4": 4.5,
}  # fmt: skip
"""Bits per weight as the native backend keeps them, scales included (native/storage.h)."""
_QUANTISED = ("matrix", "experts", "kv_b", "embedding")


class Accounting(msgspec.Struct, frozen=True):
    """Parameters are counts, bytes are bytes, FLOPs count a multiply-add as two.

    `active_params` are those one token uses, embedding rows it does not read excluded. `flops_per_token` is the
    forward pass of one token at `depth` earlier tokens. `weight_bytes` are without the `mtp_bytes` of the prediction
    modules. `weight_bytes_per_token` is what decoding one stream reads.
    `kv_bytes_per_token` is what a token adds to the cache; `mha_kv_bytes_per_token` what plain multi-head attention
    would add, which keeps a key and a value of every one of the same heads.
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


def account(
    config: ModelConfig,
    dtype: str = "float32",
    *,
    depth: int = 0,
    kv_bytes: int = 4,
    kept: Mapping[str, str] | None = None,
) -> Accounting:
    """Count `config` with weights stored as `dtype` and cache values of `kv_bytes` bytes.

    `kept` gives the storage of each parameter by key where they differ.
    """
    specs = param_specs(config)
    total = sum(p.size for p in specs)
    further = param_specs(config, mtp=True)[len(specs) :]
    active = sum(_active(p, config) for p in specs)
    dot = sum(_active(p, config) for p in specs if p.kind not in ("vector", "embedding"))
    if config.tied:
        dot += config.vocab * config.hidden
    width = sum(config.cache_widths())
    values = config.mla.value if config.mla else config.head_dim
    mha = config.heads * (config.head_dim + values) * config.layers
    return Accounting(
        total_params=total,
        active_params=round(active),
        mtp_params=sum(p.size for p in further),
        mtp_bytes=round(sum(p.size * _bits(p, dtype, kept) for p in further) / 8),
        flops_per_token=round(2 * dot + _attention_flops(config, depth)),
        weight_bytes=round(sum(p.size * _bits(p, dtype, kept) for p in specs) / 8),
        weight_bytes_per_token=round(sum(_active(p, config) * _bits(p, dtype, kept) for p in specs) / 8),
        kv_bytes_per_token=width * kv_bytes,
        mha_kv_bytes_per_token=mha * kv_bytes,
    )


def file_bytes(config: ModelConfig, stored: str) -> int:
    """What a checkpoint's weights take on disk, prediction modules included, kept as float32, bfloat16 or float8.

    float8 is DeepSeek's: blocks of 128 x 128 share a float32; embedding, head, norms and routers are bfloat16. The
    copies of embedding and head that prediction modules carry are counted too.
    """
    specs = param_specs(config, mtp=True)
    copies = 2 * config.mtp_layers * config.vocab * config.hidden
    bits = {"float32": 32, "bfloat16": 16, "float16": 16, "float8": 16}[stored]
    total = (sum(p.size for p in specs) + copies) * bits
    if stored == "float8":
        blocks = sum(p.size for p in specs if p.kind in ("matrix", "experts", "kv_b") and p.key != "head")
        total += round(blocks * (8 + 32 / 128**2 - bits))
    return total // 8


def _active(param: Param, config: ModelConfig) -> float:
    """Parameters of `param` that one token uses; a tied embedding is used whole, as the head."""
    if param.kind == "embedding":
        return param.size if config.tied else config.hidden
    return param.size * param.active


def _bits(param: Param, dtype: str, kept: Mapping[str, str] | None) -> float:
    if kept is not None and param.key in kept:
        return _BITS[kept[param.key]]
    return _BITS[dtype] if param.kind in _QUANTISED else 32.0


def _attention_flops(config: ModelConfig, depth: int) -> float:
    """Scores and weighted sums over `depth` + 1 tokens, in the form the cache is kept in (MLA: absorbed).

    An indexer scores them all, once they are more than it chooses, and attention looks at its choice.
    """
    shape, index, indexed = config.attention, config.index, 0
    if index is not None and depth >= index.top_k:
        indexed, depth = (depth + 1) * 2 * index.heads * (index.head_dim + 1), index.top_k - 1
    if isinstance(shape, GqaShape):
        per_position = 2 * shape.heads * 2 * shape.head_dim
    else:
        per_position = 2 * shape.heads * (2 * shape.latent + shape.rope)
    return float(config.layers * ((depth + 1) * per_position + indexed))
