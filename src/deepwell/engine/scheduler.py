"""Which tokens are computed next. Pure: it reads no clock and no model, and the same calls give the same plans.

There is no prefill phase and no decode phase. A sequence has tokens known and tokens computed; each step computes some
of the missing ones, oldest sequence first, within one budget of tokens. Where several accounts have sequences, they
take turns by what they were served (shares.py).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from deepwell.engine.blocks import Pools, block_key
from deepwell.engine.shares import Shares, youngest_of_richest
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.ops.paging import Page

_log = logging.getLogger(__name__)

_LEAST_SHARE = 8
"""Tokens of a prompt that are worth a place in a shared step."""


class SequenceState:
    """`computed` of the `tokens` known are in the cache, in the blocks of `tables`, one block table per cache group.

    `scope` and `extras` enter the keys of its blocks, so that a hit means more than equal token ids: `scope` is who
    may share them, `extras` are (position, digest) of what stands behind a token, such as an image. `account` is whose
    it is, and `priority` whether it comes before others: see Shares.
    """

    def __init__(
        self,
        id: str,
        prompt: Sequence[int],
        score_prompt: bool,
        *,
        scope: bytes = b"",
        extras: Sequence[tuple[int, bytes]] = (),
        account: int = 0,
        priority: int = 0,
    ) -> None:
        self.id = id
        self.account, self.priority = account, priority
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.computed = 0
        # Logits after every position before this one have been taken, or are of no interest.
        self.scored = 0 if score_prompt else len(prompt) - 1
        self.tables: list[list[int]] = []
        self.told: list[int] | None = None
        """Entries of each table that a plan has told; None while it holds nothing."""
        self.cached_tokens: int | None = None
        self._scope, self._extras = scope, sorted(extras)
        self._keys: dict[int, list[bytes]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether it lacks its newest token alone."""
        return self.computed == len(self.tokens) - 1

    def keys(self, group: int, count: int, root: bytes, block_tokens: int) -> list[bytes]:
        """Chain keys of the first `count` full blocks of `block_tokens` tokens, by cache group."""
        keys = self._keys.setdefault(group, [])
        while len(keys) < count:
            start = len(keys) * block_tokens
            end = start + block_tokens
            more = b"" if keys or not self._scope else _framed(0, self._scope)
            more += b"".join(_framed(1 + at - start, what) for at, what in self._extras if start <= at < end)
            keys.append(block_key(keys[-1] if keys else root, self.tokens[start:end], more))
        return keys[:count]


class Segment(msgspec.Struct, frozen=True):
    """Consecutive tokens of one sequence to compute: `tokens` stand at positions from `start` on.

    `blocks` are the entries that its block tables, one per cache group, have gained since its last segment; with
    `fresh` its tables begin anew. The last `wanted` rows give logits. The last `drafted` tokens are guesses at what the
    answer will say, to be checked by the logits of the rows before them.
    """

    id: str
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    wanted: int
    drafted: int = 0
    fresh: bool = False

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def draft(self) -> tuple[int, ...]:
        return self.tokens[len(self.tokens) - self.drafted :]

    @property
    def reads(self) -> bool:
        """Whether it reads a prompt: more than the newest token and guesses."""
        return len(self.tokens) > 1 + self.drafted


class Fetch(msgspec.Struct, frozen=True):
    """Blocks to be filled from a slower tier before sequence `id` can run: `blocks` of the first cache group under
    `keys`, for its tokens from `start` on."""

    id: str
    start: int
    blocks: tuple[int, ...]
    keys: tuple[bytes, ...]


class Tier(Protocol):
    """A slower tier of the cache, which keeps pages under the keys of their blocks."""

    def match(self, keys: Sequence[bytes]) -> int:
        """How many of these blocks, from the first on, could be fetched. Reads nothing."""
        ...

    def fetch(self, fetch: Fetch) -> None:
        """Begin to read. What was asked for arrives later, in any order."""
        ...

    def arrived(self, wait: bool) -> Sequence[tuple[Fetch, Sequence[Page]]]:
        """Fetches that are over, each with the pages that were there, from its first on. With `wait`, for a moment
        until there is one."""
        ...


class StepPlan(msgspec.Struct, frozen=True):
    """All that crosses from the scheduler to the runner for one step: what is computed, and what has changed.

    `gone` are the sequences that ended or gave way since the plan before; their tables may be forgotten. `fetches` are
    to be begun; the scheduler wants to hear of each by `fetched`.
    """

    segments: tuple[Segment, ...]
    gone: tuple[str, ...] = ()
    fetches: tuple[Fetch, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(segment.tokens) for segment in self.segments)


class SchedulerLimits(msgspec.Struct, frozen=True):
    """`token_budget` tokens computed and `max_running` sequences served per step.

    Rows whose logits are wanted cost memory of the vocabulary's width: besides one per sequence, a step takes at most
    `scored_rows` of them (scoring a prompt wants them all).
    """

    token_budget: int
    max_running: int
    scored_rows: int = BLOCK_TOKENS


class Part(msgspec.Struct):
    """A segment in the making: the sequence's tokens up to `end`, and a draft behind them."""

    sequence: SequenceState
    end: int
    draft: tuple[int, ...] = ()


class Scheduler:
    """Continuous batching over block pools: first come, first served in each account, the youngest gives way.

    A sequence enters `running` when the blocks for all its known tokens are there, so that only growing answers can
    run out. Then the youngest running sequence is preempted: it gives its blocks back, keeps its tokens, returns to
    the front of the queue and is computed again later. The oldest can take everything, so it always moves on. Of
    several accounts, the one with the most sequences running gives way, also to one that waits and has two fewer.

    Sequences in `fetching` hold blocks that a slower tier is filling; they run when `fetched` says so.
    """

    def __init__(self, pools: Pools, limits: SchedulerLimits, tier: Tier | None = None) -> None:
        self.pools = pools
        self.limits = limits
        self._tier = tier
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.fetching: dict[str, tuple[SequenceState, Fetch]] = {}
        self.preemptions = 0
        self.shares = Shares()
        self._gone: list[str] = []
        self._fetches: list[Fetch] = []

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence. It must fit into the pools alone."""
        sequence.tables = self.pools.empty()
        self.shares.enter(sequence.account)
        self.waiting.append(sequence)

    def remove(self, sequence: SequenceState, forget: bool = False) -> None:
        """Take a sequence out, finished or not; with `forget`, what it computed is not offered to others."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif self.fetching.pop(sequence.id, None) is None:
            self.waiting.remove(sequence)
        self.shares.leave(sequence.account)
        self._release(sequence, forget)

    def plan(self, drafts: Mapping[str, Sequence[int]] | None = None, budget: int | None = None) -> StepPlan:
        """Choose the next step's tokens, at most `budget`, taking blocks for them. Empty only when nothing can run.

        With a `budget`, a step is short because others wait: every running answer gets its token, and prompts share
        what is left, the oldest half of it, the next one half of the rest, and so on. `drafts` are guesses at the
        tokens that follow those known, by sequence; they get what known tokens leave over.
        """
        shared = budget is not None or self.shares.several
        budget = min(self.limits.token_budget, budget or self.limits.token_budget)
        scored_rows = self.limits.scored_rows
        parts: list[Part] = []
        turns, full = self._turns(), False
        while budget > 0 and (len(parts) < len(turns) or (not full and self._has(turns))):
            sequence = turns[len(parts)]
            most = self._share(turns, len(parts), budget) if shared else budget
            end = min(_end(sequence, most, scored_rows), self.pools.end(sequence))
            if not self._grow(sequence, end, turns, len(parts)):
                full = True
                continue
            parts.append(Part(sequence, end))
            budget -= end - sequence.computed
            scored_rows -= max(0, _wanted(sequence, end) - 1)
        for part in parts if shared else ():  # what the others have left over
            longer = self._longer(part, budget, scored_rows)
            budget -= longer - part.end
            scored_rows -= max(0, _wanted(part.sequence, longer) - max(1, _wanted(part.sequence, part.end)))
            part.end = longer
        if drafts:
            self._add_drafts(parts, drafts, budget, scored_rows)
        fetches, self._fetches = self._fetches, []
        if not parts:
            return StepPlan((), fetches=tuple(fetches))
        for part in parts:
            self.shares.charge(part.sequence.account, part.end - part.sequence.computed)
        gone, self._gone = self._gone, []
        return StepPlan(tuple(map(_segment, parts)), tuple(gone), tuple(fetches))

    def commit(self, sequence: SequenceState, segment: Segment) -> None:
        """The tokens of `segment` are computed; seal the blocks that became full.

        Of a draft only what the sequence has taken over counts, short of its newest token. The slots of the others
        will be written again.
        """
        end = segment.end
        sequence.computed = min(end, max(end - segment.drafted, len(sequence.tokens) - 1))
        sequence.scored = max(sequence.scored, sequence.computed)
        self.pools.seal(sequence, segment.start)

    def awaits(self, fetch: Fetch) -> bool:
        """Whether the blocks of a fetch are still to be filled: its sequence may have ended meanwhile."""
        return fetch.id in self.fetching and self.fetching[fetch.id][1] is fetch

    def fetched(self, fetch: Fetch, count: int) -> None:
        """The first `count` blocks of an awaited fetch are filled; the sequence runs and computes the others."""
        sequence, _ = self.fetching.pop(fetch.id)
        sequence.computed = fetch.start + count * self.pools.groups[0].block_tokens
        self.pools.seal(sequence, fetch.start)
        self._run(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is lost, held by nobody known, or a sequence's numbers disagree."""
        self.pools.check_integrity([*self.running, *(sequence for sequence, _ in self.fetching.values())])
        for sequence in self.waiting:
            if any(sequence.tables) or sequence.computed:
                raise AssertionError(f"waiting sequence {sequence.id} holds blocks")
        for sequence in self.running:
            room = len(sequence.tables[0]) * self.pools.groups[0].block_tokens
            if not sequence.computed <= len(sequence.tokens) <= room + 1:
                raise AssertionError(f"running sequence {sequence.id} has tokens without blocks")

    def _turns(self) -> list[SequenceState]:
        """The running sequences in the order in which they get of a step: by age, or by turns of the accounts."""
        if not self.shares.several:
            return list(self.running)
        self._make_places()
        return self.shares.turns(self.running)

    def _make_places(self) -> None:
        """Admit who waits, an account with too many places giving way to one with at least two fewer whose turn it is.

        So the first answer of one account does not wait for the end of another's hundred.
        """
        while (sequence := self.shares.next(self.waiting)) is not None:
            if self._admit():
                continue
            places = self._places()
            rich = [
                one
                for one in self.running
                if places[one.account] >= places[sequence.account] + 2 and self.shares.comes_before(sequence, one)
            ]
            if not rich:
                return
            self._preempt(youngest_of_richest(rich, places))

    def _places(self) -> Counter[int]:
        """How many sequences each account has that hold blocks."""
        fetching = (sequence for sequence, _ in self.fetching.values())
        return Counter(sequence.account for sequence in (*self.running, *fetching))

    def _share(self, turns: Sequence[SequenceState], place: int, budget: int) -> int:
        """How much of the rest of a shared budget the sequence whose turn is number `place` may have."""
        behind = turns[place + 1 :]
        left = budget - sum(sequence.is_ready for sequence in behind)
        if turns[place].is_ready or not (behind or self.waiting):
            return max(1, left)
        return max(1, min(left, max(_LEAST_SHARE, left // 2)))

    def _longer(self, part: Part, budget: int, scored_rows: int) -> int:
        """Where a part may end with `budget` more tokens and `scored_rows` more rows of logits, preempting nobody."""
        sequence, had = part.sequence, max(0, _wanted(part.sequence, part.end) - 1)
        most = part.end - sequence.computed + budget
        end = min(_end(sequence, most, had + scored_rows), self.pools.end(sequence))
        return end if end > part.end and self.pools.grow(sequence, len(sequence.tokens), end) else part.end

    def _has(self, turns: list[SequenceState]) -> bool:
        """Whether one more sequence can be admitted to have a turn."""
        had = running = len(self.running)
        while running == had and self._admit():  # one that waits for a fetch does not run yet
            running = len(self.running)
        turns += self.running[had:]
        return running > had

    def _admit(self) -> bool:
        """Take in whose turn it is if there is a place and all its blocks; nobody overtakes it."""
        if len(self.running) + len(self.fetching) >= self.limits.max_running:
            return False
        sequence = self.shares.next(self.waiting)
        if sequence is None:
            return False
        hit = self.pools.match(sequence, sequence.scored)
        if not self.pools.take(sequence, hit, len(sequence.tokens)):
            return False
        self.waiting.remove(sequence)
        sequence.computed = hit
        sequence.told = [0] * len(sequence.tables)
        if not self._fetch(sequence):
            self._run(sequence)
        return True

    def _fetch(self, sequence: SequenceState) -> bool:
        """Let the sequence wait for blocks behind its hits that a slower tier has; False if that has none."""
        if self._tier is None or len(self.pools.groups) > 1:  # a page holds the layers of one group
            return False
        size = self.pools.groups[0].block_tokens
        first = sequence.computed // size
        keys = self.pools.keys(sequence, 0, sequence.scored // size)[first:]
        try:
            count = min(self._tier.match(keys), len(keys))
        except Exception:
            _log.exception("a tier of the cache failed")
            return False
        if count <= 0:
            return False
        blocks = tuple(sequence.tables[0][first : first + count])
        fetch = Fetch(sequence.id, sequence.computed, blocks, tuple(keys[:count]))
        self._fetches.append(fetch)
        self.fetching[sequence.id] = sequence, fetch
        return True

    def _run(self, sequence: SequenceState) -> None:
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        self.running.append(sequence)

    def _grow(self, sequence: SequenceState, end: int, turns: list[SequenceState], place: int) -> bool:
        """Give the sequence of a turn the blocks for its next tokens, preempting the youngest of the account with the
        most, among those whose turn is not over; False if that was itself."""
        while not self.pools.grow(sequence, len(sequence.tokens), end):
            left = set(turns[place:])
            victim = youngest_of_richest((one for one in self.running if one in left), self._places())
            turns.remove(victim)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: SequenceState) -> None:
        """Take back a running sequence's blocks; it waits in front of those that came after it."""
        self.running.remove(victim)
        self._release(victim)
        self.waiting.appendleft(victim)
        self.preemptions += 1

    def _add_drafts(
        self, parts: list[Part], drafts: Mapping[str, Sequence[int]], budget: int, scored_rows: int
    ) -> None:
        """Lengthen parts by their drafts as far as budget, rows and free blocks go. Preempts nobody."""
        for part in parts:
            sequence = part.sequence
            draft = drafts.get(sequence.id, ()) if part.end == len(sequence.tokens) else ()
            count = min(len(draft), budget, scored_rows)
            if count > 0:
                self.pools.grow(sequence, part.end + count, part.end + count)
                count = min(count, self.pools.room(sequence) - part.end)
            budget -= count
            scored_rows -= count
            part.draft = tuple(draft[:count])

    def _release(self, sequence: SequenceState, forget: bool = False) -> None:
        if sequence.told is not None:
            self._gone.append(sequence.id)
        self.pools.release(sequence, forget)
        sequence.computed = 0
        sequence.told = None


def _end(sequence: SequenceState, budget: int, scored_rows: int) -> int:
    """Where the next tokens of a running sequence end: at most `budget`, with at most 1 + `scored_rows` of logits."""
    start = sequence.computed
    return min(len(sequence.tokens), start + budget, max(start, sequence.scored) + 1 + scored_rows)


def _wanted(sequence: SequenceState, end: int) -> int:
    """Rows whose logits are wanted when tokens up to `end` are computed."""
    return max(0, end - max(sequence.computed, sequence.scored))


def _segment(part: Part) -> Segment:
    """The part as a plan says it; the sequence's tables are told from here on."""
    sequence, told = part.sequence, part.sequence.told
    assert told is not None
    blocks = tuple(tuple(table[known:]) for table, known in zip(sequence.tables, told, strict=True))
    sequence.told = [len(table) for table in sequence.tables]
    return Segment(
        id=sequence.id,
        start=sequence.computed,
        tokens=(*sequence.tokens[sequence.computed : part.end], *part.draft),
        blocks=blocks,
        wanted=_wanted(sequence, part.end) + len(part.draft),
        drafted=len(part.draft),
        fresh=not any(told),
    )


def _framed(place: int, what: bytes) -> bytes:
    """So that no two lists of things read alike when they stand one after the other."""
    return place.to_bytes(4, "little") + len(what).to_bytes(4, "little") + what
