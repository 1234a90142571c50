"""How its makers advise to sample a model: generation_config.json, or the `general.sampling` keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Meta

from deepwell import bounds
from deepwell.bounds import Bound, holds

_BOUNDS: dict[str, Bound] = {
    "temperature": bounds.TEMPERATURE,
    "top_p": bounds.TOP_P,
    "top_k": Meta(ge=0, le=2**31 - 1),
    "min_p": bounds.MIN_P,
    "repetition_penalty": bounds.REPETITION_PENALTY,
}
GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""What GGUF calls each."""


class Advice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Values for those who do not say; None where nothing is advised. As in `SamplingRules`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """What is advised, by name."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.given.items())


def of_generation(document: Mapping[str, Any]) -> Advice:
    """That of a generation_config.json; none where it says that tokens are not drawn."""
    return Advice() if document.get("do_sample") is False else _advice(document)


def of_gguf(metadata: Mapping[str, Any]) -> Advice:
    """That of a GGUF file's keys."""
    values = {name: metadata.get(key) for name, key in GGUF_KEYS.items()}
    # the file has 32 bits of 0.6: the number meant is the shortest that has the same
    return _advice({name: float(str(np.float32(v))) if isinstance(v, float) else v for name, v in values.items()})


def _advice(values: Mapping[str, Any]) -> Advice:
    """What is a number within its bounds; the rest advises nothing that could be followed."""
    found: dict[str, Any] = {}
    for name, bound in _BOUNDS.items():
        value = values.get(name)
        kind = int if name == "top_k" else (int, float)
        if isinstance(value, kind) and not isinstance(value, bool) and holds(bound, value):
            found[name] = value if name == "top_k" else float(value)
    return Advice(**found)
