"""What serving a model takes in memory, and whether it is there: asked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import msgspec

from deepwell.errors import ConfigError
from deepwell.model.accounting import account, activation_bytes
from deepwell.model.config import ModelConfig
from deepwell.model.params import param_specs
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.ops.storages import BITS
from deepwell.options import Dtype
from deepwell.weights.chunks import CHUNK_VALUES

ROWS, STREAMS = 512, 64
"""Rows of a step and sequences served together, by the engine's defaults."""
SCORED = STREAMS + BLOCK_TOKENS
"""Rows of a step whose logits are wanted: one for each sequence, and 64 scored or drafted ones."""
_SMALLER = [dtype for dtype in get_args(Dtype) if BITS.get(dtype, 32) < 32]
"""What may be asked for to save memory."""
_LEAST_CONTEXT = 512
"""Tokens that the cache must at least have room for, unless the model or the user wants fewer."""
_READING_BYTES_PER_VALUE = 5
"""A piece of a tensor being read stands in memory as float32, beside a mask of what is finite."""
_PARALLEL_CONTEXTS = 16
"""Without a limit given, the cache holds this many sequences of full length, memory allowing."""
_MEMORY_SHARE = 0.4
"""Share of the free memory that the cache may take when nothing else is said."""


def block_bytes_of(config: ModelConfig, kv_bytes: int = 4, *, mtp: bool = False) -> int:
    """Bytes of a KV block: 64 tokens of every layer, in values of `kv_bytes` bytes; rows of 2-byte ones are padded."""
    widths = config.cache_widths(int(mtp))
    width = sum(w if kv_bytes > 2 else -(-w // 32) * 32 for w in widths)
    return BLOCK_TOKENS * width * kv_bytes


def default_blocks(config: ModelConfig, context: int, free_bytes: int, kv_bytes: int = 4, *, mtp: bool = False) -> int:
    """KV blocks for several full-length sequences, or for as much of the free memory as the cache may take."""
    block_bytes = block_bytes_of(config, kv_bytes, mtp=mtp)
    wanted = _PARALLEL_CONTEXTS * -(-context // BLOCK_TOKENS)
    affordable = int(free_bytes * _MEMORY_SHARE) // block_bytes
    if affordable < 1:
        raise ConfigError(f"a KV block takes {block_bytes} bytes, and only {free_bytes} bytes of memory are free")
    return min(wanted, affordable)


class Need(msgspec.Struct, frozen=True):
    """Bytes that serving a model takes at least: its weights, a KV cache of `tokens`, and the larger of what reading
    tensors by pieces and what computing a step takes, for one ends before the other begins."""

    weights: int
    cache: int
    reading: int
    activations: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + max(self.reading, self.activations)


def memory_need(
    config: ModelConfig,
    dtype: str,
    *,
    context: int = 0,
    blocks: int = 0,
    kv_bytes: int = 4,
    mtp: bool = False,
    kept: Mapping[str, str] | None = None,
    rows: int = ROWS,
    scored: int = SCORED,
) -> Need:
    """What weights kept as `dtype` and a cache of `blocks` blocks need; 0 blocks ask for a sequence of 512 tokens.

    `kept` says it parameter by parameter, where a file does. Its blocks are packed without a copy in between. A step
    computes `rows` rows at most, and the logits of `scored` of them.
    """
    blocks = blocks or -(-min(context or config.context, _LEAST_CONTEXT) // BLOCK_TOKENS)
    params = account(config, dtype, kept=kept)
    largest = min(max(p.size // len(p.sources) for p in param_specs(config)), CHUNK_VALUES)
    return Need(
        params.weight_bytes + (params.mtp_bytes if mtp else 0),
        blocks * block_bytes_of(config, kv_bytes, mtp=mtp),
        0 if kept else largest * _READING_BYTES_PER_VALUE,
        activation_bytes(config, dtype, rows=rows, scored=min(scored, rows), mtp=mtp, kept=kept),
        blocks * BLOCK_TOKENS,
    )


def check_memory(
    config: ModelConfig,
    dtype: str,
    free_bytes: int,
    *,
    context: int = 0,
    blocks: int = 0,
    kv_bytes: int = 4,
    mtp: bool = False,
    kept: Mapping[str, str] | None = None,
    rows: int = ROWS,
    scored: int = SCORED,
    within: str = "",
) -> None:
    """Refuse what does not fit into the free memory, before the machine begins to swap.

    ConfigError says what is needed, for what, and the same for every smaller format. `within` names the
    limit that leaves no more, where it is not the machine.
    """

    def need_of(as_dtype: str, stored: Mapping[str, str] | None = None) -> Need:
        return memory_need(
            config,
            as_dtype,
            context=context,
            blocks=blocks,
            kv_bytes=kv_bytes,
            mtp=mtp,
            kept=stored,
            rows=rows,
            scored=scored,
        )

    need = need_of(dtype, kept)
    if need.total <= free_bytes:
        return
    totals = {kept: need_of(kept).total for kept in _SMALLER}
    smaller = {kept: total for kept, total in totals.items() if total < need.total}
    fits = [kept for kept, total in smaller.items() if total <= free_bytes]
    others = ", ".join(f"as {kept} {_gb(total)}{' (fits)' * (kept in fits)}" for kept, total in smaller.items())
    raise ConfigError(
        f"not enough memory: the model needs {_gb(need.total)} as {dtype} ({_gb(need.weights)} of weights, "
        f"{_gb(need.cache)} of KV cache for {need.tokens} tokens, {_gb(max(need.reading, need.activations))} to read "
        f"tensors and to compute {rows} tokens at a time), and {_gb(free_bytes)} are free"
        f"{within and f' within {within}'}; "
        + (f"it would need {others}: " if others else "")
        + (f"use --dtype {fits[0]}" if fits else "no format that Deepwell keeps weights in would fit")
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
