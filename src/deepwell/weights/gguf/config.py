"""What a GGUF file says its model is: metadata keys, and which tensors there are, to a `ModelConfig`."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from deepwell.errors import CheckpointError, ConfigError, shown
from deepwell.model.config import (
    MOST_CHOSEN,
    WIDEST_INDEX,
    IndexConfig,
    MlaConfig,
    ModelConfig,
    MoeConfig,
    check_config,
)
from deepwell.model.rope import RopeConfig, yarn_mscale
from deepwell.ops.base import Routing
from deepwell.weights.gguf.keys import ARCHITECTURES, PAIRED, SIGMOID, SOFTMAX, General, Key
from deepwell.weights.gguf.reader import GgufFile, GgufTensor

_SUPPORTED = tuple(dict.fromkeys(ARCHITECTURES.values()))
_WITH_MLA = ("deepseek2", "deepseek32")
_LARGEST = 1 << 24
_MOST_LAYERS, _MOST_EXPERT_LAYERS = 1 << 12, 1 << 17


def model_config(file: GgufFile, notes: list[str]) -> ModelConfig:
    """The shape of the model in `file`; `notes` gets a sentence for all that the file does not say and was assumed.

    CheckpointError names a key that is missing, odd or unsupported.
    """
    keys = _Keys(file, notes)
    arch = keys.arch
    if keys.get(Key.EXPERTS) and not arch.startswith("deepseek"):
        raise keys.error(Key.EXPERTS, f"is set; supported are {arch} models without experts")
    hidden, heads = keys.count(Key.HIDDEN), keys.count(Key.HEADS)
    mla = _mla(keys) if arch in _WITH_MLA else None
    index = _index(keys, mla) if arch == "deepseek32" and mla else None
    head_dim = mla.nope + mla.rope if mla else _head_dim(keys, hidden // heads)
    kv_heads = heads if mla else keys.count(Key.KV_HEADS, heads)
    if heads % kv_heads:
        raise keys.error(Key.HEADS, f"is {heads}, no multiple of head_count_kv {kv_heads}")
    layers, context = _layers(keys), keys.count(Key.CONTEXT)
    moe = _moe(keys, layers) if arch.startswith("deepseek") else None
    sigmoid = moe is not None and moe.routing.scoring == "sigmoid"
    rope = _rope(keys, context, mla.rope if mla else head_dim)
    everywhere = keys.has("blk.0.attn_output.bias")
    config = ModelConfig(
        family="deepseek_v32" if index else ("deepseek_v3" if sigmoid else "deepseek_v2") if mla else arch,
        vocab=keys.tensor("token_embd.weight").shape[0],
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inter=keys.count(Key.INTER),
        eps=keys.positive(Key.EPS),
        rope=rope,
        context=rope.stretched(context),
        mla=mla,
        moe=moe,
        tied=not keys.has("output.weight"),
        attention_bias=everywhere,
        qkv_bias=keys.has("blk.0.attn_q.bias") and not everywhere,
        qk_norm=keys.has("blk.0.attn_q_norm.weight"),
        mlp_bias=keys.has("blk.0.ffn_down.bias"),
        interleaved=arch in PAIRED,
        index=index,
    )
    try:
        check_config(config)
    except ConfigError as error:
        raise CheckpointError(f"{file.files[0]}: its metadata describe no model that can run: {error}") from None
    return config


class _Keys:
    """Reads the metadata of one architecture key by key; each error names the file, the key and what is allowed."""

    def __init__(self, file: GgufFile, notes: list[str]) -> None:
        self._file, self._notes = file, notes
        arch = file.metadata.get(General.ARCHITECTURE)
        if not isinstance(arch, str) or arch not in _SUPPORTED:
            told = f"general.architecture {shown(arch)} is not supported; supported are {', '.join(_SUPPORTED)}"
            if isinstance(arch, str) and arch.startswith("deepseek4"):
                told += "; of DeepSeek-V4, Deepwell knows the prompt format alone"
            raise CheckpointError(f"{file.files[0]}: {told}")
        self.arch = arch

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file.files[0]}: {self.arch}.{key} {problem}")

    def assume(self, key: str, what: str) -> None:
        """Note what was taken for granted where a key is missing."""
        self._notes.append(f"{self._file.files[0].name}: {self.arch}.{key} is missing; assumed is {what}")

    def has(self, tensor: str) -> bool:
        return tensor in self._file.tensors

    def tensor(self, name: str) -> GgufTensor:
        if name not in self._file.tensors:
            raise CheckpointError(f"{self._file.files[0]}: tensor {name} is missing")
        return self._file.tensors[name]

    def get(self, key: str) -> Any:
        """A value, None if missing. A list with one value per layer counts as that value if all are the same."""
        value = self._file.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, np.ndarray):
            if not value.size or (value != value[0]).any():
                raise self.error(key, "differs between layers; supported are layers of one shape")
            return value[0].item()
        return value

    def says(self, key: str) -> bool:
        """Whether there is a value. 0 is how some writers say that there is none."""
        value = self.get(key)
        return value is not None and (isinstance(value, bool) or value != 0)

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = default if (value := self.get(key)) is None else value
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST:
            raise self.error(key, f"is {shown(value)}; allowed are whole numbers from {least} to {_LARGEST}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = default if (value := self.get(key)) is None else value
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e12:
            raise self.error(key, f"is {shown(value)}; allowed are numbers above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise self.error(key, f"is {shown(value)}; allowed are true and false")
        return bool(value)


def _layers(keys: _Keys) -> int:
    """Blocks without those that only predict further tokens, which lie behind the others."""
    blocks, modules = keys.count(Key.BLOCKS), keys.count(Key.NEXTN, 0, least=0)
    if keys.get(Key.NEXTN) is None:
        while keys.has(f"blk.{blocks - 1 - modules}.nextn.eh_proj.weight"):
            modules += 1
        if modules:
            keys.assume(Key.NEXTN, f"{modules}, by the tensors of the last blocks")
    layers = blocks - modules
    if not 1 <= layers <= _MOST_LAYERS:
        raise keys.error(Key.BLOCKS, f"leaves {layers} layers; allowed are 1 to {_MOST_LAYERS}")
    keys.tensor(f"blk.{layers - 1}.attn_norm.weight")
    return layers


def _head_dim(keys: _Keys, usual: int) -> int:
    head_dim = keys.count(Key.KEY_WIDTH, usual)
    for key in (Key.VALUE_WIDTH, Key.ROTATED):
        if (other := keys.count(key, head_dim)) != head_dim:
            raise keys.error(key, f"is {other}; supported is the width of a key, {head_dim}")
    if head_dim % 2:
        raise keys.error(Key.KEY_WIDTH, f"is {head_dim}; allowed are even numbers")
    return head_dim


def _mla(keys: _Keys) -> MlaConfig:
    """Widths of a head. Newer files give them as *_length_mla, beside the widths of the latent form (576 and 512)."""
    split = keys.get(Key.MLA_KEY_WIDTH) is not None
    key = Key.MLA_KEY_WIDTH if split else Key.KEY_WIDTH
    rope, width = keys.count(Key.ROTATED), keys.count(key)
    if width <= rope or rope % 2:
        raise keys.error(key, f"is {width} and rope.dimension_count {rope}; allowed is a smaller, even rope part")
    return MlaConfig(
        # old files of the Lite models name a rank that they do not use
        q_lora=keys.count(Key.Q_LORA) if keys.has("blk.0.attn_q_a.weight") else None,
        kv_lora=keys.count(Key.KV_LORA),
        nope=width - rope,
        rope=rope,
        value=keys.count(Key.MLA_VALUE_WIDTH if split else Key.VALUE_WIDTH),
    )


def _index(keys: _Keys, mla: MlaConfig) -> IndexConfig:
    """The lightning indexer, whose tensors converters leave as they are: rotated columns first, in halves."""
    head_dim, top_k = keys.count(Key.INDEX_WIDTH), keys.count(Key.INDEX_TOP_K)
    if mla.q_lora is None:
        raise keys.error(Key.Q_LORA, "is not used, and the indexer's queries are made of that latent")
    if head_dim % 2 or not mla.rope <= head_dim <= WIDEST_INDEX:
        allowed = f"even numbers from rope.dimension_count {mla.rope} to {WIDEST_INDEX}"
        raise keys.error(Key.INDEX_WIDTH, f"is {head_dim}; allowed are {allowed}")
    if top_k > MOST_CHOSEN:
        raise keys.error(Key.INDEX_TOP_K, f"is {top_k}; allowed are 1 to {MOST_CHOSEN}")
    return IndexConfig(keys.count(Key.INDEX_HEADS), head_dim, top_k)


def _moe(keys: _Keys, layers: int) -> MoeConfig | None:
    first_dense, experts = keys.count(Key.FIRST_DENSE, 0, least=0), keys.count(Key.EXPERTS, 0, least=0)
    if not experts or first_dense >= layers:
        return None
    if experts * layers > _MOST_EXPERT_LAYERS:
        raise keys.error(Key.EXPERTS, f"is {experts} in {layers} layers; allowed are {_MOST_EXPERT_LAYERS} in all")
    bias = keys.has(f"blk.{first_dense}.exp_probs_b.bias")
    return MoeConfig(
        routing=_routing(keys, experts, bias),
        inter=keys.count(Key.EXPERT_INTER),
        shared=keys.count(Key.EXPERTS_SHARED, 0, least=0),
        first_dense=first_dense,
        bias=bias,
    )


def _routing(keys: _Keys, experts: int, bias: bool) -> Routing:
    """The file does not name the method: groups scored by their two best come with sigmoid scores (DeepSeek-V3)."""
    gating, normalize = _gating(keys, bias), keys.flag(Key.EXPERT_NORM)
    if gating == SIGMOID and keys.get(Key.EXPERT_NORM) is None:
        keys.assume(Key.EXPERT_NORM, "true, as DeepSeek-V3 has it")
        normalize = True
    groups = keys.count(Key.EXPERT_GROUPS, 1, least=0) or 1
    used = keys.count(Key.EXPERT_GROUPS_USED, groups, least=0) or groups
    top_k = keys.count(Key.EXPERTS_USED)
    if experts % groups or used > groups or top_k > experts // groups * used:
        raise keys.error(Key.EXPERTS_USED, f"asks for {top_k} of {experts} experts from {used} of {groups} groups")
    method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "greedy"
    if bias or (gating == SIGMOID and groups > 1):
        method = "noaux_tc"
        if experts // groups < 2:
            raise keys.error(Key.EXPERT_GROUPS, f"is {groups} for {experts} experts; a group needs two or more")
    elif groups > 1:
        method = "group_limited_greedy"
    return Routing(
        experts=experts,
        top_k=top_k,
        scoring="sigmoid" if gating == SIGMOID else "softmax",
        method=method,
        n_group=groups,
        topk_group=used,
        normalize=normalize,
        scale=keys.positive(Key.EXPERT_SCALE) if keys.says(Key.EXPERT_SCALE) else 1.0,
    )


def _gating(keys: _Keys, bias: bool) -> int:
    """How experts are scored. Files of V2 do not say so; those that have V3's `bias` of experts mean V3's way."""
    gating = keys.count(Key.EXPERT_GATING, 0, least=0)
    if not gating and keys.arch in _WITH_MLA:
        gating = SIGMOID if bias else SOFTMAX
        as_v3 = "2 (sigmoid), as in DeepSeek-V3, which has a bias of experts too"
        keys.assume(Key.EXPERT_GATING, as_v3 if bias else "1 (softmax), as in DeepSeek-V2")
    if (gating or SOFTMAX) not in (SOFTMAX, SIGMOID):
        raise keys.error(Key.EXPERT_GATING, f"is {gating}; supported are 1 (softmax) and 2 (sigmoid)")
    return gating or SOFTMAX


def _rope(keys: _Keys, context: int, width: int) -> RopeConfig:
    theta = keys.positive(Key.ROPE_BASE, 10000.0)
    if theta <= 1:
        raise keys.error(Key.ROPE_BASE, f"is {theta}; allowed are numbers above 1")
    factor = keys.positive(Key.ROPE_FACTOR, keys.positive(Key.ROPE_LINEAR, 1.0))
    kind = keys.get(Key.ROPE_TYPE)
    kind = "linear" if kind is None or kind == "" else kind
    divisors = _divisors(keys, width)
    if kind == "none" or (kind == "linear" and factor == 1):
        return RopeConfig(theta=theta, original=context, divisors=divisors)
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=factor, original=context, divisors=divisors)
    if kind != "yarn":
        raise keys.error(Key.ROPE_TYPE, f"is {shown(kind)}; supported are none, linear and yarn")
    # DeepSeek's files hold a tenth of mscale_all_dim. They leave mscale out: in every published model the two are
    # equal, so that cosines and sines are not scaled, and the scores by yarn_score_factor alone.
    mscale = 0.0
    if keys.arch in _WITH_MLA and keys.says(Key.YARN_LOG):
        mscale = round(10 * keys.positive(Key.YARN_LOG), 6)
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original=keys.count(Key.ROPE_ORIGINAL, context),
        beta_fast=keys.positive(Key.YARN_FAST, 32.0),
        beta_slow=keys.positive(Key.YARN_SLOW, 1.0),
        mscale=mscale,
        mscale_all_dim=mscale,
        divisors=divisors,
        **_magnitude(keys, factor),
    )


def _magnitude(keys: _Keys, factor: float) -> dict[str, float]:
    """What changes YaRN's own magnitude of cosines and sines.

    llama.cpp multiplies by attn_factor. Into yarn_attn_factor converters write what a config.json calls
    attention_factor, which replaces YaRN's own (never below 1), or attn_factor, which multiplies it down.
    """
    factors = (Key.ATTN_FACTOR, Key.YARN_ATTN_FACTOR)
    times, whole = (keys.positive(key) if keys.get(key) is not None else None for key in factors)
    if times is not None and (whole is None or not math.isclose(whole, times * yarn_mscale(factor, 1.0), rel_tol=1e-5)):
        return {"attn_factor": times}
    if whole is None:
        return {}
    return {"attn_factor" if whole < 1 else "attention_factor": whole}


def _divisors(keys: _Keys, width: int) -> tuple[float, ...]:
    """What each frequency is divided by, from the tensor that Llama 3.1's scaling is stored as."""
    if not keys.has("rope_freqs.weight"):
        return ()
    tensor = keys.tensor("rope_freqs.weight")
    if tensor.shape != (width // 2,):
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has shape {tensor.shape}, expected ({width // 2},)")
    divisors = tuple(float(d) for d in tensor.float32())
    if not all(d > 0 and math.isfinite(1 / d) for d in divisors):
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} must hold numbers above 0")
    return divisors
