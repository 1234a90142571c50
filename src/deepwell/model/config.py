"""What a model is: its shape, read from a Hugging Face config.json.

Families: `llama` (DeepSeek LLM, Coder), `qwen2` and `qwen3` (distilled models), `deepseek` (MoE-16B), `deepseek_v2`,
`deepseek_v3`, `deepseek_v32`. A family is a set of values of `ModelConfig`, not code of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from deepwell.errors import ConfigError
from deepwell.model.rope import RopeConfig, yarn_score_factor
from deepwell.ops.base import GqaShape, IndexShape, MlaShape, Rotation, Routing

FAMILIES = ("llama", "qwen2", "qwen3", "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32")
_WITH_MLA = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
_LIKE_V3 = ("deepseek_v3", "deepseek_v32")
_LATER = re.compile(r"deepseek_?v4", re.IGNORECASE)


WIDEST_INDEX, MOST_CHOSEN = 1024, 1 << 20
"""Columns of an indexer's head, and positions it chooses, at most: what the kernels have room for."""


class MlaConfig(msgspec.Struct, frozen=True):
    """Widths of multi-head latent attention. `q_lora` None projects queries directly."""

    q_lora: int | None
    kv_lora: int
    nope: int
    rope: int
    value: int


class IndexConfig(msgspec.Struct, frozen=True):
    """The lightning indexer of sparse latent attention: `heads` of `head_dim` columns choose `top_k` positions."""

    heads: int
    head_dim: int
    top_k: int


class MoeConfig(msgspec.Struct, frozen=True):
    """Fine-grained experts of width `inter`; `shared` experts, fused into one, see every token."""

    routing: Routing
    inter: int
    shared: int
    first_dense: int
    bias: bool


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder: attention is GQA unless `mla` is set; layers from `moe.first_dense` on are MoE if `moe` is set.

    `attention_bias` adds biases to all projections of attention, `qkv_bias` to those of GQA's q, k and v alone;
    `qk_norm` norms each head of q and k. `interleaved` is the rotation layout of GQA; MLA always interleaves. With
    `index`, every layer's latent attention looks at the positions that its indexer chooses.
    """

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    eps: float
    rope: RopeConfig
    context: int
    mla: MlaConfig | None = None
    moe: MoeConfig | None = None
    mtp_layers: int = 0
    tied: bool = False
    attention_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False
    interleaved: bool = False
    index: IndexConfig | None = None

    def is_moe(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.first_dense

    @property
    def attention(self) -> GqaShape | MlaShape:
        """The attention shape the kernels want, with the score scale (YaRN's factor included)."""
        if self.mla is None:
            return GqaShape(self.heads, self.kv_heads, self.head_dim, self.head_dim**-0.5)
        m = self.mla
        scale = (m.nope + m.rope) ** -0.5 * yarn_score_factor(self.rope)
        return MlaShape(self.heads, m.nope, m.rope, m.value, m.kv_lora, scale)

    @property
    def rotation(self) -> Rotation:
        width = self.mla.rope if self.mla else self.head_dim
        return self.rope.rotation(width, "interleaved" if self.mla or self.interleaved else "half")

    @property
    def index_shape(self) -> IndexShape | None:
        """The indexer as the kernels want it. Its scale changes no order, and is the published code's."""
        if (i := self.index) is None:
            return None
        return IndexShape(i.heads, i.head_dim, min(i.top_k, self.context), (i.heads * i.head_dim) ** -0.5)

    @property
    def index_rotation(self) -> Rotation | None:
        """Unlike MLA's: the first columns of a head, in halves."""
        if self.index is None or self.mla is None:
            return None
        return msgspec.structs.replace(self.rope.rotation(self.mla.rope, "half"), leading=True)

    def cache_layer(self, layer: int) -> int:
        """The cache's layer that a decoder's layer keeps its attention in; an indexer's keys are in the one behind."""
        return layer if self.index is None else 2 * layer

    def cache_widths(self, modules: int = 0, layers: int | None = None) -> list[int]:
        """Values kept per token in each of the cache's layers, with those of so many prediction modules.

        `layers` are the decoder's that the cache is for, all if None.
        """
        each = [self.cache_width] if self.index is None else [self.cache_width, self.index.head_dim]
        return each * ((self.layers if layers is None else layers) + modules)

    @property
    def cache_width(self) -> int:
        """Values kept per token and layer: latent and shared rope key for MLA, keys and values for GQA."""
        if self.mla is not None:
            return self.mla.kv_lora + self.mla.rope
        return 2 * self.kv_heads * self.head_dim


def from_hugging_face(raw: Mapping[str, Any]) -> ModelConfig:
    """The shape that a parsed config.json describes. ConfigError names a key that is missing, odd or unsupported."""
    keys = _Keys(raw)
    family = keys.text("model_type")
    if _LATER.search(f"{family} {raw.get('architectures')}"):
        raise ConfigError(
            f"config.json: model_type {family!r} is DeepSeek-V4 or later: Deepwell knows its prompt format, but cannot "
            f"run its weights yet; supported are {', '.join(FAMILIES)}"
        )
    if family not in FAMILIES:
        raise ConfigError(f"config.json: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
    if (act := raw.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f"config.json: hidden_act {act!r} is not supported; supported is 'silu'")
    if keys.flag("use_sliding_window", False):
        raise ConfigError("config.json: use_sliding_window is true; supported is attention to the whole sequence")
    hidden, heads, context = keys.count("hidden_size"), keys.count("num_attention_heads"), _context(keys)
    mla = _mla(keys) if family in _WITH_MLA else None
    usual = 128 if family == "qwen3" else max(hidden // heads, 1)
    head_dim = keys.count("head_dim", usual) if mla is None else mla.nope + mla.rope
    kv_heads = keys.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    layers = keys.count("num_hidden_layers")
    rope = RopeConfig.from_hugging_face(raw, context)
    config = ModelConfig(
        family=family,
        vocab=keys.count("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inter=keys.count("intermediate_size"),
        eps=keys.positive("rms_norm_eps", 1e-6),
        rope=rope,
        context=rope.stretched(context),
        mla=mla,
        moe=_moe(keys, family, layers) if family.startswith("deepseek") else None,
        mtp_layers=keys.count("num_nextn_predict_layers", 0, least=0) if family in _LIKE_V3 else 0,
        tied=keys.flag("tie_word_embeddings", False),
        attention_bias=keys.flag("attention_bias", False),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        mlp_bias=keys.flag("mlp_bias", False),
        index=_index(keys, mla) if family == "deepseek_v32" and mla is not None else None,
    )
    try:
        check_config(config)
    except ConfigError as e:
        raise ConfigError(f"config.json: {e}") from None
    return config


def check_config(config: ModelConfig) -> None:
    """What must hold wherever a config comes from, a packed file included. ConfigError says what is wrong."""
    sizes = [config.vocab, config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.inter]
    rest = [config.mtp_layers]
    if (m := config.mla) is not None:
        sizes += [m.kv_lora, m.nope, m.rope, m.value, *([] if m.q_lora is None else [m.q_lora])]
    if (moe := config.moe) is not None:
        r = moe.routing
        sizes += [moe.inter, r.experts, r.top_k, r.n_group, r.topk_group]
        rest += [moe.shared, moe.first_dense]
        _check_routing(r.experts, r.top_k, r.method, r.n_group, r.topk_group)
    if (i := config.index) is not None:
        sizes += [i.heads, i.head_dim, i.top_k]
        _check_index(i.head_dim, i.top_k, m)
    if config.family not in FAMILIES or min(sizes) < 1 or min(rest) < 0 or max(sizes + rest) > _LARGEST:
        raise ConfigError(f"the model's sizes must be within 1 to {_LARGEST}, and its family be known")
    experts = (config.layers + config.mtp_layers) * (moe.routing.experts if moe else 1)
    if experts > _MOST_EXPERTS or config.head_dim > _WIDEST or (m is not None and max(m.nope, m.rope) > _WIDEST):
        raise ConfigError(f"allowed are {_MOST_EXPERTS} layers and experts in all, and heads of {_WIDEST} columns")
    if config.heads % config.kv_heads or not 1 <= config.context <= _LARGEST or not 0 < config.eps < 1e9:
        raise ConfigError("heads must be a multiple of kv_heads, and context and eps be above 0")
    if (width := m.rope if m else config.head_dim) % 2:
        raise ConfigError(f"heads rotate {width} columns; allowed are even numbers (qk_rope_head_dim or head_dim)")
    try:
        with np.errstate(all="ignore"):  # what leaves the range of floats is found below
            shape, rotation = config.attention, config.rotation
    except (ArithmeticError, ValueError) as e:
        raise ConfigError(f"the rotation cannot be computed: {e}") from e
    if not all(map(math.isfinite, (shape.scale, rotation.magnitude, *rotation.inv_freq))):
        raise ConfigError("the attention's scale or its rotation's frequencies are not finite numbers")


def _context(keys: _Keys) -> int:
    return keys.count("max_position_embeddings", 2048)


def _mla(keys: _Keys) -> MlaConfig:
    q_lora = keys.raw.get("q_lora_rank")
    return MlaConfig(
        q_lora=None if q_lora is None else keys.count("q_lora_rank"),
        kv_lora=keys.count("kv_lora_rank"),
        nope=keys.count("qk_nope_head_dim"),
        rope=keys.count("qk_rope_head_dim"),
        value=keys.count("v_head_dim"),
    )


def _index(keys: _Keys, mla: MlaConfig) -> IndexConfig:
    index = IndexConfig(keys.count("index_n_heads"), keys.count("index_head_dim"), keys.count("index_topk"))
    _check_index(index.head_dim, index.top_k, mla)
    return index


def _check_index(head_dim: int, top_k: int, mla: MlaConfig | None) -> None:
    if mla is None or mla.q_lora is None:
        raise ConfigError("config.json: q_lora_rank is missing, and the indexer's queries are made of that latent")
    if head_dim % 2 or not mla.rope <= head_dim <= WIDEST_INDEX:
        raise ConfigError(
            f"config.json: index_head_dim is {head_dim}; allowed are even numbers from qk_rope_head_dim {mla.rope} to "
            f"{WIDEST_INDEX}"
        )
    if top_k > MOST_CHOSEN:
        raise ConfigError(f"config.json: index_topk is {top_k}; allowed are 1 to {MOST_CHOSEN}")


def _moe(keys: _Keys, family: str, layers: int) -> MoeConfig | None:
    first_dense = keys.count("first_k_dense_replace", 0, least=0)
    if keys.raw.get("n_routed_experts") is None or first_dense >= layers:
        return None
    if (freq := keys.count("moe_layer_freq", 1)) != 1:
        raise ConfigError(f"config.json: moe_layer_freq {freq} is not supported; supported is 1")
    experts, top_k = keys.count("n_routed_experts"), keys.count("num_experts_per_tok")
    method = keys.choice("topk_method", "noaux_tc" if family in _LIKE_V3 else "greedy")
    n_group = keys.count("n_group", 1) if method != "greedy" else 1
    topk_group = keys.count("topk_group", 1) if method != "greedy" else 1
    _check_routing(experts, top_k, method, n_group, topk_group)
    routing = Routing(
        experts=experts,
        top_k=top_k,
        scoring=keys.choice("scoring_func", "sigmoid" if family in _LIKE_V3 else "softmax"),
        method=method,
        n_group=n_group,
        topk_group=topk_group,
        normalize=keys.flag("norm_topk_prob", family in _LIKE_V3),
        scale=keys.positive("routed_scaling_factor", 1.0),
    )
    return MoeConfig(
        routing=routing,
        inter=keys.count("moe_intermediate_size"),
        shared=keys.count("n_shared_experts", 0, least=0),
        first_dense=first_dense,
        bias=method == "noaux_tc",
    )


def _check_routing(experts: int, top_k: int, method: str, n_group: int, topk_group: int) -> None:
    if n_group < 1 or experts % n_group or topk_group > n_group or top_k > experts // n_group * topk_group:
        raise ConfigError(
            f"config.json: cannot choose {top_k} of {experts} experts from topk_group {topk_group} of n_group {n_group}"
        )
    if method == "noaux_tc" and experts // n_group < 2:
        raise ConfigError("config.json: noaux_tc routing needs at least two experts per group")


_CHOICES: dict[str, tuple[str, ...]] = {
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
    "scoring_func": ("softmax", "sigmoid"),
}
_LARGEST = 1 << 24
_MOST_EXPERTS, _WIDEST = 1 << 17, 1 << 16


class _Keys:
    """Reads a config.json key by key; each error names the key and what is allowed."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"config.json: {key} is missing")
        return value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
            raise ConfigError(f"config.json: {key} is {value!r}; allowed are whole numbers from {least} to {_LARGEST}")
        return value

    def positive(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
            raise ConfigError(f"config.json: {key} is {value!r}; allowed are numbers above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"config.json: {key} is {value!r}; allowed are true and false")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, None))

    def choice(self, key: str, default: str) -> Any:
        value: Literal["greedy", "group_limited_greedy", "noaux_tc", "softmax", "sigmoid"] = self._get(key, default)
        if value not in _CHOICES[key]:
            raise ConfigError(f"config.json: {key} is {value!r}; allowed are {', '.join(_CHOICES[key])}")
        return value
