"""What each account has been served lately, and so whose turn it is. Pure: no clock, and the same calls give the same
turns.

This is start-time fair queueing: an account is charged the tokens that were computed for it, the one that was charged
least comes next, and one that comes back is charged at least as much as the least of those that stayed: having been
away earns nothing, and having left in debt saves nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Claim(Protocol):
    """A sequence, as far as its turn is concerned. `priority`: the higher ones come first."""

    account: int
    priority: int


C = TypeVar("C", bound=Claim)


class Shares:
    """`live` counts each account's sequences, `served` the tokens it was charged."""

    def __init__(self) -> None:
        self.live: Counter[int] = Counter()
        self.served: dict[int, int] = {}

    @property
    def several(self) -> bool:
        """Whether accounts have to share at all."""
        return len(self.live) > 1

    def enter(self, account: int) -> None:
        """A sequence of the account has come."""
        if account not in self.live:
            least = min((self.served[other] for other in self.live), default=0)
            if not self.live:
                self.served.clear()
            self.served[account] = max(least, self.served.get(account, 0))
            self.served = {one: sum for one, sum in self.served.items() if one in self.live or sum >= least}
        self.live[account] += 1

    def leave(self, account: int) -> None:
        """One of its sequences has gone."""
        self.live[account] -= 1
        if not self.live[account]:
            del self.live[account]

    def charge(self, account: int, tokens: int) -> None:
        """So many tokens are computed for it."""
        self.served[account] += tokens

    def next(self, waiting: Iterable[C]) -> C | None:
        """Whose turn it is: the highest priority, then the account that was served least, then the first in line."""
        heads: dict[tuple[int, int], C] = {}
        for claim in waiting:
            heads.setdefault((claim.account, claim.priority), claim)
        return min(heads.values(), key=self._rank, default=None)

    def comes_before(self, one: Claim, other: Claim) -> bool:
        """Whether one has a better claim than another, wherever they stand in line."""
        return self._rank(one) < self._rank(other)

    def turns(self, running: Iterable[C]) -> list[C]:
        """The order in which sequences get of a step: each account's oldest, by rank, then each one's second, ..."""
        queues: defaultdict[int, list[C]] = defaultdict(list)
        for claim in running:
            queues[claim.account].append(claim)
        rounds = ((place, self._rank(claim), claim) for queue in queues.values() for place, claim in enumerate(queue))
        return [claim for *_, claim in sorted(rounds, key=lambda turn: turn[:2])]

    def _rank(self, claim: Claim) -> tuple[int, int]:
        return -claim.priority, self.served[claim.account]


def youngest_of_richest(claims: Iterable[C], places: Counter[int]) -> C:
    """Who gives way: among the accounts with the most `places`, the claim that came last. There must be one."""
    rich = list(claims)
    most = max(places[claim.account] for claim in rich)
    return next(claim for claim in reversed(rich) if places[claim.account] == most)
