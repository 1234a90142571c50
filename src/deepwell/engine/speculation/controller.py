"""Whether guessing pays: arms compared by measured speed, per number of streams. Pure: seconds are passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

ArmT = TypeVar("ArmT")

WARM_UP = 8
"""First steps of a class of streams, which fill caches and say nothing."""
TRIAL = 16
"""Steps of one trial of an arm."""
PATIENCE, MOST_PATIENCE = 256, 8192
"""Steps with the best arm before another is tried; doubled each time the best one stays the best."""
MARGIN = 1.05
"""How much faster another arm must be to become the best."""
_WINDOW = 64
_SLOWEST = 8
"""One in so many steps is left out, the slowest first: a pause of the machine says nothing about an arm."""


class Controller(Generic[ArmT]):
    """Chooses one of `arms` at each step: mostly the fastest so far, now and then another to see how it does now.

    What pays with one stream, whose steps wait for memory, does not with many, whose steps compute; so streams are
    counted in powers of two and each class learns for itself. The first arm is what is done until others have shown
    to be faster.
    """

    def __init__(self, arms: Sequence[ArmT]) -> None:
        self._arms = arms
        self._classes: dict[int, _Contest] = {}

    def choose(self, streams: int) -> ArmT:
        """The arm for a step of so many streams."""
        return self._arms[self._contest(streams).current]

    def best(self, streams: int) -> ArmT:
        """The arm that is fastest as far as is known."""
        return self._arms[self._contest(streams).best]

    def learn(self, streams: int, arm: ArmT, tokens: int, seconds: float) -> None:
        """A step of `arm` gave so many tokens, of all streams together, in so many seconds."""
        self._contest(streams).learn(self._arms.index(arm), tokens, seconds)

    def _contest(self, streams: int) -> _Contest:
        found = self._classes.get(streams.bit_length())
        if found is None:
            found = self._classes[streams.bit_length()] = _Contest(len(self._arms))
        return found


class _Contest:
    """The arms, by index, at one class of streams. Every arm is tried once before the first is declared the best."""

    def __init__(self, arms: int) -> None:
        self.best = self.current = 0
        self._seen: list[deque[tuple[int, float]]] = [deque(maxlen=_WINDOW) for _ in range(arms)]
        self._untried = deque(range(1, arms))
        self._cold = WARM_UP
        self._challenger = 0
        self._patience, self._left = PATIENCE, TRIAL

    def learn(self, arm: int, tokens: int, seconds: float) -> None:
        if self._cold:
            self._cold -= 1
            return
        self._seen[arm].append((tokens, seconds))
        if arm == self.current and len(self._seen) > 1:
            self._left -= 1
            if self._left == 0:
                self._turn()

    def _turn(self) -> None:
        """A trial or a spell of the best arm is over."""
        if self._untried:
            self._try(self._untried.popleft())
            return
        before, self.best = self.best, self._fastest()
        if self.best != before:
            self._patience = PATIENCE
        elif self.current == self.best:
            self._try(self._next_challenger())
            return
        else:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self.current, self._left = self.best, self._patience

    def _try(self, arm: int) -> None:
        self._seen[arm].clear()
        self.current, self._left = arm, TRIAL

    def _fastest(self) -> int:
        rates = [_rate(steps) for steps in self._seen]
        arm = max(range(len(rates)), key=rates.__getitem__)
        return arm if rates[arm] > MARGIN * rates[self.best] else self.best

    def _next_challenger(self) -> int:
        """The others take turns."""
        while True:
            self._challenger = (self._challenger + 1) % len(self._seen)
            if self._challenger != self.best:
                return self._challenger


def _rate(steps: deque[tuple[int, float]]) -> float:
    """Tokens per second, without the slowest steps' seconds."""
    quick = sorted(steps, key=lambda step: step[1])[: len(steps) - len(steps) // _SLOWEST]
    mean_seconds = sum(seconds for _, seconds in quick) / len(quick)
    return sum(tokens for tokens, _ in steps) / len(steps) / max(mean_seconds, 1e-9)
