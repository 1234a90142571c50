"""Sampling follows its rules exactly, and draws what the rules leave in proportion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deepwell.engine.sampling import Sampler, Scratch, _nucleus, _pick, _pick_from_all, largest, log_normalizer, uniform
from deepwell.engine.types import SamplingParams
from fakes import FakeRunner

few_values = arrays.arrays(np.float32, st.integers(1, 600), elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]))
any_values = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))


def reference_probabilities(logits: np.ndarray, p: SamplingParams, prompt: list[int], said: list[int]) -> np.ndarray:
    """The rules one after another, token by token, in plain Python."""
    x = [float(value) for value in logits]
    for id, bias in p.logit_bias.items():
        x[id] += bias
    for id in {*prompt, *said}:
        x[id] = x[id] / p.repetition_penalty if x[id] > 0 else x[id] * p.repetition_penalty
    for id in set(said):
        x[id] -= p.presence_penalty + p.frequency_penalty * said.count(id)
    if p.temperature == 0:
        return np.eye(len(x))[max(range(len(x)), key=lambda id: (x[id], -id))]
    peak = max(x)
    weights = [math.exp((value - peak) / p.temperature) for value in x]
    order = sorted(range(len(x)), key=lambda id: (-x[id], id))
    if p.top_k:
        order = order[: p.top_k]
    total, reached, kept = sum(weights[id] for id in order), 0.0, []
    for id in order:
        kept.append(id)
        reached += weights[id]
        if p.top_p < 1 and reached >= p.top_p * total:
            break
    kept = [id for id in kept if weights[id] >= p.min_p]
    result = np.zeros(len(x))
    result[kept] = [weights[id] for id in kept]
    return result / result.sum()


def drawn_frequencies(logits: np.ndarray, params: SamplingParams, prompt: list[int], draws: int) -> np.ndarray:
    counts = np.zeros(len(logits))
    for seed in range(draws):
        counts[Sampler(params, seed, prompt, Scratch(len(logits))).sample(logits)] += 1
    return counts


def assert_chi_square(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Nothing impossible was drawn, and the rest fits: chi-square below its mean by 5 standard deviations."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    freedom = possible.sum() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() <= freedom + 5 * math.sqrt(2 * freedom) + 1e-9


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.8, "min_p": 0.1},
        {"logit_bias": {3: 5.0, 0: -100.0}},
        {"presence_penalty": 1.0, "frequency_penalty": -0.5, "repetition_penalty": 1.3},
    ],
)
def test_draws_fit_the_distribution_of_the_rules(rules: dict) -> None:
    logits = (np.random.default_rng(1).standard_normal(12) * 2).astype(np.float32)
    params = SamplingParams(**rules)
    prompt = [1, 2, 2]
    counts = drawn_frequencies(logits, params, prompt, 4000)
    assert_chi_square(counts, reference_probabilities(logits, params, prompt, []))


def test_drawing_from_all_of_a_large_vocabulary_is_in_proportion() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[0, 127, 128, 999]] = 6.0
    counts = drawn_frequencies(logits, SamplingParams(), [], 6000)
    grouped = np.array([*counts[[0, 127, 128, 999]], counts.sum() - counts[[0, 127, 128, 999]].sum()])
    weights = np.array([math.exp(6)] * 4 + [996.0])
    assert_chi_square(grouped, weights / weights.sum())


@given(
    any_values,
    st.floats(0.05, 5),
    st.integers(0, 45),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
)
def test_every_draw_is_one_the_rules_allow(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    allowed = reference_probabilities(logits, params, [], [])
    token = Sampler(params, 0, [], Scratch(len(logits))).sample(logits)
    # Where a boundary falls within rounding, either side is right.
    if allowed[token] == 0:
        wider = SamplingParams(
            temperature=temperature, top_k=top_k, top_p=min(1.0, top_p * (1 + 1e-12)), min_p=min_p * (1 - 1e-12)
        )
        assert reference_probabilities(logits, wider, [], [])[token] > 0


@given(few_values, st.integers(0, 700))
def test_largest_is_a_stable_sort(values: np.ndarray, count: int) -> None:
    expected = sorted(range(len(values)), key=lambda id: (-values[id], id))[:count]
    assert largest(values, count).tolist() == expected


@given(few_values, st.floats(0, 1, exclude_max=True))
def test_both_ways_of_drawing_agree(values: np.ndarray, point: float) -> None:
    weights = np.exp2(np.round(values.astype(np.float64)))  # powers of two add up without rounding
    assert _pick_from_all(weights, point) == _pick(weights, point)


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.95, 0.9999999])
def test_a_nucleus_is_that_of_a_full_sort(top_p: float, scale: float) -> None:
    """Flat and steep distributions, with many ties."""
    depth = np.round(np.abs(np.random.default_rng(3).standard_normal(9000)) * scale, 2)
    depth[7] = 0.0
    weights = np.exp(-depth)
    order = sorted(range(len(depth)), key=lambda id: (depth[id], id))
    goal, reached, expected = top_p * math.fsum(weights), 0.0, []
    for id in order:
        expected.append(id)
        reached = math.fsum((reached, weights[id]))
        if reached >= goal:
            break
    scratch = Scratch(len(depth))
    scratch.depth_V[:], scratch.weights_V[:] = depth, weights
    found = np.flatnonzero(_nucleus(scratch, top_p))
    # The sums round differently, so the last token may differ.
    assert len({*expected} ^ {*found.tolist()}) <= 1
    assert {*order[: len(found)]} == {*found.tolist()}


@given(few_values)
def test_greedy_takes_the_lowest_id_of_the_best(logits: np.ndarray) -> None:
    token = Sampler(SamplingParams(temperature=0.0), 1, [], Scratch(len(logits))).sample(logits)
    assert token == logits.tolist().index(max(logits.tolist()))


@given(few_values, st.floats(1e-300, 1e-3))
def test_the_smallest_temperatures_do_not_overflow(logits: np.ndarray, temperature: float) -> None:
    token = Sampler(SamplingParams(temperature=temperature), 1, [], Scratch(len(logits))).sample(logits)
    assert logits[token] == logits.max()


def test_penalties_count_prompt_and_answer_as_documented() -> None:
    """Ten greedy tokens under all penalties, against the plain reference."""
    rng = np.random.default_rng(5)
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.7, logit_bias={2: -1.0}
    )
    prompt, said = [0, 0, 4], []
    sampler = Sampler(params, 1, prompt, Scratch(6))
    for _ in range(10):
        logits = rng.standard_normal(6).astype(np.float32)
        expected = int(reference_probabilities(logits, params, prompt, said).argmax())
        said.append(sampler.sample(logits))
        assert said[-1] == expected


def test_a_bias_of_minus_100_bans_and_of_100_forces() -> None:
    logits = FakeRunner().logits_of((1, 2, 3))
    banned = {id: -100.0 for id in range(320) if id != 7}
    assert Sampler(SamplingParams(logit_bias=banned), 3, [], Scratch(320)).sample(logits) == 7
    assert Sampler(SamplingParams(logit_bias={9: 100.0}), 3, [], Scratch(320)).sample(logits) == 9


def test_a_token_depends_on_seed_and_index_alone() -> None:
    logits = FakeRunner().logits_of((4, 5))
    params = SamplingParams(seed=11)
    one = [Sampler(params, 1, [], Scratch(320)) for _ in range(2)]
    first = [one[0].sample(logits) for _ in range(20)]
    assert [one[1].sample(logits) for _ in range(20)] == first
    assert len(set(first)) > 5
    other = Sampler(SamplingParams(seed=12), 1, [], Scratch(320))
    assert [other.sample(logits) for _ in range(20)] != first
    assert [uniform(5, index) for index in range(3)] == [uniform(5, index) for index in range(3)]


def test_the_stream_of_numbers_is_uniform_and_frozen() -> None:
    """The exact values are a promise: a seed gives the same answer in every later version."""
    assert uniform(0, 0) == 0.08854898442027359
    numbers = [uniform(seed, index) for seed in (-1, 0, 2**64 - 1) for index in range(3000)]
    assert all(0 <= number < 1 for number in numbers)
    counts = np.histogram(numbers, 20, (0, 1))[0].astype(float)
    assert_chi_square(counts, np.full(20, 0.05))


@given(any_values)
def test_log_probabilities_are_those_of_the_raw_logits(logits: np.ndarray) -> None:
    peak = max(map(float, logits))
    norm = peak + math.log(math.fsum(math.exp(float(value) - peak) for value in logits))
    assert log_normalizer(logits) == pytest.approx(norm, abs=1e-12)
