"""Every parameter of a model, once: its key in the decoder, its shape, and the checkpoint tensors it is made of.

This one list drives initialising, loading, exporting, checking and counting.
Shapes: V vocabulary, D hidden, H heads, E routed experts, F feed-forward width, C latent width.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Literal

import msgspec

from deepwell.errors import ConfigError
from deepwell.model.config import IndexConfig, MlaConfig, ModelConfig, MoeConfig

Kind = Literal["embedding", "matrix", "experts", "kv_b", "router", "vector"]


class Param(msgspec.Struct, frozen=True):
    """One parameter. Its `sources` lie one after the other along the rows and share them equally.

    kinds: embedding (V, D), read by row; matrix (out, in); experts (E, out, in); kv_b (heads·(nope+value), C) of MLA;
    router (E, D) and the head weights of an indexer, never quantised; vector (n,), never quantised. `active` is the
    share of the parameter that one token uses.
    """

    key: str
    shape: tuple[int, ...]
    kind: Kind
    sources: tuple[str, ...]
    active: float = 1.0

    @property
    def size(self) -> int:
        return prod(self.shape)


def param_specs(config: ModelConfig, *, mtp: bool = False) -> list[Param]:
    """All parameters in the order a token meets them; with `mtp`, those of the multi-token prediction modules too."""
    return stage_specs(config, 0, config.layers, mtp=mtp)


def stage_specs(config: ModelConfig, first: int, last: int, *, mtp: bool = False) -> list[Param]:
    """The parameters that the layers [first, last) need: the embedding with the first, norm and head with the last.

    The last stage has the prediction modules, and the embedding too if the head is tied to it or a module embeds.
    ConfigError if these are no layers of the model.
    """
    return list(_stage(config, first, last, mtp))


@lru_cache(maxsize=2)
def _stage(config: ModelConfig, first: int, last: int, mtp: bool) -> tuple[Param, ...]:
    """With and without modules: whoever counts a model asks for both again and again."""
    if not 0 <= first < last <= config.layers:
        raise ConfigError(f"layers {first} to {last - 1} are no stage of a model with layers 0 to {config.layers - 1}")
    embed = Param("embed", (config.vocab, config.hidden), "embedding", ("model.embed_tokens.weight",))
    ends, modules = last == config.layers, config.mtp_layers if mtp else 0
    specs = [embed] if first == 0 or (ends and (config.tied or modules)) else []
    for layer in range(first, last):
        specs += _layer(config, f"layers.{layer}", f"model.layers.{layer}", config.is_moe(layer))
    return (*specs, *_ending(config, modules)) if ends else tuple(specs)


def _ending(config: ModelConfig, modules: int) -> Iterator[Param]:
    yield _vector("norm", config.hidden, "model.norm.weight")
    if not config.tied:
        yield Param("head", (config.vocab, config.hidden), "matrix", ("lm_head.weight",))
    for depth in range(modules):
        yield from _mtp(config, f"mtp.{depth}", f"model.layers.{config.layers + depth}")


def _layer(config: ModelConfig, key: str, source: str, is_moe: bool) -> Iterator[Param]:
    yield _vector(f"{key}.attn_norm", config.hidden, f"{source}.input_layernorm.weight")
    attention = (
        _gqa(config, f"{key}.attn", f"{source}.self_attn")
        if config.mla is None
        else _mla(config, config.mla, f"{key}.attn", f"{source}.self_attn")
    )
    yield from attention
    yield _vector(f"{key}.ffn_norm", config.hidden, f"{source}.post_attention_layernorm.weight")
    if is_moe and config.moe is not None:
        yield from _moe(config, config.moe, f"{key}.ffn", f"{source}.mlp")
    else:
        yield from _mlp(config, f"{key}.ffn", f"{source}.mlp", config.inter)


def _gqa(config: ModelConfig, key: str, source: str) -> Iterator[Param]:
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    for name, out, into in (("q", q, config.hidden), ("k", kv, config.hidden), ("v", kv, config.hidden)):
        yield Param(f"{key}.{name}", (out, into), "matrix", (f"{source}.{name}_proj.weight",))
        if config.attention_bias or config.qkv_bias:
            yield _vector(f"{key}.{name}_bias", out, f"{source}.{name}_proj.bias")
        if config.qk_norm and name != "v":
            yield _vector(f"{key}.{name}_norm", config.head_dim, f"{source}.{name}_norm.weight")
    yield from _linear(f"{key}.o", config.hidden, q, f"{source}.o_proj", config.attention_bias)


def _mla(config: ModelConfig, m: MlaConfig, key: str, source: str) -> Iterator[Param]:
    q = config.heads * (m.nope + m.rope)
    if m.q_lora is None:
        yield Param(f"{key}.q", (q, config.hidden), "matrix", (f"{source}.q_proj.weight",))
    else:
        yield from _linear(f"{key}.q_a", m.q_lora, config.hidden, f"{source}.q_a_proj", config.attention_bias)
        yield _vector(f"{key}.q_norm", m.q_lora, f"{source}.q_a_layernorm.weight")
        yield Param(f"{key}.q_b", (q, m.q_lora), "matrix", (f"{source}.q_b_proj.weight",))
    kv_a = m.kv_lora + m.rope
    yield from _linear(f"{key}.kv_a", kv_a, config.hidden, f"{source}.kv_a_proj_with_mqa", config.attention_bias)
    yield _vector(f"{key}.kv_norm", m.kv_lora, f"{source}.kv_a_layernorm.weight")
    yield Param(f"{key}.kv_b", (config.heads * (m.nope + m.value), m.kv_lora), "kv_b", (f"{source}.kv_b_proj.weight",))
    if config.index is not None and m.q_lora is not None:
        yield from _indexer(config.index, config.hidden, m.q_lora, f"{key}.indexer", f"{source}.indexer")
    yield from _linear(f"{key}.o", config.hidden, config.heads * m.value, f"{source}.o_proj", config.attention_bias)


def _indexer(index: IndexConfig, hidden: int, q_lora: int, key: str, source: str) -> Iterator[Param]:
    yield Param(f"{key}.q_b", (index.heads * index.head_dim, q_lora), "matrix", (f"{source}.wq_b.weight",))
    yield Param(f"{key}.k", (index.head_dim, hidden), "matrix", (f"{source}.wk.weight",))
    yield _vector(f"{key}.k_norm", index.head_dim, f"{source}.k_norm.weight")
    yield _vector(f"{key}.k_norm_bias", index.head_dim, f"{source}.k_norm.bias")
    yield Param(f"{key}.weights", (index.heads, hidden), "router", (f"{source}.weights_proj.weight",))


def _mlp(config: ModelConfig, key: str, source: str, inter: int) -> Iterator[Param]:
    gate_up = tuple(f"{source}.{name}_proj" for name in ("gate", "up"))
    yield Param(f"{key}.gate_up", (2 * inter, config.hidden), "matrix", tuple(f"{s}.weight" for s in gate_up))
    if config.mlp_bias:
        yield Param(f"{key}.gate_up_bias", (2 * inter,), "vector", tuple(f"{s}.bias" for s in gate_up))
    yield from _linear(f"{key}.down", config.hidden, inter, f"{source}.down_proj", config.mlp_bias)


def _moe(config: ModelConfig, moe: MoeConfig, key: str, source: str) -> Iterator[Param]:
    experts, hidden, inter = moe.routing.experts, config.hidden, moe.inter
    active = moe.routing.top_k / experts
    yield Param(f"{key}.router", (experts, hidden), "router", (f"{source}.gate.weight",))
    if moe.bias:
        yield _vector(f"{key}.router_bias", experts, f"{source}.gate.e_score_correction_bias")
    names = [f"{source}.experts.{e}" for e in range(experts)]
    gate_up = tuple(f"{n}.{part}_proj.weight" for n in names for part in ("gate", "up"))
    yield Param(f"{key}.experts.gate_up", (experts, 2 * inter, hidden), "experts", gate_up, active)
    down = tuple(f"{n}.down_proj.weight" for n in names)
    yield Param(f"{key}.experts.down", (experts, hidden, inter), "experts", down, active)
    if moe.shared:
        yield from _mlp(config, f"{key}.shared", f"{source}.shared_experts", moe.shared * inter)


def _mtp(config: ModelConfig, key: str, source: str) -> Iterator[Param]:
    """Module k predicts token t+k+2 from the state at t and the embedding of token t+k+1 (DeepSeek-V3, section 2.2).

    Embedding and head are the main model's: checkpoints repeat them, and the copies are not read.
    """
    hidden = config.hidden
    yield _vector(f"{key}.embed_norm", hidden, f"{source}.enorm.weight")
    yield _vector(f"{key}.hidden_norm", hidden, f"{source}.hnorm.weight")
    yield Param(f"{key}.project", (hidden, 2 * hidden), "matrix", (f"{source}.eh_proj.weight",))
    yield from _layer(config, f"{key}.layer", source, config.moe is not None)
    yield _vector(f"{key}.norm", hidden, f"{source}.shared_head.norm.weight")


def _linear(key: str, out: int, into: int, source: str, bias: bool) -> Iterator[Param]:
    yield Param(key, (out, into), "matrix", (f"{source}.weight",))
    if bias:
        yield _vector(f"{key}_bias", out, f"{source}.bias")


def _vector(key: str, width: int, source: str) -> Param:
    return Param(key, (width,), "vector", (source,))
