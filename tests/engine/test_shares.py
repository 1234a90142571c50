"""Accounts share the engine: a greedy one delays a modest one by little, and nobody is passed over for ever."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deepwell.engine.scheduler import SchedulerLimits, SequenceState
from deepwell.engine.shares import Shares
from deepwell.engine.steps import Steps
from deepwell.ops.paging import CacheGroup

GREEDY, MODEST = 1, 2


class Service:
    """Runs steps as an engine does, every answer having so many tokens, and notes when and for whom."""

    def __init__(self, blocks: int = 4000, budget: int = 128, running: int = 8) -> None:
        self.steps = Steps((CacheGroup(blocks),), b"", SchedulerLimits(budget, running))
        self.left: dict[str, int] = {}
        self.account: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.computed: Counter[int] = Counter()
        self.now = 0

    def ask(self, id: str, account: int, prompt: int, answer: int, priority: int = 0) -> None:
        self.left[id], self.account[id] = answer, account
        tokens = [hash((id, place)) % 1000 for place in range(prompt)]
        self.steps.add(SequenceState(id, tokens, False, account=account, priority=priority))

    def step(self) -> None:
        plan = self.steps.plan()
        self.now += 1
        for segment in plan.segments:
            sequence = self.steps.live[segment.id]
            self.computed[self.account[segment.id]] += len(segment.tokens)
            if segment.id not in self.begun:
                self.begun.append(segment.id)
            said = segment.end == len(sequence.tokens)
            self.steps.commit(segment, (7,) if said else ())
            if said:
                self.first.setdefault(segment.id, self.now)
                self.left[segment.id] -= 1
                if not self.left[segment.id]:
                    self.steps.end(segment.id)
                    self.ended.append(segment.id)
        self.steps.check_integrity()

    def run(self, steps: int = 100_000) -> None:
        for _ in range(steps):
            if not self.steps.live:
                return
            self.step()


def test_a_modest_account_does_not_wait_for_a_hundred_requests_of_a_greedy_one() -> None:
    service = Service()
    for number in range(100):
        service.ask(f"greedy {number}", GREEDY, 50, 200)
    service.run(30)
    service.ask("modest", MODEST, 50, 10)
    begun = service.now
    service.run()
    assert service.first["modest"] - begun <= 2, "though every place was taken by long answers"
    assert service.ended.index("modest") == 0
    assert len(service.ended) == 101


def test_sixty_long_prompts_of_one_account_do_not_starve_the_prompt_of_another() -> None:
    service = Service(running=64)
    for number in range(60):
        service.ask(f"greedy {number}", GREEDY, 2000, 5)
    service.run(3)
    service.ask("modest", MODEST, 300, 5)
    begun = service.now
    service.run()
    assert service.first["modest"] - begun <= 300 / (128 / 2) + 2, "half of every step is its own"


def test_accounts_that_both_have_enough_to_do_are_served_alike() -> None:
    service = Service()
    for number in range(60):
        service.ask(f"greedy {number}", GREEDY, 400, 40)
    for number in range(12):
        service.ask(f"modest {number}", MODEST, 400, 40)
    while MODEST in service.steps.scheduler.shares.live:
        service.step()
        if len(service.ended) == 12:
            assert 0.8 < service.computed[GREEDY] / service.computed[MODEST] < 1.25


def test_requests_of_one_account_begin_in_order() -> None:
    service = Service(running=3)
    source = random.Random(0)
    for number in range(40):
        service.ask(str(number), source.choice((GREEDY, MODEST)), source.randint(1, 300), source.randint(1, 20))
    service.run()
    for account in (GREEDY, MODEST):
        begun = [int(id) for id in service.begun if service.account[id] == account]
        assert begun == sorted(begun)


def test_a_high_priority_comes_first() -> None:
    service = Service(running=1)
    for number, priority in enumerate((0, 0, -1, 1)):
        service.ask(str(number), number, 10, 3, priority)
    service.run()
    assert service.ended == ["3", "0", "1", "2"]


def test_the_same_arrivals_give_the_same_plans() -> None:
    def plans() -> list[str]:
        service = Service(blocks=40, running=4)
        source = random.Random(1)
        for number in range(30):
            service.ask(str(number), number % 3, source.randint(1, 400), source.randint(1, 90))
        service.run()
        return [*service.begun, *service.ended]

    assert plans() == plans()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=60))
def test_having_been_away_earns_nothing_and_leaving_saves_nothing(visits: list[tuple[int, int]]) -> None:
    """One account is always there; others come, are charged, and leave."""
    shares = Shares()
    shares.enter(9)
    for account, tokens in visits:
        debt = shares.served.get(account, 0)
        shares.enter(account)
        assert shares.served[account] >= max(debt, min(shares.served[one] for one in shares.live))
        shares.charge(account, tokens)
        shares.leave(account)
        shares.charge(9, 10)
    assert shares.live == {9: 1}
    assert len(shares.served) <= 5
