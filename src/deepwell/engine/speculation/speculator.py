"""Speculation: guess the next tokens cheaply, check them all in one step, keep those that were right.

Sampling is row by row and a token depends on its row of logits, the tokens before it, the seed and its index alone. So
a step over known tokens and guesses samples each row as plain decoding would, and goes on while the sampled token is
the guessed one. The answer is the one plain decoding gives, bit for bit, at any temperature: guesses decide how many
steps it takes and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import msgspec

from deepwell.engine.scheduler import SequenceState, StepPlan
from deepwell.engine.speculation.controller import Controller
from deepwell.engine.speculation.lookup import LookupIndex
from deepwell.errors import ConfigError
from deepwell.options import Speculate

Kind = Literal["lookup", "mtp"]
DRAFTERS: tuple[Kind, ...] = get_args(Kind)


class Arm(msgspec.Struct, frozen=True):
    """A way of guessing, up to `tokens` per sequence; None guesses nothing."""

    kind: Kind | None
    tokens: int = 0


PLAIN = Arm(None)


class Speculator:
    """Proposes guesses for an engine's sequences, or says what to ask the prediction module for, and observes what
    came of them. It calls no model. `kind` is where the last guesses came from."""

    def __init__(self, mode: Speculate, tokens: int, module: bool) -> None:
        """`module` says that there is a prediction module to ask. Raises ConfigError for `mtp` without one."""
        arms = _arms(mode, tokens, module)
        self.kind: Kind = "lookup"
        self._off = mode == "off"
        self._controller = Controller(arms)
        self._arm = arms[0]
        self._asks_head = any(arm.kind == "mtp" for arm in arms)
        self._indexes: dict[str, LookupIndex] = {}

    def stop(self) -> None:
        """Guess nothing any more."""
        self._off = True
        self._indexes.clear()

    def choose(self, ready: Sequence[SequenceState], followed: Callable[[str], bool]) -> Arm:
        """How to guess for sequences that lack their newest token alone; `followed` says for which the module can.

        The controller's arm; its best one where the module is to be tried and can guess for none of them.
        """
        if self._off or not ready:
            return PLAIN
        arm = self._controller.choose(len(ready))
        if arm.kind == "mtp" and not any(followed(s.id) for s in ready):
            arm = self._controller.best(len(ready))
        self._arm = arm
        self.kind = arm.kind or self.kind
        return arm

    def look_up(self, wanted: Sequence[tuple[SequenceState, int]]) -> dict[str, tuple[int, ...]]:
        """Up to so many guesses for each of these sequences, from its own text."""
        return {s.id: draft for s, count in wanted if count > 0 and (draft := self._index(s).draft(s.tokens, count))}

    def follows(self, streams: int) -> bool:
        """Whether sequences that begin now shall be followed by the module: only where it is used or on trial."""
        if self._off or not self._asks_head:
            return False
        return "mtp" in (self._controller.choose(streams).kind, self._controller.best(streams).kind)

    def learn(self, plan: StepPlan, tokens: int, seconds: float) -> None:
        """The step gave so many tokens in so many seconds. Steps that read prompts say nothing about guessing."""
        if not self._off and not any(segment.reads for segment in plan.segments):
            self._controller.learn(len(plan.segments), self._arm, tokens, seconds)

    def forget(self, id: str) -> None:
        """A sequence has ended."""
        self._indexes.pop(id, None)

    def _index(self, sequence: SequenceState) -> LookupIndex:
        index = self._indexes.get(sequence.id)
        if index is None:
            index = self._indexes[sequence.id] = LookupIndex()
        return index


def _arms(mode: Speculate, tokens: int, module: bool) -> list[Arm]:
    if mode not in get_args(Speculate):
        raise ConfigError(f"speculate is {mode!r}; allowed are {', '.join(get_args(Speculate))}")
    if mode == "mtp" and not module:
        raise ConfigError("speculate is mtp, and this model has no multi-token prediction module; try lookup")
    if mode == "off":
        return [Arm(None)]
    if mode != "auto":
        return [Arm(mode, tokens)]
    found = [Arm(None), Arm("lookup", tokens)]
    if module:
        found += [Arm("mtp", n) for n in sorted({1, tokens})]
    return found
