"""The scheduler without a model: every plan is legal, nobody starves, no block is lost."""

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.engine.blocks import BlockPool
from deepwell.engine.scheduler import Scheduler, SchedulerLimits, Segment, SequenceState, StepPlan


class Arrival(msgspec.Struct, frozen=True):
    step: int
    prompt: tuple[int, ...]
    answer: int
    score_prompt: bool
    abort_after: int | None


@st.composite
def arrivals(draw: st.DrawFn, capacity: int) -> list[Arrival]:
    """Prompts of few different tokens, so that they share prefixes often."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, capacity - 1))
        branch = draw(st.integers(0, length))
        prompt = tuple(1 if place < branch else 2 for place in range(length))
        found.append(
            Arrival(
                step=draw(st.integers(0, 20)),
                prompt=prompt,
                answer=draw(st.integers(1, 90)),
                score_prompt=draw(st.booleans()),
                abort_after=draw(st.none() | st.integers(0, 30)),
            )
        )
    return found


class World:
    """Runs a scheduler as the engine does and checks every step against a cache of (position, token) slots."""

    def __init__(self, blocks: int, limits: SchedulerLimits) -> None:
        self.capacity = blocks * 64
        self.limits = limits
        self.scheduler = Scheduler(BlockPool(blocks, b""), limits)
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}
        self.order: list[SequenceState] = []
        self.ends: dict[str, int] = {}
        self.next_wanted: dict[str, int] = {}
        self.steps = 0

    def arrive(self, arrival: Arrival) -> None:
        sequence = SequenceState(str(len(self.ends)), arrival.prompt, arrival.score_prompt)
        self.ends[sequence.id] = min(self.capacity, len(arrival.prompt) + arrival.answer)
        self.next_wanted[sequence.id] = 0 if arrival.score_prompt else len(arrival.prompt) - 1
        self.order.append(sequence)
        self.scheduler.add(sequence)

    def leave(self, sequence: SequenceState) -> None:
        self.order.remove(sequence)
        self.scheduler.remove(sequence)
        self.scheduler.check_integrity()

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.scheduler.check_integrity()
        self._check(plan)
        by_id = {sequence.id: sequence for sequence in self.order}
        for segment in plan.segments:
            sequence = by_id[segment.id]
            self.scheduler.commit(sequence, segment)
            if sequence.computed == len(sequence.tokens):
                assert segment.wanted > 0
                sequence.tokens.append(3 + len(sequence.tokens) % 5)
                if len(sequence.tokens) >= self.ends[sequence.id]:
                    self.leave(sequence)
        self.scheduler.check_integrity()
        self.steps += 1

    def _check(self, plan: StepPlan) -> None:
        """Budget, fairness, block tables, unique slots, contents, and which rows give logits."""
        assert [*self.scheduler.running, *self.scheduler.waiting] == self.order
        if self.order:
            assert plan.segments[0].id == self.order[0].id, "the oldest request must move every step"
        assert plan.tokens <= self.limits.token_budget
        assert len(plan.segments) <= len(self.scheduler.running) <= self.limits.max_running
        extra = sum(max(0, segment.wanted - 1) for segment in plan.segments)
        assert extra <= self.limits.scored_rows
        held = Counter(block for sequence in self.order for block in sequence.blocks)
        written: set[tuple[int, int]] = set()
        by_id = {sequence.id: sequence for sequence in self.order}
        for segment in plan.segments:
            self._check_segment(segment, by_id[segment.id], held, written)

    def _check_segment(
        self, segment: Segment, sequence: SequenceState, held: Counter[int], written: set[tuple[int, int]]
    ) -> None:
        end = segment.start + len(segment.tokens)
        assert segment.tokens == tuple(sequence.tokens[segment.start : end])
        assert len(segment.tokens) > 0
        assert segment.start == sequence.computed
        assert len(segment.blocks) == -(-end // 64)
        # Logits after each position are wanted exactly once, preempted or not, and in order.
        wanted = range(end - segment.wanted, end)
        first = self.next_wanted[segment.id]
        assert [*wanted] == [*range(first, end)]
        assert segment.start <= first
        self.next_wanted[segment.id] = max(first, end)
        for position in range(segment.start):
            slot = (segment.blocks[position // 64], position % 64)
            assert self.slots[slot] == (position, sequence.tokens[position])
        for position in range(segment.start, end):
            slot = (segment.blocks[position // 64], position % 64)
            assert slot not in written
            assert held[slot[0]] == 1, "a shared block must not be written"
            written.add(slot)
            self.slots[slot] = (position, sequence.tokens[position])


@given(st.data(), st.integers(1, 8), st.sampled_from([1, 7, 64, 100, 512]), st.integers(1, 6), st.sampled_from([0, 64]))
@settings(max_examples=150, deadline=None)
def test_every_plan_is_legal_and_everyone_finishes(
    data: st.DataObject, blocks: int, budget: int, max_running: int, scored_rows: int
) -> None:
    world = World(blocks, SchedulerLimits(budget, max_running, scored_rows))
    pending = sorted(data.draw(arrivals(world.capacity)), key=lambda arrival: arrival.step)
    deadline: dict[str, int] = {}
    while pending or world.order:
        while pending and pending[0].step <= world.steps:
            arrival = pending.pop(0)
            world.arrive(arrival)
            if arrival.abort_after is not None:
                deadline[world.order[-1].id] = world.steps + arrival.abort_after
        for sequence in [s for s in world.order if deadline.get(s.id, world.steps + 1) <= world.steps]:
            world.leave(sequence)
        world.step()
        # The oldest moves every step, so all the work done one by one is the most it can take.
        assert world.steps <= 20 + sum(world.ends.values()) + len(world.ends)
    assert world.scheduler.pool.free == blocks


def test_nothing_live_gives_an_empty_plan() -> None:
    assert Scheduler(BlockPool(1, b""), SchedulerLimits(8, 8)).plan().segments == ()


def test_a_prefix_hit_leaves_the_last_prompt_token_to_compute() -> None:
    """Two full blocks are cached, but the second holds the last token, whose logits are needed."""
    world = World(8, SchedulerLimits(512, 4))
    for _ in range(2):
        world.arrive(Arrival(step=0, prompt=(5,) * 128, answer=2, score_prompt=False, abort_after=None))
    first, second = world.order
    world.step()
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    world.step()
    world.arrive(Arrival(step=0, prompt=(5,) * 128, answer=2, score_prompt=False, abort_after=None))
    world.arrive(Arrival(step=0, prompt=(5,) * 129, answer=2, score_prompt=False, abort_after=None))
    world.arrive(Arrival(step=0, prompt=(5,) * 129, answer=2, score_prompt=True, abort_after=None))
    short, long, scored = world.order
    world.step()
    assert (short.cached_tokens, long.cached_tokens, scored.cached_tokens) == (64, 128, 0)


def test_the_youngest_gives_way_and_continues_later() -> None:
    world = World(4, SchedulerLimits(512, 4))
    for token in (1, 2):
        world.arrive(Arrival(step=0, prompt=(token,) * 127, answer=60, score_prompt=False, abort_after=None))
    old, young = world.order
    while world.scheduler.preemptions == 0:
        world.step()
    assert world.scheduler.running == [old]
    assert list(world.scheduler.waiting) == [young]
    assert (young.computed, young.blocks) == (0, [])
    assert len(young.tokens) > 127
    while world.order:
        world.step()
    assert world.scheduler.preemptions == 1


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    world = World(4, SchedulerLimits(512, 8))
    for length in (100, 200, 10):
        world.arrive(Arrival(step=0, prompt=(length,) * length, answer=5, score_prompt=False, abort_after=None))
    first, large, small = world.order
    world.step()
    assert world.scheduler.running == [first]
    assert list(world.scheduler.waiting) == [large, small]


def test_a_plan_becomes_the_batch_of_the_contract() -> None:
    plan = StepPlan(
        segments=(
            Segment(id="a", start=63, tokens=(7, 8), blocks=(4, 2), wanted=1),
            Segment(id="b", start=0, tokens=(9, 9, 9), blocks=(5,), wanted=0),
            Segment(id="c", start=0, tokens=(1, 2), blocks=(6,), wanted=2),
        )
    )
    batch = plan.batch()
    assert batch.tokens_T.tolist() == [7, 8, 9, 9, 9, 1, 2]
    assert batch.positions_T.tolist() == [63, 64, 0, 1, 2, 0, 1]
    assert batch.sequence_T.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch.block_table_SP.tolist() == [[4, 2], [5, 0], [6, 0]]
    assert batch.selected_L.tolist() == [1, 5, 6]
    assert {array.dtype for array in msgspec.structs.astuple(batch)} == {np.dtype(np.int32)}
    with pytest.raises(AttributeError):
        plan.segments = ()


def ready(scheduler: Scheduler, id: str, length: int) -> SequenceState:
    """A running sequence of `length` tokens that lacks its newest alone."""
    sequence = SequenceState(id, range(100, 100 + length - 1), False)
    scheduler.add(sequence)
    (segment,) = (s for s in scheduler.plan().segments if s.id == id)
    scheduler.commit(sequence, segment)
    sequence.tokens.append(7)
    return sequence


def test_drafts_take_what_is_left_over() -> None:
    scheduler = Scheduler(BlockPool(8, b""), SchedulerLimits(token_budget=40, max_running=3))
    ready(scheduler, "a", 10)
    ready(scheduler, "b", 20)
    scheduler.add(SequenceState("prompt", range(34), False))
    plan = scheduler.plan({"a": (1, 2, 3), "b": (4, 5), "prompt": (6,)})
    assert [(s.tokens, s.draft, s.wanted) for s in plan.segments[:2]] == [
        ((7, 1, 2, 3), (1, 2, 3), 4),
        ((7, 4), (4,), 2),
    ]
    assert (len(plan.segments[2].tokens), plan.segments[2].drafted, plan.tokens) == (34, 0, 40)


def test_drafts_keep_to_the_rows_that_may_be_scored() -> None:
    scheduler = Scheduler(BlockPool(8, b""), SchedulerLimits(token_budget=500, max_running=3, scored_rows=3))
    ready(scheduler, "a", 10)
    ready(scheduler, "b", 20)
    plan = scheduler.plan({"a": (1, 2), "b": (4, 5)})
    assert [(s.draft, s.wanted) for s in plan.segments] == [((1, 2), 3), ((4,), 2)]


@pytest.mark.parametrize(("blocks", "drafted"), [(2, 2), (3, 4)])
def test_drafts_take_free_blocks_and_preempt_nobody(blocks: int, drafted: int) -> None:
    scheduler = Scheduler(BlockPool(blocks, b""), SchedulerLimits(token_budget=500, max_running=3))
    sequence = ready(scheduler, "a", 62)
    ready(scheduler, "b", 10)
    plan = scheduler.plan({"a": (1, 2, 3, 4)})
    assert plan.segments[0].drafted == drafted
    assert len(plan.segments[0].blocks) == len(sequence.blocks) == blocks - 1
    assert scheduler.preemptions == 0
    scheduler.check_integrity()


@pytest.mark.parametrize("right", range(5))
def test_only_what_was_accepted_is_computed_and_sealed(right: int) -> None:
    scheduler = Scheduler(BlockPool(4, b""), SchedulerLimits(token_budget=500, max_running=3))
    sequence = ready(scheduler, "a", 62)
    draft = (1, 2, 3, 4)
    (segment,) = scheduler.plan({"a": draft}).segments
    sequence.tokens += [*draft[:right], 50]
    scheduler.commit(sequence, segment)
    assert sequence.computed == 62 + right == len(sequence.tokens) - 1
    assert scheduler.pool.cached == (62 + right) // 64
    (following,) = scheduler.plan().segments
    assert (following.start, following.tokens, following.wanted) == (62 + right, (50,), 1)
