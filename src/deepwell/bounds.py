"""What sampling may be asked for: each bound once, for the HTTP API, the command line and the engine alike."""

from __future__ import annotations

from typing import Protocol

from msgspec import Meta

TEMPERATURE = Meta(ge=0, le=2)
TOP_P = Meta(gt=0, le=1)
TOP_K = Meta(ge=0)
MIN_P = Meta(ge=0, le=1)
PENALTY = Meta(ge=-2, le=2)
"""Of `presence_penalty` and `frequency_penalty`."""
REPETITION_PENALTY = Meta(ge=0.01, le=10)
LOGIT_BIAS = Meta(ge=-100, le=100)
SEED = Meta(ge=0, le=2**63 - 1)
"""What people may ask for. The engine takes any 64 bits, for programs that draw seeds themselves."""


MAX_STOP_CHARACTERS = 1024
STOP = Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)
"""Of the length of a stop text."""


class Bound(Protocol):
    """A Meta, or a type that msgspec has inspected. None: no bound on that side."""

    @property
    def ge(self) -> float | None: ...
    @property
    def gt(self) -> float | None: ...
    @property
    def le(self) -> float | None: ...


def holds(bound: Bound, value: float) -> bool:
    """Whether `value` is allowed; NaN never is."""
    low = value >= bound.ge if bound.ge is not None else bound.gt is None or value > bound.gt
    return low and (value <= bound.le if bound.le is not None else value == value)


def words(bound: Bound) -> str:
    """What is allowed, as it follows "a number" or "must be"; empty if everything is."""
    if bound.gt is not None:
        low, high = f"above {_number(bound.gt)}", "and up to"
    elif bound.ge is not None:
        low, high = f"from {_number(bound.ge)}" if bound.le is not None else f"at least {_number(bound.ge)}", "to"
    else:
        low, high = "", "at most"
    return low if bound.le is None else f"{low} {high} {_number(bound.le)}".strip()


def _number(value: float) -> str:
    return "2^63-1" if value == 2**63 - 1 else f"{value:g}"
