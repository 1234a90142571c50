"""Money as integers: micro-units, 1e-6 of a currency, so that sums are exact. A price is in micro-units per million
tokens, and what a request costs is rounded once, half up."""

from __future__ import annotations

from decimal import Decimal, DecimalException

import msgspec

from deepwell.errors import ConfigError, shown

MICRO = 1_000_000
"""Micro-units of one unit of a currency, and the tokens that a price is for."""
MAX_PRICE = 10**12
"""A million units per million tokens. With it and MAX_TOKENS no cost leaves 64 bits."""
MAX_TOKENS = 1 << 40
"""Of one kind in one request."""
MAX_AMOUNT = 10**15
"""Of one movement or budget: a thousand million units."""


class Price(msgspec.Struct, frozen=True):
    """What a million tokens cost, in micro-units of `currency`: prompt tokens found in the cache, the other prompt
    tokens, and tokens generated (thoughts among them)."""

    hit: int = 0
    miss: int = 0
    output: int = 0
    currency: str = "USD"

    def cost(self, hit: int, miss: int, output: int) -> int:
        """Micro-units for so many tokens."""
        return (hit * self.hit + miss * self.miss + output * self.output + MICRO // 2) // MICRO

    @property
    def free(self) -> bool:
        return not (self.hit or self.miss or self.output)


def micro(value: object, name: str, most: int = MAX_AMOUNT, least: int = 0) -> int:
    """An amount in units (text, integer, Decimal) as micro-units from `least` to `most`, exactly.

    ConfigError names it by `name`: no number, out of bounds, or finer than a micro-unit.
    """
    try:
        number = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
        exact = number * MICRO
        if not number.is_finite() or exact != exact.to_integral_value():
            raise ValueError
    except (DecimalException, ValueError):
        raise ConfigError(f"{name} must be a number with six decimals at most, not {shown(str(value))}") from None
    if not least <= exact <= most:
        raise ConfigError(f"{name} must be from {units(least)} to {units(most)}, not {shown(str(value))}")
    return int(exact)


def units(amount: int) -> str:
    """Micro-units as a decimal text in units, two decimals at least: 110.00, 0.000014, -1.50."""
    whole, rest = divmod(abs(amount), MICRO)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"
