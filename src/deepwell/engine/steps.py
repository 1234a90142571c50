"""Steps without text: what is computed when, for whom, in which blocks, and what has been.

Nothing here knows a tokenizer, logits or a clock: an engine drives it with a model, a simulator with a cost model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from deepwell.engine.blocks import Pools
from deepwell.engine.scheduler import Scheduler, SchedulerLimits, Segment, SequenceState, StepPlan, Tier
from deepwell.ops.paging import CacheGroup

FIRST = 64
"""Tokens of the first step that others wait for, while nothing has been measured."""
LEAST = 16
"""Fewer tokens at once would read the weights too often for what they compute."""
_SHARE = 0.1
"""How much of what is known of a step without prompts its newest makes."""
_MOST_CHANGE = 2.0
"""A step says this much about the next one and no more: one pause of the machine is no measure."""


class StepCounts(msgspec.Struct):
    """What steps have come to: see EngineStats."""

    steps: int = 0
    seconds: float = 0.0
    computed: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0


class Steps:
    """Live sequences and the plans that move them. One caller at a time."""

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        fingerprint: bytes,
        limits: SchedulerLimits,
        *,
        step_seconds: float = 0.0,
        tier: Tier | None = None,
    ) -> None:
        """`step_seconds` is how long a step may take while others wait; 0 sets no aim."""
        self.pools = Pools(groups, fingerprint)
        self.scheduler = Scheduler(self.pools, limits, tier)
        self.live: dict[str, SequenceState] = {}
        self.counts = StepCounts()
        self._pace = Pace(limits.token_budget, step_seconds) if step_seconds else None

    @property
    def ready(self) -> list[SequenceState]:
        """Running sequences that lack their newest token alone."""
        return [s for s in self.scheduler.running if s.is_ready]

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence. It must fit into the cache alone."""
        self.live[sequence.id] = sequence
        self.scheduler.add(sequence)

    def plan(self, drafts: Mapping[str, Sequence[int]] | None = None) -> StepPlan:
        """What to compute next. Without segments only when nothing is live, or all that is waits for fetches."""
        return self.scheduler.plan(drafts, self._budget())

    def commit(self, segment: Segment, tokens: Sequence[int] = ()) -> None:
        """The segment is computed, and its sequence goes on with `tokens`."""
        sequence = self.live[segment.id]
        sequence.tokens += tokens
        self.scheduler.commit(sequence, segment)
        accepted = max(0, len(tokens) - 1)
        self.counts.computed += len(segment.tokens) - segment.drafted + min(accepted, segment.drafted)
        self.counts.generated += len(tokens)

    def end(self, id: str, forget: bool = False) -> SequenceState:
        """Take a sequence out; with `forget`, what it computed is not offered to others."""
        sequence = self.live.pop(id)
        self.scheduler.remove(sequence, forget)
        if sequence.cached_tokens is not None:
            self.counts.prompt += sequence.prompt_tokens
            self.counts.cached += sequence.cached_tokens
        return sequence

    def took(self, plan: StepPlan, seconds: float) -> None:
        """The plan was carried out in so many seconds."""
        self.counts.steps += 1
        self.counts.seconds += seconds
        if self._pace is not None:
            self._pace.learn(plan.tokens, seconds, any(segment.reads for segment in plan.segments))

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked or a sequence is lost."""
        self.scheduler.check_integrity()
        scheduler = self.scheduler
        known = {
            s.id
            for s in (
                *scheduler.running,
                *scheduler.waiting,
                *(sequence for sequence, _ in scheduler.fetching.values()),
            )
        }
        if known != set(self.live):
            raise AssertionError(f"scheduled {known} differ from live {set(self.live)}")

    def _budget(self) -> int | None:
        """The paced budget while somebody would wait for a long step: at least a token for each running sequence."""
        if self._pace is None or len(self.live) <= 1:
            return None
        return max(self._pace.budget, len(self.scheduler.running) + LEAST)


class Pace:
    """The token budget of a step during which others wait, from the steps seen so far.

    What a step takes grows with its tokens, but not from zero and not alike at every depth; so nothing is modelled:
    each step that used its budget moves it, by at most a factor, to where that step would have taken `seconds`. Where
    steps that read no prompt take more than half of that already, the aim is twice what they take: a prompt that is
    read a few tokens at a time would keep everybody waiting longer in the end.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._tokens = float(min(FIRST, most))
        self._writing = 0.0

    @property
    def budget(self) -> int:
        """Tokens: a multiple of `LEAST` below `most`."""
        return self._most if self._tokens >= self._most else max(LEAST, int(self._tokens) // LEAST * LEAST)

    def learn(self, tokens: int, seconds: float, reads: bool = True) -> None:
        """A step of so many tokens took so long; `reads` says that it read of a prompt. One that was quick and below
        the budget says nothing about it."""
        if not reads:
            self._writing += _SHARE * (seconds - self._writing)
            return
        aim = max(self._seconds, 2 * self._writing)
        if tokens < self.budget and seconds <= aim:
            return
        # what a step takes without any prompt is no reason to read less
        fits = tokens * max(aim - self._writing, 1e-9) / max(seconds - self._writing, 1e-9)
        nearby = min(self._tokens * _MOST_CHANGE, max(self._tokens / _MOST_CHANGE, fits))
        self._tokens = min(float(self._most), max(float(LEAST), nearby))
