"""Steps without text, driven as a simulator drives them: by a cost model, with no model and no tokenizer."""

import random
from statistics import median
from zlib import crc32

import pytest

from deepwell.engine.scheduler import SchedulerLimits, SequenceState, StepPlan
from deepwell.engine.steps import Steps
from deepwell.ops.paging import CacheGroup


class Simulator:
    """Requests of given lengths, arriving at given seconds, on a machine whose steps take `seconds(plan)`."""

    def __init__(self, steps: Steps, fixed: float, per_token: float) -> None:
        self.steps, self.fixed, self.per_token = steps, fixed, per_token
        self.now = 0.0
        self.left: dict[str, int] = {}
        self.waits: list[float] = []
        self.last: dict[str, float] = {}

    def arrive(self, id: str, prompt: int, answer: int) -> None:
        self.left[id] = answer
        self.steps.add(SequenceState(id, [crc32(id.encode()) % 1000] * prompt, False))

    def step(self) -> None:
        plan = self.steps.plan()
        seconds = self.fixed + self.per_token * plan.tokens
        self.now += seconds
        for segment in plan.segments:
            self._commit(plan, segment.id)
        self.steps.took(plan, seconds)
        self.steps.check_integrity()

    def _commit(self, plan: StepPlan, id: str) -> None:
        (segment,) = (s for s in plan.segments if s.id == id)
        sequence = self.steps.live[id]
        if segment.end < len(sequence.tokens):
            self.steps.commit(segment)
            return
        self.steps.commit(segment, (7,))
        if id in self.last:
            self.waits.append(self.now - self.last[id])
        self.last[id] = self.now
        self.left[id] -= 1
        if self.left[id] == 0:
            self.steps.end(id)

    def run(self) -> None:
        while self.steps.live:
            self.step()


def steps_of(blocks: int, budget: int = 512, running: int = 64, step_seconds: float = 0.0) -> Steps:
    return Steps((CacheGroup(blocks),), b"", SchedulerLimits(budget, running), step_seconds=step_seconds)


def test_a_thousand_requests_pass_through() -> None:
    source = random.Random(0)
    simulator = Simulator(steps_of(400), fixed=0.02, per_token=0.0005)
    wanted = 0
    for index in range(1000):
        prompt, answer = source.randint(1, 900), source.randint(1, 60)
        wanted += answer
        simulator.arrive(str(index), prompt, answer)
    simulator.run()
    counts = simulator.steps.counts
    assert counts.generated == wanted
    assert counts.steps >= wanted / 64
    assert counts.seconds == pytest.approx(simulator.now)
    assert simulator.steps.pools.pools[0].free == 400


@pytest.mark.parametrize(("step_seconds", "most"), [(0.0, 4.2), (0.25, 0.6)])
def test_no_stream_waits_seconds_for_a_long_prompt(step_seconds: float, most: float) -> None:
    """DeepSeek-V2-Lite on two cores: 126 tokens of a prompt a second, 29 of an answer."""
    simulator = Simulator(steps_of(2000, step_seconds=step_seconds), fixed=0.034, per_token=0.008)
    simulator.arrive("stream", 10, 600)
    for _ in range(20):
        simulator.step()
    for index in range(3):
        simulator.arrive(f"long {index}", 4000, 5)
    simulator.run()
    assert max(simulator.waits) < most
    assert (median(sorted(simulator.waits)[-20:]) > 2) == (step_seconds == 0.0)


@pytest.mark.parametrize(("step_seconds", "most"), [(0.0, 30.0), (0.25, 2.0)])
def test_a_short_prompt_does_not_wait_for_the_long_one_before_it(step_seconds: float, most: float) -> None:
    """The whole prompt of 3,000 tokens takes 24 s on this machine; a step that is alone may take 4 s before it is seen
    that somebody waits."""
    simulator = Simulator(steps_of(2000, step_seconds=step_seconds), fixed=0.034, per_token=0.008)
    simulator.arrive("long", 3000, 5)
    simulator.step()
    simulator.arrive("short", 10, 30)
    begun = simulator.now
    while "short" not in simulator.last:
        simulator.step()
    assert (simulator.now - begun < 2.0) == (step_seconds > 0)
    simulator.run()
    assert max(simulator.waits) < most


def test_many_streams_each_get_a_token_a_step_however_slow_the_machine_is() -> None:
    simulator = Simulator(steps_of(2000, step_seconds=0.01), fixed=1.0, per_token=0.5)
    for index in range(40):
        simulator.arrive(str(index), 3, 30)
    while not all(index in simulator.last for index in map(str, range(40))):
        simulator.step()
    for _ in range(10):
        before = dict(simulator.left)
        simulator.step()
        assert all(simulator.left[id] == before[id] - 1 for id in simulator.steps.live)
