"""Who finds no room is told to wait as long as what is there needs."""

import pytest

from deepwell.engine.pauses import LONGEST, Pauses


@pytest.mark.parametrize(("every", "live", "seconds"), [(0.01, 64, 1), (0.5, 64, 32), (0.5, 8, 4), (9.0, 64, LONGEST)])
def test_the_pause_grows_with_what_is_live(every: float, live: int, seconds: int) -> None:
    pauses = Pauses()
    assert pauses.seconds(live, 0.0) == 1
    for number in range(200):
        pauses.note(number * every)
    assert pauses.seconds(live, 200 * every) == seconds
    assert pauses.seconds(live, 10_000.0) == 1, "what was long ago says nothing"
