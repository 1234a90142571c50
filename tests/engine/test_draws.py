"""The numbers that tokens are drawn by."""

from collections import Counter

from deepwell.engine.answer import uniform


def test_the_stream_of_numbers_is_uniform_and_frozen() -> None:
    """The exact values are a promise: a seed gives the same answer in every later version."""
    assert uniform(0, 0) == 0.08854898442027359
    numbers = [uniform(seed, index) for seed in (-1, 0, 2**64 - 1) for index in range(3000)]
    assert all(0 <= number < 1 for number in numbers)
    counts = Counter(int(number * 20) for number in numbers)
    expected = len(numbers) / 20
    # chi-square with 19 degrees of freedom: above 43.8 in one of a thousand streams
    assert sum((counts[bin] - expected) ** 2 / expected for bin in range(20)) < 43.8


def test_a_number_depends_on_the_seed_and_its_index_alone() -> None:
    found = {(seed, index): uniform(seed, index) for seed in range(30) for index in range(30)}
    assert len(set(found.values())) == 900
    assert all(uniform(seed, index) == number for (seed, index), number in reversed(found.items()))
