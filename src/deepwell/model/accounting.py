"""What a model costs: parameters, operations and bytes, counted from its parameter list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from deepwell.model.config import ModelConfig
from deepwell.model.params import Param, param_specs
from deepwell.ops.base import GqaShape
from deepwell.ops.storages import BITS

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
    modules = param_specs(config, mtp=True)[len(specs) :]
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
        mtp_params=sum(p.size for p in modules),
        mtp_bytes=round(sum(p.size * _bits(p, dtype, kept) for p in modules) / 8),
        flops_per_token=round(2 * dot + _attention_flops(config, depth)),
        weight_bytes=round(sum(p.size * _bits(p, dtype, kept) for p in specs) / 8),
        weight_bytes_per_token=round(sum(_active(p, config) * _bits(p, dtype, kept) for p in specs) / 8),
        kv_bytes_per_token=width * kv_bytes,
        mha_kv_bytes_per_token=mha * kv_bytes,
    )


def activation_bytes(
    config: ModelConfig,
    dtype: str = "float32",
    *,
    rows: int,
    scored: int,
    mtp: bool = False,
    kept: Mapping[str, str] | None = None,
) -> int:
    """At most what a step of `rows` rows, `scored` of them with logits, takes beside weights and cache.

    The native plan reuses the place of results that nobody reads any more, so that the widest layer decides: what its
    attention holds at once, or its feed-forward, and the layer's input and output. With `mtp`, the states of the
    decoder and two plans of the module come on top, a step at most each.
    """
    specs = param_specs(config, mtp=mtp)
    quantised = {p.key: BITS[_stored(p, dtype, kept)] < 16 for p in specs}
    widest = 2 * _pad(config.hidden) + max(_attention_floats(config), _feed_forward_floats(specs, quantised, config))
    head = 2 * _pad(config.hidden) + 2 * _coded(config.hidden) + config.vocab
    plans = 1
    if mtp:
        widest, plans = widest + 4 * _pad(config.hidden), 3
    return 4 * plans * (rows * widest + scored * head)


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
    return BITS[_stored(param, dtype, kept)]


def _stored(param: Param, dtype: str, kept: Mapping[str, str] | None) -> str:
    if kept is not None and param.key in kept:
        return kept[param.key]
    return kept_as(param, dtype)


def kept_as(param: Param, dtype: str) -> str:
    """How a parameter is kept where most matrices are kept as `dtype`.

    Embedding and head stay at 8 bits beside int4: their errors reach every logit.
    """
    if param.kind not in _QUANTISED:
        return "float32"
    return "int8" if dtype == "int4" and param.key in ("embed", "head") else dtype


def _pad(width: int) -> int:
    """Floats of a row in the arena: whole cache lines."""
    return -(-width // 16) * 16


def _coded(width: int) -> int:
    """Floats that a row of `width` values takes in 8 bits (native/storage.h, CodedRow)."""
    groups = -(-width // 32)
    return _pad((groups * (32 + 4 + 4 + 8) + 63) // 4)


def _attention_floats(config: ModelConfig) -> int:
    """Of a row: the normed input with its codes, and what attention holds until its output."""
    shape, index = config.attention, config.index
    inputs = _pad(config.hidden) + _coded(config.hidden)
    if isinstance(shape, GqaShape):
        q, k = _pad(shape.heads * shape.head_dim), _pad(shape.kv_heads * shape.head_dim)
        # queries and keys before and after their rotation, values; the output takes the place of the first
        return max(inputs + 2 * (q + k) + k, 2 * q + _coded(q))
    q, latent = _pad(shape.heads * (shape.nope + shape.rope)), _pad(shape.latent + shape.rope)
    before = inputs + 2 * q + 3 * latent
    if config.mla is not None and config.mla.q_lora is not None:
        before += 2 * _pad(config.mla.q_lora) + _coded(config.mla.q_lora)
    absorbed = _pad(shape.heads * (shape.latent + shape.rope)) + _pad(shape.heads * shape.latent)
    codes = shape.heads * _coded(max(shape.nope, shape.latent))
    core = q + 2 * latent + absorbed + codes + 2 * _pad(shape.heads * shape.value)
    if index is not None:
        chosen = _pad(index.top_k)
        before += 2 * _pad(index.heads * index.head_dim) + 3 * _pad(index.head_dim) + _pad(index.heads) + chosen
        core += chosen
    return max(before, core)


def _feed_forward_floats(specs: Sequence[Param], quantised: Mapping[str, bool], config: ModelConfig) -> int:
    """Of a row: the normed input with its codes, and the widest layer's units, of every expert that the row uses."""
    inputs = _pad(config.hidden) + _coded(config.hidden)
    widest = 0
    for param in specs:
        if not param.key.endswith("gate_up"):
            continue
        width = param.shape[-2] // 2
        # gate and up side by side are multiplied as they are made
        side_by_side = quantised[param.key] and param.shape[-2] % 32 == 0
        each = _pad(width) + _coded(width) + (0 if side_by_side else _pad(2 * width))
        if param.kind == "experts" and config.moe is not None:
            moe = config.moe
            shared = moe.shared * (_pad(moe.inter) + _coded(moe.inter) + 2 * _pad(moe.inter))
            results = (moe.routing.top_k + 1) * _pad(config.hidden)
            each = moe.routing.top_k * each + shared + results + _pad(moe.routing.experts)
        widest = max(widest, each)
    return inputs + widest


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
