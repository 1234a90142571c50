"""What a model costs in every precision, and how it would run on this machine: asked before there are any weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import msgspec

from deepwell.errors import ConfigError
from deepwell.loading.memory import block_bytes_of, default_blocks, memory_need
from deepwell.loading.pack import gguf_storages, is_quantised
from deepwell.loading.runner import cache_dtype_for
from deepwell.model.accounting import account, file_bytes
from deepwell.model.config import ModelConfig
from deepwell.model.params import param_specs
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.options import Dtype

PRECISIONS = ("float32", "bfloat16", "int8", "q6_k", "q4_k", "int4")
"""Storages worth comparing; int8 has the size of a GGUF file's Q8_0, int4 that of Q4_0."""
_DEPTHS = (4096, 32768, 131072)


class Fit(msgspec.Struct, frozen=True):
    """One precision here. Sizes are bytes, as the native backend keeps them.

    `need_bytes` is the least that loading takes: weights, a small cache, reading the largest tensor. `context` is the
    longest sequence that the loader would then allow by itself, `cache_tokens` what its cache would hold of all
    sequences together; both are 0 where the model does not fit.
    """

    precision: str
    weight_bytes: int
    cache_dtype: str
    kv_bytes_per_token: int
    need_bytes: int
    fits: bool
    context: int
    cache_tokens: int


class ModelReport(msgspec.Struct, frozen=True):
    """What a model is made of and costs. FLOPs count a multiply-add as two, by the number of earlier tokens.

    `active_params` are those that one token uses. `kv_bytes_per_token` and what plain multi-head attention of the same
    heads would keep are for 2-byte values; `kv_share` is their quotient. `published_as` and `published_bytes` say how
    the released files hold it, if it is a released model. `unchecked` are config keys that were not compared with the
    released file.
    """

    name: str
    family: str
    total_params: int
    active_params: int
    mtp_params: int
    context: int
    kv_bytes_per_token: int
    mha_kv_bytes_per_token: int
    kv_share: float
    flops_per_token: dict[str, int]
    free_bytes: int
    precisions: list[Fit]
    published_as: str | None = None
    published_bytes: int | None = None
    unchecked: tuple[str, ...] = ()


def report(
    name: str,
    config: ModelConfig,
    free_bytes: int,
    *,
    kept: tuple[str, Mapping[str, str]] | None = None,
    published_as: str | None = None,
    unchecked: tuple[str, ...] = (),
) -> ModelReport:
    """All figures of a model on a machine with `free_bytes` of memory left.

    `kept` is the label and the storage of each parameter of a file that is kept as it is: it comes first then, and
    stands for all weights in that storage too.
    """
    counts = account(config, "bfloat16", kv_bytes=2)
    depths = [0, *(d for d in _DEPTHS if d < config.context), config.context - 1]
    fits = [fit(config, precision, free_bytes) for precision in PRECISIONS if kept is None or precision != kept[0]]
    return ModelReport(
        name=name,
        family=config.family,
        total_params=counts.total_params,
        active_params=counts.active_params,
        mtp_params=counts.mtp_params,
        context=config.context,
        kv_bytes_per_token=counts.kv_bytes_per_token,
        mha_kv_bytes_per_token=counts.mha_kv_bytes_per_token,
        kv_share=counts.kv_bytes_per_token / counts.mha_kv_bytes_per_token,
        flops_per_token={str(d): account(config, "bfloat16", depth=d).flops_per_token for d in dict.fromkeys(depths)},
        free_bytes=free_bytes,
        precisions=[fit(config, kept[0], free_bytes, kept[1]), *fits] if kept else fits,
        published_as=published_as,
        published_bytes=file_bytes(config, published_as) if published_as else None,
        unchecked=unchecked,
    )


def fit(config: ModelConfig, precision: str, free_bytes: int, kept: Mapping[str, str] | None = None) -> Fit:
    """How a model kept as `precision` would be loaded with `free_bytes` of memory, by the loader's own rules.

    What only GGUF files hold has rows of another type where they are no whole blocks, as `deepwell convert` writes it.
    """
    specs = param_specs(config)
    if kept is None and precision not in get_args(Dtype):
        kept = gguf_storages(config, precision)
    cache = cache_dtype_for(config, "auto", is_quantised(specs, kept or {p.key: precision for p in specs}))
    kv_bytes = 2 if cache == "bfloat16" else 4
    need = memory_need(config, precision, kv_bytes=kv_bytes, kept=kept)
    tokens = 0
    if need.total <= free_bytes:
        try:
            left = free_bytes - need.weights - need.activations
            tokens = default_blocks(config, config.context, left, kv_bytes) * BLOCK_TOKENS
        except ConfigError:  # a cache of one block does not fit
            tokens = 0
    return Fit(
        precision=precision,
        weight_bytes=need.weights,
        cache_dtype=cache,
        kv_bytes_per_token=block_bytes_of(config, kv_bytes) // BLOCK_TOKENS,
        need_bytes=need.total,
        fits=tokens > 0,
        context=min(config.context, tokens),
        cache_tokens=tokens,
    )
