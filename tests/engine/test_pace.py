"""The token budget follows the time that steps take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.engine.steps import FIRST, LEAST, Pace


@pytest.mark.parametrize(("fixed", "per_token", "fits"), [(0.05, 0.008, 25), (0.0, 0.002, 125), (0.001, 1e-5, 512)])
def test_it_settles_where_a_step_takes_as_long_as_it_should(fixed: float, per_token: float, fits: int) -> None:
    pace = Pace(512, 0.25)
    assert pace.budget == FIRST
    for _ in range(20):
        pace.learn(pace.budget, fixed + per_token * pace.budget)
    assert fits - LEAST <= pace.budget <= fits + LEAST
    for _ in range(20):
        pace.learn(1, fixed + per_token)  # steps that write answers say nothing
    assert fits - LEAST <= pace.budget <= fits + LEAST


def test_one_pause_is_not_believed_and_one_long_prompt_alone_is() -> None:
    pace = Pace(512, 0.25)
    pace.learn(64, 60.0)
    assert pace.budget == 32
    for _ in range(4):
        pace.learn(512, 4.0)
    assert pace.budget == 32


@given(st.integers(1, 4096), st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1e6))))
def test_whatever_is_measured_the_budget_is_one(most: int, steps: list[tuple[int, float]]) -> None:
    pace = Pace(most, 0.25)
    for tokens, seconds in steps:
        pace.learn(tokens, seconds)
        assert min(most, LEAST) <= pace.budget <= most
        assert pace.budget == most or pace.budget % LEAST == 0


@pytest.mark.parametrize(("fixed", "per_token"), [(1.0, 0.02), (0.3, 0.005), (0.24, 0.005)])
def test_where_writing_alone_takes_long_prompts_still_move(fixed: float, per_token: float) -> None:
    """A step may then take twice what it takes without a prompt, so that half of it reads."""
    pace = Pace(512, 0.25)
    for _ in range(60):
        pace.learn(4, fixed, reads=False)
        pace.learn(pace.budget, fixed + per_token * pace.budget)
    assert abs(pace.budget - fixed / per_token) <= LEAST
