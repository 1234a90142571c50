"""What tokens cost, by model and moment."""

from __future__ import annotations

from deepwell.accounts.money import Price


class Prices:
    """The prices of models. Without a table everything is free."""

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        """The price of a request to `model` that arrived at `when` (microseconds, UTC)."""
        return Price()
