"""Rows of the ledger for tests."""

from typing import Any

from deepwell.accounts import Row


def row(id: str, **values: Any) -> Row:
    """A request of the anonymous account that cost nothing, but for what is said otherwise."""
    plain = {
        "account": 0, "key": 0, "model": "m", "kind": "chat", "started": 1, "ended": 2, "first_us": None,
        "whole_us": 1, "hit": 0, "miss": 0, "output": 0, "reasoning": 0, "reason": "stop", "price_hit": 0,
        "price_miss": 0, "price_output": 0, "currency": "USD", "cost": 0,
    }  # fmt: skip
    return Row(id=id, **(plain | values))
