"""Rotary position embedding: frequencies, and the ways of stretching them over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from deepwell.errors import ConfigError
from deepwell.ops.base import Rotation

_KINDS = ("default", "linear", "yarn", "llama3")
_ABOVE_ZERO = ("factor", "beta_fast", "beta_slow", "attention_factor", "attn_factor", "high_freq_factor")
_NUMBERS = (*_ABOVE_ZERO, "mscale", "mscale_all_dim", "low_freq_factor")
_LONGEST = 1 << 24
_ONLY = {"partial_rotary_factor": 1.0, "truncate": True}


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Base frequency and scaling. Fields that a kind does not use keep their defaults.

    `attn_factor` multiplies YaRN's own magnitude of cosines and sines, `attention_factor` replaces it.

    `divisors` slow each frequency by a number of its own, before any other scaling; empty for none. This is how GGUF
    files keep the llama3 kind.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    attn_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    divisors: tuple[float, ...] = ()

    @staticmethod
    def from_hugging_face(raw: Mapping[str, Any], context: int) -> RopeConfig:
        """Reads the older `rope_theta` + `rope_scaling` and the newer `rope_parameters` keys alike."""
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise ConfigError(f"config.json: rope_scaling is {scaling!r}; allowed is an object")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in _KINDS:
            raise ConfigError(f"config.json: rope scaling {kind!r} is not supported; supported are {', '.join(_KINDS)}")
        for name, only in _ONLY.items():
            value = scaling.get(name, raw.get(name))
            if value is not None and value != only:
                raise ConfigError(f"config.json: rope {name} is {value!r}; supported is {only!r}")
        given = {
            "theta": scaling.get("rope_theta", raw.get("rope_theta")),
            "original": scaling.get("original_max_position_embeddings"),
            **{name: scaling.get(name) for name in _NUMBERS},
        }
        values = {name: _number(name, value) for name, value in given.items() if value is not None}
        if kind != "default" and "factor" not in values:
            raise ConfigError(f"config.json: rope scaling {kind!r} needs a factor")
        values["original"] = int(values.get("original", context))
        return RopeConfig(kind=kind, **values)

    def stretched(self, context: int) -> int:
        """The longest sequence of a model whose files say `context`.

        YaRN reaches `factor` times the length that it stretches, and is turned on as the cards of Qwen's models say, by
        adding it and leaving the context as it was.
        """
        return max(context, int(min(self.original * self.factor, _LONGEST))) if self.kind == "yarn" else context

    def rotation(self, width: int, layout: Literal["interleaved", "half"]) -> Rotation:
        """The rotation of `width` columns: frequencies in float64, rounded once to float32."""
        exponent_R = np.arange(0, width, 2, dtype=np.float64) / width
        freq_R = self.theta**-exponent_R
        magnitude = 1.0
        if self.divisors:
            freq_R = freq_R / np.array(self.divisors)
        if self.kind == "linear":
            freq_R = freq_R / self.factor
        elif self.kind == "yarn":
            keep_R = 1.0 - self._interpolated(width)
            freq_R = freq_R / self.factor * (1.0 - keep_R) + freq_R * keep_R
            magnitude = self._yarn_magnitude()
        elif self.kind == "llama3":
            freq_R = self._llama3(freq_R)
        return Rotation(tuple(float(f) for f in freq_R.astype(np.float32)), layout, magnitude)

    def llama3_divisors(self, width: int) -> tuple[float, ...]:
        """What the llama3 kind divides each frequency of `width` columns by."""
        plain_R = self.theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        return tuple(float(d) for d in plain_R / self._llama3(plain_R))

    def _interpolated(self, width: int) -> Any:
        """Share of each frequency that is interpolated: a ramp between two numbers of turns (YaRN, 2309.00071)."""

        def index(turns: float) -> float:
            return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low = max(math.floor(index(self.beta_fast)), 0)
        high = min(math.ceil(index(self.beta_slow)), width - 1)
        span = high - low if high != low else 0.001
        return np.clip((np.arange(width // 2, dtype=np.float64) - low) / span, 0.0, 1.0)

    def _yarn_magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        magnitude = yarn_mscale(self.factor, 1.0)
        if self.mscale and self.mscale_all_dim:
            magnitude = yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return magnitude * self.attn_factor

    def _llama3(self, freq_R: Any) -> Any:
        """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
        turns_R = self.original * freq_R / (2 * math.pi)
        span = (self.high_freq_factor - self.low_freq_factor) or 0.001
        keep_R = np.clip((turns_R - self.low_freq_factor) / span, 0.0, 1.0)
        return freq_R / self.factor * (1.0 - keep_R) + freq_R * keep_R


def _number(name: str, value: Any) -> Any:
    """A finite number of the rope's keys; those that divide or are taken the logarithm of must be above 0."""
    low = {"theta": 1, "original": 1}.get(name, 0)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value < 1e12
    if not fits or (value == low and name in ("theta", *_ABOVE_ZERO)):
        above = "above" if name in ("theta", *_ABOVE_ZERO) else "from"
        raise ConfigError(f"config.json: rope {name} is {value!r}; allowed are numbers {above} {low}")
    return value


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature: 0.1 · mscale · ln(factor) + 1, and 1 when nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_score_factor(rope: RopeConfig) -> float:
    """What multiplies MLA's softmax scale: yarn_mscale(factor, mscale_all_dim)², as DeepSeek's own code has it."""
    if rope.kind == "default" or not rope.mscale_all_dim:
        return 1.0
    return yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
