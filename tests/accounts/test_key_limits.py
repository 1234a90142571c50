"""A minute's window holds what its last 60 seconds held, and says truly when there is room."""

from hypothesis import given
from hypothesis import strategies as st

from deepwell.accounts.limits import MINUTE, Window

SECOND = 10**9


def test_what_is_never_asked_does_not_grow() -> None:
    window = Window()
    for second in range(1000):
        window.add(second * SECOND, 1)
    assert len(window._amounts) == 60


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=20), st.integers(1, 30), st.integers(0, 12))
def test_the_wait_is_exact(steps: list[tuple[int, int]], limit: int, amount: int) -> None:
    window, now, past = Window(), 0, []
    for seconds, one in steps:
        now += seconds * SECOND
        window.add(now, one)
        past.append((now, one))

    def held(moment: int) -> int:
        return sum(one for at, one in past if moment - MINUTE < at <= moment)

    assert window.total(now) == held(now)
    wait = window.wait(now, amount, limit)
    if amount > limit:
        assert wait == MINUTE
    else:
        assert held(now + wait) + amount <= limit
        assert wait == 0 or held(now + wait - 1) + amount > limit
