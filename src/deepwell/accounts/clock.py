"""Two clocks: one that says when, and may jump; one that says how long, and never goes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

SECOND = 1_000_000
"""In microseconds, like the others."""
HOUR = 3600 * SECOND
DAY = 24 * HOUR

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = 253_402_300_799 * SECOND
"""Of the year 9999."""


def _wall() -> int:
    return time.time_ns() // 1000


class Clock(msgspec.Struct, frozen=True):
    """`now` is in microseconds since 1970 (UTC), `elapsed` in nanoseconds since some moment of the past."""

    now: Callable[[], int] = _wall
    elapsed: Callable[[], int] = time.monotonic_ns


def utc(moment: int) -> datetime:
    """Microseconds since 1970 as a date; a clock that is centuries off is wrong, and still names one, a day within
    what dates can be."""
    return _EPOCH + timedelta(microseconds=min(max(moment, DAY), _LAST - DAY))


def month_start(moment: int) -> int:
    """When the calendar month of a moment began; both in microseconds (UTC)."""
    first = utc(moment).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - _EPOCH) // timedelta(microseconds=1)
