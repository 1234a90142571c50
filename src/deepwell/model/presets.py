"""Shapes we train ourselves. Every in-feature is a multiple of 32, so that 4- and 8-bit formats fit."""

from __future__ import annotations

from deepwell.errors import ConfigError
from deepwell.model.config import MlaConfig, ModelConfig, MoeConfig
from deepwell.model.rope import RopeConfig
from deepwell.ops.base import Routing


def _v3(
    vocab: int, hidden: int, layers: int, heads: int, inter: int, mla: MlaConfig, moe: MoeConfig | None, context: int
) -> ModelConfig:
    return ModelConfig(
        family="deepseek_v3",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=mla.nope + mla.rope,
        inter=inter,
        eps=1e-6,
        rope=RopeConfig(original=context),
        context=context,
        mla=mla,
        moe=moe,
        mtp_layers=1,
    )


def _moe(experts: int, top_k: int, inter: int) -> MoeConfig:
    routing = Routing(experts, top_k, "sigmoid", "noaux_tc", normalize=True, scale=1.0)
    return MoeConfig(routing, inter, shared=1, first_dense=1, bias=True)


_NANO = (2048, 128, 4, 4)
_TINY = (4096, 192, 6, 6)
_MINI = (4096, 192, 4, 3)
_NANO_MLA = MlaConfig(q_lora=64, kv_lora=64, nope=32, rope=16, value=32)
_MINI_MLA = MlaConfig(q_lora=96, kv_lora=64, nope=32, rope=32, value=64)
_TINY_MLA = MlaConfig(q_lora=96, kv_lora=64, nope=32, rope=16, value=32)

# The dense twins have the feed-forward FLOPs per token of their MoE model, rounded up.
PRESETS: dict[str, ModelConfig] = {
    "nano": _v3(*_NANO, 352, _NANO_MLA, _moe(8, 2, 64), 1024),
    "nano-dense": _v3(*_NANO, 240, _NANO_MLA, None, 1024),
    "mini": _v3(*_MINI, 512, _MINI_MLA, _moe(8, 2, 96), 1024),
    "mini-dense": _v3(*_MINI, 352, _MINI_MLA, None, 1024),
    "tiny": _v3(*_TINY, 512, _TINY_MLA, _moe(16, 4, 64), 1024),
    "tiny-dense": _v3(*_TINY, 352, _TINY_MLA, None, 1024),
}


def preset(name: str) -> ModelConfig:
    """The shape called `name`. ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"size {name!r} is unknown; known are {', '.join(PRESETS)}")
    return PRESETS[name]
