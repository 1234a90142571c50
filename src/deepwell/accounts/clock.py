"""Two clocks: one that says when, and may jump; one that says how long, and never goes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


def _wall() -> int:
    return time.time_ns() // 1000


class Clock(msgspec.Struct, frozen=True):
    """`now` is in microseconds since 1970 (UTC), `elapsed` in nanoseconds since some moment of the past."""

    now: Callable[[], int] = _wall
    elapsed: Callable[[], int] = time.monotonic_ns
