"""The scheduler without a model: every plan is legal, nobody starves, no block is lost."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.engine.blocks import GONE, Pools
from deepwell.engine.runner import BlockTables
from deepwell.engine.scheduler import Scheduler, SchedulerLimits, Segment, SequenceState, StepPlan
from deepwell.ops.paging import CacheGroup


class Arrival(msgspec.Struct, frozen=True):
    step: int
    prompt: tuple[int, ...]
    answer: int
    score_prompt: bool
    abort_after: int | None
    account: int = 0
    priority: int = 0


@st.composite
def arrivals(draw: st.DrawFn, capacity: int, accounts: int = 1) -> list[Arrival]:
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
                account=draw(st.integers(1, accounts)),
                priority=draw(st.integers(-1, 1)) if accounts > 1 else 0,
            )
        )
    return found


def scheduler_of(limits: SchedulerLimits, blocks: int) -> Scheduler:
    return Scheduler(Pools((CacheGroup(blocks),), b""), limits)


class World:
    """Runs a scheduler as the engine does and checks every step against a cache of (position, token) slots per group,
    through block tables that are kept by what plans say has changed."""

    def __init__(
        self, groups: tuple[CacheGroup, ...], limits: SchedulerLimits, shared: int | None = None, alone: bool = True
    ) -> None:
        self.groups = groups
        self.alone = alone
        self.shared = shared
        self.limits = limits
        self.scheduler = Scheduler(Pools(groups, b""), limits)
        self.capacity = self.scheduler.pools.capacity
        self.tables = BlockTables(len(groups))
        self.slots: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in groups]
        self.order: list[SequenceState] = []
        self.ends: dict[str, int] = {}
        self.next_wanted: dict[str, int] = {}
        self.steps = 0

    def arrive(self, arrival: Arrival) -> None:
        who = {"account": arrival.account, "priority": arrival.priority}
        sequence = SequenceState(str(len(self.ends)), arrival.prompt, arrival.score_prompt, **who)
        self.ends[sequence.id] = min(self.capacity, len(arrival.prompt) + arrival.answer)
        self.next_wanted[sequence.id] = 0 if arrival.score_prompt else len(arrival.prompt) - 1
        self.order.append(sequence)
        self.scheduler.add(sequence)

    def leave(self, sequence: SequenceState) -> None:
        self.order.remove(sequence)
        self.scheduler.remove(sequence)
        self.scheduler.check_integrity()

    def step(self) -> None:
        ready = {s.id for s in self.scheduler.running if s.is_ready}
        plan = self.scheduler.plan(None, self.shared)
        room = self.shared or 0 if self.alone else min(self.shared or 0, self.limits.token_budget)
        if room > 2 * self.limits.max_running and not self.scheduler.preemptions:
            assert ready <= {segment.id for segment in plan.segments}, "every answer gets its token"
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
        if self.scheduler.shares.several:
            assert {*self.scheduler.running, *self.scheduler.waiting} == {*self.order}
            assert plan.segments, "somebody must move every step"
        elif self.alone:
            assert [*self.scheduler.running, *self.scheduler.waiting] == self.order
            if self.order:
                assert plan.segments[0].id == self.order[0].id, "the oldest request must move every step"
        assert plan.tokens <= self.limits.token_budget
        assert len(plan.segments) <= len(self.scheduler.running) <= self.limits.max_running
        extra = sum(max(0, segment.wanted - 1) for segment in plan.segments)
        assert extra <= self.limits.scored_rows
        for id in plan.gone:
            self.tables.forget(id)
        self.tables.update(plan)
        by_id = {sequence.id: sequence for sequence in self.order}
        for segment in plan.segments:
            self._check_segment(segment, by_id[segment.id])
        for index in range(len(self.groups)):
            self._check_slots(plan, by_id, index)

    def _check_segment(self, segment: Segment, sequence: SequenceState) -> None:
        assert segment.tokens == tuple(sequence.tokens[segment.start : segment.end])
        assert len(segment.tokens) > 0
        assert segment.start == sequence.computed
        # Logits after each position are wanted exactly once, preempted or not, and in order.
        wanted = range(segment.end - segment.wanted, segment.end)
        first = self.next_wanted[segment.id]
        assert [*wanted] == [*range(first, segment.end)]
        assert segment.start <= first
        self.next_wanted[segment.id] = max(first, segment.end)

    def _check_slots(self, plan: StepPlan, by_id: dict[str, SequenceState], index: int) -> None:
        """All that rows look at is there, in blocks told by plans; what they write is theirs alone."""
        group, slots = self.groups[index], self.slots[index]
        held = Counter(block for sequence in self.order for block in (sequence.tables or [[]] * 9)[index])
        written: set[tuple[int, int]] = set()
        for segment in plan.segments:
            sequence = by_id[segment.id]
            table = self.tables.tables[index][self.tables.rows[segment.id]]
            places = {p: (int(table[p // group.block_tokens]), p % group.block_tokens) for p in range(segment.end)}
            reach = segment.end if group.reach is None else group.reach
            for position in range(max(0, segment.start - reach + 1), segment.start):
                assert slots[places[position]] == (position, sequence.tokens[position])
            for position in range(segment.start, segment.end):
                slot = places[position]
                assert slot not in written
                assert held[slot[0]] == 1, "a shared block must not be written"
                written.add(slot)
                slots[slot] = (position, sequence.tokens[position])


GROUPS = st.sampled_from(
    [
        (CacheGroup(8),),
        (CacheGroup(3),),
        (CacheGroup(6), CacheGroup(4, reach=100)),
        (CacheGroup(5), CacheGroup(40, block_tokens=16, reach=40)),
        (CacheGroup(24, block_tokens=16), CacheGroup(4, block_tokens=96), CacheGroup(9, 32, reach=33)),
        (CacheGroup(4), CacheGroup(2, block_tokens=256, reach=1)),
    ]
)


@given(
    st.data(),
    GROUPS,
    st.sampled_from([1, 7, 64, 100, 512]),
    st.integers(1, 6),
    st.sampled_from([0, 64]),
    st.none() | st.integers(1, 80),
    st.integers(1, 3),
)
@settings(max_examples=250, deadline=None)
def test_every_plan_is_legal_and_everyone_finishes(
    data: st.DataObject,
    groups: tuple[CacheGroup, ...],
    budget: int,
    max_running: int,
    scored_rows: int,
    shared: int | None,
    accounts: int,
) -> None:
    world = World(groups, SchedulerLimits(budget, max_running, scored_rows), shared, alone=accounts == 1)
    pending = sorted(data.draw(arrivals(world.capacity, accounts)), key=lambda arrival: arrival.step)
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
    assert [pool.free for pool in world.scheduler.pools.pools] == [group.blocks for group in groups]


def test_nothing_live_gives_an_empty_plan() -> None:
    assert scheduler_of(SchedulerLimits(8, 8), 1).plan().segments == ()


def test_a_prefix_hit_leaves_the_last_prompt_token_to_compute() -> None:
    """Two full blocks are cached, but the second holds the last token, whose logits are needed."""
    world = World((CacheGroup(8),), SchedulerLimits(512, 4))
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
    world = World((CacheGroup(4),), SchedulerLimits(512, 4))
    for token in (1, 2):
        world.arrive(Arrival(step=0, prompt=(token,) * 127, answer=60, score_prompt=False, abort_after=None))
    old, young = world.order
    while world.scheduler.preemptions == 0:
        world.step()
    assert world.scheduler.running == [old]
    assert list(world.scheduler.waiting) == [young]
    assert (young.computed, young.tables) == (0, [[]])
    assert len(young.tokens) > 127
    while world.order:
        world.step()
    assert world.scheduler.preemptions == 1


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    world = World((CacheGroup(4),), SchedulerLimits(512, 8))
    for length in (100, 200, 10):
        world.arrive(Arrival(step=0, prompt=(length,) * length, answer=5, score_prompt=False, abort_after=None))
    first, large, small = world.order
    world.step()
    assert world.scheduler.running == [first]
    assert list(world.scheduler.waiting) == [large, small]


def test_a_plan_becomes_the_batch_of_the_contract() -> None:
    plan = StepPlan(
        segments=(
            Segment(id="a", start=63, tokens=(7, 8), blocks=((4, 2),), wanted=1),
            Segment(id="b", start=0, tokens=(9, 9, 9), blocks=((5,),), wanted=0),
            Segment(id="c", start=0, tokens=(1, 2), blocks=((6,),), wanted=2),
        )
    )
    tables = BlockTables(1)
    tables.update(plan)
    batch = tables.batch(plan.segments)
    assert batch.tokens_T.tolist() == [7, 8, 9, 9, 9, 1, 2]
    assert batch.positions_T.tolist() == [63, 64, 0, 1, 2, 0, 1]
    a, b, c = (tables.rows[id] for id in "abc")
    assert batch.sequence_T.tolist() == [a, a, b, b, b, c, c]
    assert batch.block_table_SP[a, :2].tolist() == [4, 2]
    assert batch.block_table_SP[b, 0] == 5
    assert batch.block_table_SP[c, 0] == 6
    assert batch.selected_L.tolist() == [1, 5, 6]
    arrays = (batch.tokens_T, batch.positions_T, batch.sequence_T, batch.block_table_SP, batch.selected_L)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    with pytest.raises(AttributeError):
        plan.segments = ()


def test_plans_say_only_what_changed() -> None:
    """However long a sequence is, a step that adds a token tells no block, or one."""
    world = World((CacheGroup(600),), SchedulerLimits(20_000, 4))
    world.arrive(Arrival(step=0, prompt=(1,) * 19_999, answer=200, score_prompt=False, abort_after=None))
    told = []
    plan = world.scheduler.plan
    world.scheduler.plan = lambda *a: told.append(plan(*a)) or told[-1]  # type: ignore[method-assign]
    while world.order:
        world.step()
    assert [len(p.segments[0].blocks[0]) for p in told[:1]] == [313]
    assert sum(len(p.segments[0].blocks[0]) for p in told[1:]) == 3


def test_a_group_with_a_reach_holds_no_more_than_it_can_look_at() -> None:
    groups = (CacheGroup(100), CacheGroup(4, reach=100))
    world = World(groups, SchedulerLimits(50, 4))
    world.arrive(Arrival(step=0, prompt=(1,) * 3000, answer=300, score_prompt=False, abort_after=None))
    (sequence,) = world.order
    while world.order:
        world.step()
        assert sum(block != GONE for block in sequence.tables[1]) <= 4
    assert world.scheduler.preemptions == 0


def test_a_hit_is_a_multiple_of_every_groups_block() -> None:
    groups = (CacheGroup(20, block_tokens=16), CacheGroup(8, block_tokens=48), CacheGroup(16, 32, reach=40))
    world = World(groups, SchedulerLimits(512, 4))
    for length in (200, 201):
        world.arrive(Arrival(step=0, prompt=(1,) * length, answer=2, score_prompt=False, abort_after=None))
        (sequence,) = world.order
        while world.order:
            world.step()
    assert sequence.cached_tokens == 192


@pytest.mark.parametrize(("scope", "extra", "cached"), [(b"", b"", 128), (b"x", b"", 0), (b"", b"cat", 64)])
def test_a_hits_keys_cover_more_than_token_ids(scope: bytes, extra: bytes, cached: int) -> None:
    scheduler = scheduler_of(SchedulerLimits(512, 4), 8)
    first = SequenceState("a", range(130), False)
    scheduler.add(first)
    (segment,) = scheduler.plan().segments
    scheduler.commit(first, segment)
    extras = [(100, extra)] if extra else []
    second = SequenceState("b", range(130), False, scope=scope, extras=extras)
    scheduler.add(second)
    scheduler.plan()
    assert second.cached_tokens == cached


class Shelf:
    """A slower tier that is said to have the blocks of some keys."""

    def __init__(self, keys: set[bytes]) -> None:
        self.keys = keys

    def match(self, keys: Sequence[bytes]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.keys), len(keys))


def test_a_sequence_waits_for_blocks_that_are_loading_and_others_go_on() -> None:
    known = SequenceState("known", range(300), False)
    pools = Pools((CacheGroup(16),), b"")
    shelf = Shelf(set(pools.keys(known, 0, 3)))
    scheduler = Scheduler(pools, SchedulerLimits(512, 4), shelf)
    late, other = SequenceState("late", range(300), False), SequenceState("other", range(500, 520), False)
    scheduler.add(late)
    scheduler.add(other)
    plan = scheduler.plan()
    (fetch,) = plan.fetches
    assert (fetch.id, fetch.start, len(fetch.blocks), fetch.keys) == ("late", 0, 3, tuple(pools.keys(known, 0, 3)))
    assert [s.id for s in plan.segments] == ["other"]
    assert scheduler.awaits(fetch)
    scheduler.check_integrity()
    scheduler.fetched(fetch, 2)
    assert not scheduler.awaits(fetch)
    assert (late.computed, late.cached_tokens, scheduler.pools.pools[0].cached) == (128, 128, 2)
    scheduler.commit(other, plan.segments[0])
    (segment,) = (s for s in scheduler.plan().segments if s.id == "late")
    assert (segment.start, len(segment.tokens), len(segment.blocks[0]), segment.fresh) == (128, 172, 5, True)
    scheduler.check_integrity()


def test_a_sequence_that_ends_while_its_blocks_load_is_not_awaited() -> None:
    pools = Pools((CacheGroup(16),), b"")
    late = SequenceState("late", range(300), False)
    scheduler = Scheduler(pools, SchedulerLimits(512, 4), Shelf(set(pools.keys(late, 0, 3))))
    scheduler.add(late)
    (fetch,) = scheduler.plan().fetches
    scheduler.remove(late)
    assert not scheduler.awaits(fetch)
    scheduler.check_integrity()
    again = SequenceState("late", range(300), False)
    scheduler.add(again)
    (second,) = scheduler.plan().fetches
    assert scheduler.awaits(second)
    assert not scheduler.awaits(fetch)


def ready(scheduler: Scheduler, id: str, length: int) -> SequenceState:
    """A running sequence of `length` tokens that lacks its newest alone."""
    sequence = SequenceState(id, range(100, 100 + length - 1), False)
    scheduler.add(sequence)
    (segment,) = (s for s in scheduler.plan().segments if s.id == id)
    scheduler.commit(sequence, segment)
    sequence.tokens.append(7)
    return sequence


def test_drafts_take_what_is_left_over() -> None:
    scheduler = scheduler_of(SchedulerLimits(token_budget=40, max_running=3), 8)
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
    scheduler = scheduler_of(SchedulerLimits(token_budget=500, max_running=3, scored_rows=3), 8)
    ready(scheduler, "a", 10)
    ready(scheduler, "b", 20)
    plan = scheduler.plan({"a": (1, 2), "b": (4, 5)})
    assert [(s.draft, s.wanted) for s in plan.segments] == [((1, 2), 3), ((4,), 2)]


@pytest.mark.parametrize(("blocks", "drafted"), [(2, 2), (3, 4)])
def test_drafts_take_free_blocks_and_preempt_nobody(blocks: int, drafted: int) -> None:
    scheduler = scheduler_of(SchedulerLimits(token_budget=500, max_running=3), blocks)
    sequence = ready(scheduler, "a", 62)
    ready(scheduler, "b", 10)
    plan = scheduler.plan({"a": (1, 2, 3, 4)})
    assert plan.segments[0].drafted == drafted
    assert len(sequence.tables[0]) == blocks - 1
    assert scheduler.preemptions == 0
    scheduler.check_integrity()


@pytest.mark.parametrize("right", range(5))
def test_only_what_was_accepted_is_computed_and_sealed(right: int) -> None:
    scheduler = scheduler_of(SchedulerLimits(token_budget=500, max_running=3), 4)
    sequence = ready(scheduler, "a", 62)
    draft = (1, 2, 3, 4)
    (segment,) = scheduler.plan({"a": draft}).segments
    sequence.tokens += [*draft[:right], 50]
    scheduler.commit(sequence, segment)
    assert sequence.computed == 62 + right == len(sequence.tokens) - 1
    assert scheduler.pools.pools[0].cached == (62 + right) // 64
    (following,) = scheduler.plan().segments
    assert (following.start, following.tokens, following.wanted) == (62 + right, (50,), 1)
