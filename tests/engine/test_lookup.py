"""Guesses from the text itself: what followed the latest earlier occurrence."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepwell.engine.speculation import lookup
from deepwell.engine.speculation.lookup import NGRAMS, LookupIndex


def by_hand(tokens: list[int], count: int) -> tuple[int, ...]:
    for length in NGRAMS:
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                going_on = tokens[end:]
                return tuple((going_on * count)[:count])
    return ()


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 30), st.integers(1, 9))
def test_the_latest_occurrence_is_continued(tokens: list[int], first: int, count: int) -> None:
    """Asked at every length from `first` on, as a growing answer does."""
    index = LookupIndex()
    for end in range(min(first, len(tokens)), len(tokens) + 1):
        assert index.draft(tokens[:end], count) == by_hand(tokens[:end], count)


def test_a_longer_run_is_trusted_before_a_later_one() -> None:
    tokens = [1, 2, 3, 4, 50, 9, 3, 4, 60, 1, 2, 3, 4]
    assert LookupIndex().draft(tokens, 2) == (50, 9)


def test_a_repeating_text_goes_on_repeating() -> None:
    assert LookupIndex().draft([7, 1, 2, 3, 1, 2, 3, 1, 2], 7) == (3, 1, 2, 3, 1, 2, 3)


def test_a_long_prompt_is_indexed_from_its_end() -> None:
    tokens = [1, 2, 99, *np.random.default_rng(0).integers(1000, 9000, lookup.WINDOW).tolist(), 1, 2]
    assert LookupIndex().draft(tokens, 1) == ()
    assert LookupIndex().draft([*tokens[-lookup.WINDOW :], 1, 2], 1) == (1,)
