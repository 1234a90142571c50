"""Speculation: guess the next tokens cheaply, check them all in one step, keep those that were right.

Sampling is row by row and a token depends on its row of logits, the tokens before it, the seed and its index alone. So
a step over known tokens and guesses samples each row as plain decoding would, and goes on while the sampled token is
the guessed one. The answer is the one plain decoding gives, bit for bit, at any temperature: guesses decide how many
steps it takes and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.runner import Further, Runner
from deepwell.engine.scheduler import SequenceState, StepPlan
from deepwell.engine.speculation.controller import Controller
from deepwell.engine.speculation.lookup import LookupIndex
from deepwell.engine.speculation.module import FurtherDrafter
from deepwell.errors import ConfigError
from deepwell.options import Speculate

Kind = Literal["lookup", "mtp"]
DRAFTERS: tuple[Kind, ...] = get_args(Kind)


class Arm(msgspec.Struct, frozen=True):
    """A way of guessing, up to `tokens` per sequence; None guesses nothing."""

    kind: Kind | None
    tokens: int = 0


class Speculator:
    """Guesses for an engine's sequences, and what is needed to make them. `kind` is where the last ones came from."""

    def __init__(self, mode: Speculate, tokens: int, further: Further | None, blocks: int) -> None:
        """Raises ConfigError for `mtp` without a module."""
        arms = _arms(mode, tokens, further is not None)
        self.kind: Kind = "lookup"
        self._off = mode == "off"
        self._controller = Controller(arms)
        self._arm = arms[0]
        self._indexes: dict[str, LookupIndex] = {}
        self._further = further if any(arm.kind == "mtp" for arm in arms) else None
        self._drafter = FurtherDrafter(self._further, blocks) if self._further is not None else None
        self._x_ND: NDArray[np.float32] | None = None

    def stop(self) -> None:
        """Guess nothing any more."""
        self._off = True
        self._further = self._drafter = None
        self._indexes.clear()

    def drafts(self, ready: Sequence[tuple[SequenceState, int]]) -> dict[str, tuple[int, ...]]:
        """Guesses for sequences that lack their newest token alone, for each at most as many as stand beside it."""
        if self._off or not ready:
            return {}
        arm = self._choose([sequence for sequence, _ in ready])
        self._arm = arm
        if self._drafter is not None and arm.kind != "mtp":
            self._drafter.catch_up([sequence for sequence, _ in ready])
        if arm.kind is None:
            return {}
        self.kind = arm.kind
        wanted = [(sequence, min(arm.tokens, most)) for sequence, most in ready]
        if arm.kind == "lookup":
            return {s.id: draft for s, n in wanted if n > 0 and (draft := self._look_up(s, n))}
        assert self._drafter is not None
        return self._drafter.drafts(wanted)

    def run(self, runner: Runner, plan: StepPlan) -> NDArray[np.float32]:
        """The plan's logits_LV; the states of its rows are kept for `observe` where the module may need them."""
        batch = plan.batch()
        if self._further is None or not (self._begins(plan) or (self._drafter and self._drafter.tracks)):
            self._x_ND = None
            return runner.run(batch)
        logits_LV, self._x_ND = self._further.run(batch)
        return logits_LV

    def observe(self, plan: StepPlan, live: Mapping[str, SequenceState]) -> None:
        """The plan was carried out; `live` are the sequences that go on."""
        if self._drafter is None:
            return
        begin, row = self._begins(plan), 0
        for segment in plan.segments:
            x_ND = None if self._x_ND is None else self._x_ND[row : row + len(segment.tokens)]
            row += len(segment.tokens)
            sequence = live.get(segment.id)
            kept = 0 if sequence is None else sequence.computed - segment.start
            self._drafter.observe(segment, kept, x_ND, begin and sequence is not None)
        self._x_ND = None

    def learn(self, plan: StepPlan, tokens: int, seconds: float) -> None:
        """The step gave so many tokens in so many seconds. Steps that read prompts say nothing about guessing."""
        if not self._off and all(len(segment.tokens) == 1 + segment.drafted for segment in plan.segments):
            self._controller.learn(len(plan.segments), self._arm, tokens, seconds)

    def forget(self, id: str) -> None:
        """A sequence has ended."""
        self._indexes.pop(id, None)
        if self._drafter is not None:
            self._drafter.forget(id)

    def _choose(self, sequences: Sequence[SequenceState]) -> Arm:
        """The controller's arm; its best one where the module is to be tried and has seen none of the sequences."""
        arm = self._controller.choose(len(sequences))
        if arm.kind == "mtp" and self._drafter and not any(self._drafter.tracked(s) for s in sequences):
            return self._controller.best(len(sequences))
        return arm

    def _begins(self, plan: StepPlan) -> bool:
        """Whether sequences that begin now shall go through the module: only where it is used or on trial."""
        streams = len(plan.segments)
        return "mtp" in (self._controller.choose(streams).kind, self._controller.best(streams).kind)

    def _look_up(self, sequence: SequenceState, count: int) -> tuple[int, ...]:
        index = self._indexes.get(sequence.id)
        if index is None:
            index = self._indexes[sequence.id] = LookupIndex()
        return index.draft(sequence.tokens, count)


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
