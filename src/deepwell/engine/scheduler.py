"""Which tokens are computed next. Pure: it reads no clock and no model, and the same calls give the same plans.

There is no prefill phase and no decode phase. A sequence has tokens known and tokens computed; each step computes some
of the missing ones, oldest sequence first, within one budget of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from deepwell.engine.blocks import BlockPool, block_key
from deepwell.ops.base import BLOCK_TOKENS, Batch


class Segment(msgspec.Struct, frozen=True):
    """Consecutive tokens of one sequence to compute: `tokens` stand at positions from `start` on.

    `blocks` is the block table that covers them. The last `wanted` rows give logits. The last `drafted` tokens are
    guesses at what the answer will say, to be checked by the logits of the rows before them.
    """

    id: str
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    wanted: int
    drafted: int = 0

    @property
    def draft(self) -> tuple[int, ...]:
        return self.tokens[len(self.tokens) - self.drafted :]


class StepPlan(msgspec.Struct, frozen=True):
    """All that crosses from the scheduler to the runner for one step."""

    segments: tuple[Segment, ...]

    @property
    def tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)

    def batch(self) -> Batch:
        """The plan as arrays; unused entries of the block tables are 0."""
        lengths = [len(segment.tokens) for segment in self.segments]
        ends = np.cumsum(lengths)
        pages = max(len(segment.blocks) for segment in self.segments)
        table_SP = np.zeros((len(self.segments), pages), np.int32)
        for row, segment in zip(table_SP, self.segments, strict=True):
            row[: len(segment.blocks)] = segment.blocks
        positions = [np.arange(s.start, s.start + n) for s, n in zip(self.segments, lengths, strict=True)]
        selected = [np.arange(end - s.wanted, end) for s, end in zip(self.segments, ends, strict=True)]
        return Batch(
            tokens_T=np.concatenate([segment.tokens for segment in self.segments]).astype(np.int32),
            positions_T=np.concatenate(positions).astype(np.int32),
            sequence_T=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
            block_table_SP=table_SP,
            selected_L=np.concatenate(selected).astype(np.int32),
        )


class SchedulerLimits(msgspec.Struct, frozen=True):
    """`token_budget` tokens computed and `max_running` sequences served per step.

    Rows whose logits are wanted cost memory of the vocabulary's width: besides one per sequence, a step takes at most
    `scored_rows` of them (scoring a prompt wants them all).
    """

    token_budget: int
    max_running: int
    scored_rows: int = BLOCK_TOKENS


class SequenceState:
    """One live request as the scheduler sees it."""

    def __init__(self, id: str, prompt: Sequence[int], score_prompt: bool) -> None:
        self.id = id
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.computed = 0
        # Logits after every position before this one have been taken, or are of no interest.
        self.scored = 0 if score_prompt else len(prompt) - 1
        self.blocks: list[int] = []
        self.cached_tokens: int | None = None
        self._keys: list[bytes] = []

    def keys(self, count: int, root: bytes) -> list[bytes]:
        """Chain keys of the first `count` full blocks."""
        while len(self._keys) < count:
            start = len(self._keys) * BLOCK_TOKENS
            parent = self._keys[-1] if self._keys else root
            self._keys.append(block_key(parent, self.tokens[start : start + BLOCK_TOKENS]))
        return self._keys[:count]


class Scheduler:
    """Continuous batching over a block pool: first come, first served, the youngest gives way.

    A sequence enters `running` when the blocks for all its known tokens are there, so that only growing answers can
    run out. Then the youngest running sequence is preempted: it gives its blocks back, keeps its tokens, returns to
    the front of the queue and is computed again later. The oldest can take everything, so it always moves on.
    """

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.preemptions = 0

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence. It must fit into the pool alone."""
        self.waiting.append(sequence)

    def remove(self, sequence: SequenceState, forget: bool = False) -> None:
        """Take a sequence out, finished or not; with `forget`, what it computed is not offered to others."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        if forget:
            for block in sequence.blocks:
                self.pool.forget(block)
        self._release(sequence)

    def plan(self, drafts: Mapping[str, Sequence[int]] | None = None) -> StepPlan:
        """Choose the next step's tokens, taking blocks for them. Empty only when nothing is live.

        `drafts` are guesses at the tokens that follow those known, by sequence; they get what known tokens leave over.
        """
        budget, scored_rows = self.limits.token_budget, self.limits.scored_rows
        segments: list[Segment] = []
        place = 0
        while budget > 0:
            if place == len(self.running) and not self._admit():
                break
            sequence = self.running[place]
            if not self._grow(sequence):
                break
            segment = _segment(sequence, budget, scored_rows)
            budget -= len(segment.tokens)
            scored_rows -= max(0, segment.wanted - 1)
            segments.append(segment)
            place += 1
        if drafts:
            segments = self._with_drafts(segments, drafts, budget, scored_rows)
        return StepPlan(segments=tuple(segments))

    def commit(self, sequence: SequenceState, segment: Segment) -> None:
        """The tokens of `segment` are computed; seal the blocks that became full.

        Of a draft only what the sequence has taken over counts, short of its newest token. The slots of the others
        will be written again.
        """
        end = segment.start + len(segment.tokens)
        sequence.computed = min(end, max(end - segment.drafted, len(sequence.tokens) - 1))
        sequence.scored = max(sequence.scored, sequence.computed)
        full = sequence.computed // BLOCK_TOKENS
        keys = sequence.keys(full, self.pool.root)
        for index in range(segment.start // BLOCK_TOKENS, full):
            self.pool.seal(sequence.blocks[index], keys[index])

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is lost, held by nobody known, or a sequence's numbers disagree."""
        self.pool.check_integrity([sequence.blocks for sequence in self.running])
        for sequence in self.waiting:
            if sequence.blocks or sequence.computed:
                raise AssertionError(f"waiting sequence {sequence.id} holds blocks")
        for sequence in self.running:
            if not sequence.computed <= len(sequence.tokens) <= len(sequence.blocks) * BLOCK_TOKENS + 1:
                raise AssertionError(f"running sequence {sequence.id} has tokens without blocks")

    def _admit(self) -> bool:
        """Move the head of the queue to `running` if there is a place and all its blocks; nobody overtakes it."""
        if not self.waiting or len(self.running) >= self.limits.max_running:
            return False
        sequence = self.waiting[0]
        reusable = sequence.scored // BLOCK_TOKENS
        hits = self.pool.match(sequence.keys(reusable, self.pool.root))
        missing = _blocks_for(len(sequence.tokens)) - len(hits)
        if missing > self.pool.available(hits):
            return False
        self.pool.hold(hits)
        sequence.blocks = hits + self.pool.allocate(missing)
        sequence.computed = len(hits) * BLOCK_TOKENS
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self.running.append(self.waiting.popleft())
        return True

    def _grow(self, sequence: SequenceState) -> bool:
        """Give a sequence the block for its newest token, preempting the youngest; False if that was itself."""
        while _blocks_for(len(sequence.tokens)) > len(sequence.blocks):
            if self.pool.free:
                sequence.blocks += self.pool.allocate(1)
                continue
            victim = self.running.pop()
            self._release(victim)
            self.waiting.appendleft(victim)
            self.preemptions += 1
            if victim is sequence:
                return False
        return True

    def _with_drafts(
        self, segments: list[Segment], drafts: Mapping[str, Sequence[int]], budget: int, scored_rows: int
    ) -> list[Segment]:
        """The segments, lengthened by their drafts as far as budget, rows and free blocks go. Preempts nobody."""
        longer: list[Segment] = []
        for segment, sequence in zip(segments, self.running, strict=False):
            end = segment.start + len(segment.tokens)
            draft = drafts.get(segment.id, ()) if end == len(sequence.tokens) else ()
            count = self._room(sequence, end, min(len(draft), budget, scored_rows))
            budget -= count
            scored_rows -= count
            longer.append(_drafting(segment, sequence, draft[:count]) if count else segment)
        return longer

    def _room(self, sequence: SequenceState, end: int, count: int) -> int:
        """How many of `count` more tokens have slots, once free blocks are taken for them."""
        missing = _blocks_for(end + count) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks += self.pool.allocate(min(missing, self.pool.free))
        return min(count, len(sequence.blocks) * BLOCK_TOKENS - end)

    def _release(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _segment(sequence: SequenceState, budget: int, scored_rows: int) -> Segment:
    """The next tokens of a running sequence, at most `budget`, with at most 1 + `scored_rows` rows of logits."""
    start = sequence.computed
    end = min(len(sequence.tokens), start + budget, max(start, sequence.scored) + 1 + scored_rows)
    return Segment(
        id=sequence.id,
        start=start,
        tokens=tuple(sequence.tokens[start:end]),
        blocks=tuple(sequence.blocks[: _blocks_for(end)]),
        wanted=max(0, end - max(start, sequence.scored)),
    )


def _drafting(segment: Segment, sequence: SequenceState, draft: Sequence[int]) -> Segment:
    end = segment.start + len(segment.tokens) + len(draft)
    return Segment(
        id=segment.id,
        start=segment.start,
        tokens=(*segment.tokens, *draft),
        blocks=tuple(sequence.blocks[: _blocks_for(end)]),
        wanted=segment.wanted + len(draft),
        drafted=len(draft),
    )
