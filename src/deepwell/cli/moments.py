"""Moments as people write them on a command line: a day, a time, or so many days and hours from now."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from deepwell.accounts.clock import DAY, HOUR, SECOND
from deepwell.errors import ConfigError, shown

_SPAN = re.compile(r"(\d{1,5})([dh])", re.ASCII)
_SPANS = {"d": DAY, "h": HOUR}


def moment(flag: str, text: str, now: int, direction: int) -> int:
    """In microseconds since 1970. A span such as 30d or 12h goes from `now` to the future (1) or the past (-1); a time
    without a zone is in UTC. ConfigError names the flag."""
    if span := _SPAN.fullmatch(text):
        return now + direction * int(span[1]) * _SPANS[span[2]]
    try:
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return int(when.timestamp()) * SECOND + when.microsecond
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{flag}: must be a span such as 30d or 12h, a day such as 2026-12-31 or a time such as "
            f"2026-12-31T18:00, not {shown(text)}"
        ) from None


def written(microseconds: int | None) -> str:
    """A moment for a table, in UTC; nothing for None."""
    if microseconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(microseconds / SECOND, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return f"{microseconds} us"
