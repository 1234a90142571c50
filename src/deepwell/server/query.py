"""What stands in the query of an address: numbers and moments; and how a moment is written. Moments are in microseconds
(UTC)."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request

from deepwell.accounts.clock import SECOND
from deepwell.errors import RequestError

LAST_MOMENT = 253_370_764_800 * SECOND
"""The beginning of the year 9999: times end, and are rounded up."""


def integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A number in the query. Raises RequestError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise RequestError(f"{name} must be a whole number from {least} to {most}", name)
    return int(text)


def moment(request: Request, name: str, default: int) -> int:
    """A time in the query, ISO 8601 or seconds since 1970 (UTC), in microseconds. Raises RequestError."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        # A plus sign in an address stands for a space.
        said = datetime.fromisoformat(text.replace(" ", "+")) if not text.isdecimal() else None
        seconds = (
            int(text[:20]) if said is None else int((said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp())
        )
        if not 0 <= seconds * SECOND <= LAST_MOMENT:
            raise ValueError
    except (ValueError, OverflowError):
        raise RequestError(f"{name} must be a time such as 2026-01-31T12:00Z, or seconds since 1970", name) from None
    return seconds * SECOND


def iso(microseconds: int) -> str:
    """2026-01-31T12:00:00Z"""
    return datetime.fromtimestamp(microseconds // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
