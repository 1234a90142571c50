"""Sampling in C++: the reference's tokens for any rules, shapes, drafts and masks; the same bits everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import sampling_reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from op_backends import normal, packed, packed_batch
from sampling_reference import ReferenceSampler, allowed

from deepwell import _native
from deepwell.ops import native
from deepwell.ops.base import GqaShape
from deepwell.ops.sampling import Ask, Chosen, SamplingRules

VOCABULARIES = [1, 2, 5, 31, 32, 33, 127, 128, 129, 320, 1000, 4097, 20000]
few_values = arrays.arrays(np.float32, st.integers(1, 600), elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]))
any_values = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))
points = st.floats(0, 1, exclude_max=True)


def sample(
    logits_V: NDArray[np.float32], rules: SamplingRules, point: float = 0.0, mask: NDArray[np.uint32] | None = None
) -> int:
    """One token by a request of its own."""
    masks = None if mask is None else mask[None]
    ask = Ask(sampler=native.sampler(rules, len(logits_V), []), rows=1, points=(point,), masks=masks)
    return native.choose(logits_V[None], [ask])[0].tokens[0]


def probabilities(logits: NDArray[np.float32], r: SamplingRules, prompt: list[int]) -> NDArray[np.float64]:
    """The rules one after another, token by token, in plain Python."""
    x = [float(value) for value in logits]
    for id, bias in r.logit_bias.items():
        x[id] += bias
    for id in {*prompt}:
        x[id] = x[id] / r.repetition_penalty if x[id] > 0 else x[id] * r.repetition_penalty
    peak = max(x)
    weights = [math.exp((value - peak) / r.temperature) for value in x]
    order = sorted(range(len(x)), key=lambda id: (-x[id], id))
    if r.top_k:
        order = order[: r.top_k]
    total, reached, kept = sum(weights[id] for id in order), 0.0, []
    for id in order:
        kept.append(id)
        reached += weights[id]
        if r.top_p < 1 and reached >= r.top_p * total:
            break
    kept = [id for id in kept if weights[id] >= r.min_p]
    result = np.zeros(len(x))
    result[kept] = [weights[id] for id in kept]
    return result / result.sum()


def assert_chi_square(counts: NDArray[np.float64], expected_share: NDArray[np.float64]) -> None:
    """Nothing impossible was drawn, and the rest fits: chi-square below its mean by 5 standard deviations."""
    possible = expected_share > 0
    assert counts[~possible].sum() == 0
    expected = expected_share[possible] * counts.sum()
    freedom = possible.sum() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() <= freedom + 5 * math.sqrt(2 * freedom) + 1e-9


def drawn(logits_V: NDArray[np.float32], rules: SamplingRules, prompt: list[int], draws: int) -> NDArray[np.float64]:
    """How often each token was drawn by as many requests."""
    vocab = len(logits_V)
    asks = [
        Ask(sampler=native.sampler(rules, vocab, prompt), rows=1, points=(point,))
        for point in np.random.default_rng(9).random(draws).tolist()
    ]
    answers = native.choose(np.tile(logits_V, (draws, 1)), asks)
    return np.bincount([answer.tokens[0] for answer in answers], minlength=vocab).astype(np.float64)


# ---- against the reference


def random_rules(rng: np.random.Generator, vocab: int) -> SamplingRules:
    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    ids = rng.choice(vocab, min(vocab, int(one(0, 0, 1, 5))), replace=False).tolist()
    return SamplingRules(
        temperature=one(0.0, 1e-300, 1e-3, 0.5, 1.0, 1.0, 1.7, 50.0, 1e300),
        top_p=one(1.0, 1.0, 0.0, 1e-9, 0.5, 0.8, 0.95, 0.9999999, 1 - 2.0**-53),
        top_k=one(0, 0, 0, 1, 3, vocab // 2, vocab, vocab + 5),
        min_p=one(0.0, 0.0, 0.0, 0.02, 0.5, 1.0),
        presence_penalty=one(0.0, 0.0, 0.5, -2.0),
        frequency_penalty=one(0.0, 0.0, 0.7, -0.3),
        repetition_penalty=one(1.0, 1.0, 1.3, 0.5),
        logit_bias={id: one(-100.0, -1.0, 2.5, 100.0) for id in ids},
    )


def random_rows(rng: np.random.Generator, rows: int, vocab: int) -> NDArray[np.float32]:
    logits_LV = rng.standard_normal((rows, vocab)) * rng.choice([0.0, 0.01, 1.0, 4.0, 30.0])
    if rng.random() < 0.4:
        logits_LV = np.round(logits_LV, 1)  # ties
    if rng.random() < 0.2:
        logits_LV[rng.random(logits_LV.shape) < 0.3] = -np.inf
        logits_LV[:, rng.integers(vocab)] = 1.0
    if rng.random() < 0.1:
        logits_LV[rng.integers(rows), rng.integers(vocab)] = rng.choice([np.nan, np.inf])
    return logits_LV.astype(np.float32)


def random_masks(rng: np.random.Generator, rows: int, vocab: int) -> NDArray[np.uint32]:
    masks = rng.integers(0, 2**32, (rows, -(-vocab // 32)), dtype=np.uint32)
    masks &= rng.integers(0, 2**32, masks.shape, dtype=np.uint32)
    for mask in masks:
        id = rng.integers(vocab)
        mask[id // 32] |= np.uint32(1 << (id % 32))
    return masks


Case = tuple[NDArray[np.float32], Ask, ReferenceSampler]


def random_case(rng: np.random.Generator, vocab: int) -> Case:
    """Rows of one sequence, what is asked of them, and the reference's sampler in the same state."""
    rules = random_rules(rng, vocab)
    prompt = rng.integers(0, vocab, 4).tolist()
    known, drafted, choose = int(rng.integers(1, 4)), int(rng.choice([0, 0, 1, 3])), bool(rng.random() < 0.9)
    drafted *= choose
    rows_LV = random_rows(rng, known + drafted, vocab)
    ask = Ask(
        sampler=native.sampler(rules, vocab, prompt),
        rows=known + drafted,
        score=tuple(rng.integers(0, vocab, rng.integers(0, known + 1)).tolist()),
        choose=choose,
        points=tuple(rng.random(1 + drafted).tolist()) if choose else (),
        logprobs=None if rng.random() < 0.5 else int(rng.integers(0, 25)),
        score_logprobs=None if rng.random() < 0.5 else int(rng.integers(0, 4)),
        masks=random_masks(rng, 1 + drafted, vocab) if choose and rng.random() < 0.3 else None,
    )
    if drafted:  # mostly what will be chosen, so that verification gets far
        told = np.nan_to_num(rows_LV, nan=0.0, posinf=0.0)
        reference = ReferenceSampler(rules, vocab, prompt)
        guesses = []
        for i in range(drafted):
            mask = None if ask.masks is None else ask.masks[i]
            guesses.append(reference.sample(told[known - 1 + i], ask.points[i], mask))
        if rng.random() < 0.3:
            guesses[rng.integers(drafted)] = int(rng.integers(vocab))
        ask = msgspec.structs.replace(ask, draft=tuple(guesses))
    return rows_LV, ask, ReferenceSampler(rules, vocab, prompt)


def nearby(reference: ReferenceSampler, row: NDArray[np.float32], point: float, mask: Any) -> Iterator[int]:
    """What the reference would choose if sums had been rounded otherwise."""
    rules = reference.rules
    for step in (-1e-9, 1e-9):
        yield reference.peek(row, min(max(point * (1 + step), 0.0), 1 - 2**-53), mask)
        for name in ("top_p", "min_p"):
            moved = min(1.0, getattr(rules, name) * (1 + step / 1000))
            reference.rules = msgspec.structs.replace(rules, **{name: moved})
            yield reference.peek(row, point, mask)
            reference.rules = rules


def assert_answers(answer: Chosen, rows_LV: NDArray[np.float32], ask: Ask, reference: ReferenceSampler) -> int:
    """The answer is the reference's, token by token; returns how many tokens only rounding explains."""
    with np.errstate(invalid="ignore"):
        sound_L = np.isfinite(rows_LV.max(axis=1)).tolist()
    known, borderline = ask.rows - len(ask.draft), 0
    assert answer.sound == all(sound_L[:known])
    if not answer.sound:
        assert answer == Chosen((), sound=False)
        return 0
    for i, token in enumerate(answer.tokens):
        row, mask = rows_LV[known - 1 + i], None if ask.masks is None else ask.masks[i]
        if token != reference.peek(row, ask.points[i], mask):
            borderline += 1
            assert token in nearby(reference, row, ask.points[i], mask), (reference.rules, ask.points[i])
        reference.add(token)
        goes_on = i < len(ask.draft) and token == ask.draft[i] and sound_L[known + i]
        assert goes_on == (i + 1 < len(answer.tokens))
    assert bool(answer.tokens) == ask.choose
    assert [one.token for one in answer.scores] == list(ask.score)
    told = [(rows_LV[known - 1 + i], one, ask.logprobs) for i, one in enumerate(answer.logprobs)]
    assert len(told) == (0 if ask.logprobs is None else len(answer.tokens))
    told += [(rows_LV[i], one, ask.score_logprobs) for i, one in enumerate(answer.scores)]
    for row, one, count in told:
        expected = sampling_reference.row_logprob(row, one.token, count or 0)
        assert [id for id, _ in one.top] == [id for id, _ in expected.top]
        assert [one.logprob, *(x for _, x in one.top)] == pytest.approx(
            [expected.logprob, *(x for _, x in expected.top)], abs=1e-12, rel=1e-14
        )
    return borderline


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_random_asks_get_the_references_answers(vocab: int) -> None:
    """Together about 20,000 rows: states, drafts, masks, ties, rows that are no numbers, extreme temperatures."""
    rng = np.random.default_rng(vocab)
    rows = borderline = 0
    for _ in range(12):
        cases = [random_case(rng, vocab) for _ in range(max(5, min(60, 20_000 // vocab)))]
        answers = native.choose(np.concatenate([case[0] for case in cases]), [case[1] for case in cases])
        for answer, case in zip(answers, cases, strict=True):
            borderline += assert_answers(answer, *case)
            rows += case[1].rows
    assert borderline <= rows // 1000


def test_an_answers_state_is_kept_from_step_to_step() -> None:
    """Thirty steps of one request under all penalties, some with a draft, against the reference."""
    rng = np.random.default_rng(4)
    rules = SamplingRules(
        temperature=0.8,
        top_p=0.9,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        repetition_penalty=1.2,
        logit_bias={3: 2.0},
    )
    sampler, reference = native.sampler(rules, 40, [1, 1, 5]), ReferenceSampler(rules, 40, [1, 1, 5])
    for step in range(30):
        draft = tuple(rng.integers(0, 40, step % 3).tolist())
        ask = Ask(sampler=sampler, rows=1 + len(draft), draft=draft, points=tuple(rng.random(1 + len(draft)).tolist()))
        rows_LV = rng.standard_normal((ask.rows, 40)).astype(np.float32)
        assert native.choose(rows_LV, [ask]) == [sampling_reference.choose(rows_LV, ask, reference)]


# ---- the rules


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 8, "top_p": 0.8, "min_p": 0.1},
        {"temperature": 1.5, "top_p": 0.8, "min_p": 0.1},
        {"logit_bias": {3: 5.0, 0: -100.0}},
        {"presence_penalty": 1.0, "frequency_penalty": -0.5, "repetition_penalty": 1.3},
    ],
)
def test_draws_fit_the_distribution_of_the_rules(rules: dict[str, Any]) -> None:
    logits_V = (np.random.default_rng(1).standard_normal(12) * 2).astype(np.float32)
    made = SamplingRules(**rules)
    assert_chi_square(drawn(logits_V, made, [1, 2, 2], 4000), probabilities(logits_V, made, [1, 2, 2]))


def test_drawing_from_all_of_a_large_vocabulary_is_in_proportion() -> None:
    logits_V = np.zeros(1000, np.float32)
    logits_V[[0, 127, 128, 999]] = 6.0
    counts = drawn(logits_V, SamplingRules(), [], 6000)
    grouped = np.array([*counts[[0, 127, 128, 999]], counts.sum() - counts[[0, 127, 128, 999]].sum()])
    weights = np.array([math.exp(6)] * 4 + [996.0])
    assert_chi_square(grouped, weights / weights.sum())


@given(any_values, st.floats(0.05, 5), st.integers(0, 45), st.floats(0.01, 1), st.floats(0, 1), points)
def test_every_draw_is_one_the_rules_allow(
    logits_V: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, point: float
) -> None:
    rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = sample(logits_V, rules, point)
    # Where a boundary falls within rounding, either side is right.
    if probabilities(logits_V, rules, [])[token] == 0:
        wider = msgspec.structs.replace(rules, top_p=min(1.0, top_p * (1 + 1e-12)), min_p=min_p * (1 - 1e-12))
        assert probabilities(logits_V, wider, [])[token] > 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.95, 0.9999999])
def test_a_nucleus_is_that_of_a_full_sort(top_p: float, scale: float) -> None:
    """Flat and steep distributions, with many ties: a point amid each token's share of the nucleus draws that token."""
    logits_V = np.round(-np.abs(np.random.default_rng(3).standard_normal(900)) * scale, 2).astype(np.float32)
    share_V = probabilities(logits_V, SamplingRules(top_p=top_p), [])
    ids = np.flatnonzero(share_V)
    middles = (np.cumsum(share_V[ids]) - share_V[ids] / 2).tolist()
    rules = SamplingRules(top_p=top_p)
    asks = [Ask(sampler=native.sampler(rules, 900, []), rows=1, points=(point,)) for point in middles]
    answers = native.choose(np.tile(logits_V, (len(ids), 1)), asks)
    assert [answer.tokens[0] for answer in answers] == ids.tolist()


@given(few_values)
def test_greedy_takes_the_lowest_id_of_the_best(logits_V: NDArray[np.float32]) -> None:
    assert sample(logits_V, SamplingRules(temperature=0.0)) == logits_V.tolist().index(max(logits_V.tolist()))


@given(few_values, st.floats(1e-300, 1e-3), points)
def test_the_smallest_temperatures_do_not_overflow(
    logits_V: NDArray[np.float32], temperature: float, point: float
) -> None:
    assert logits_V[sample(logits_V, SamplingRules(temperature=temperature), point)] == logits_V.max()


def test_a_bias_of_minus_100_bans_and_of_100_forces() -> None:
    logits_V = normal(5, 320)
    banned = {id: -100.0 for id in range(320) if id != 7}
    for point in (1e-9, 0.5, 1 - 2**-53):
        assert sample(logits_V, SamplingRules(logit_bias=banned), point) == 7
        assert sample(logits_V, SamplingRules(logit_bias={9: 100.0}), point) == 9


@given(few_values, st.floats(0, 2), st.integers(0, 2**32 - 1), points)
def test_tokens_not_allowed_count_as_minus_infinity(
    logits_V: NDArray[np.float32], temperature: float, seed: int, point: float
) -> None:
    mask = random_masks(np.random.default_rng(seed), 1, len(logits_V))[0]
    rules = SamplingRules(temperature=temperature, top_p=0.9)
    token = sample(logits_V, rules, point, mask)
    assert allowed(mask, len(logits_V))[token]
    without = np.where(allowed(mask, len(logits_V)), logits_V, np.float32(-np.inf))
    assert token == sample(without, rules, point)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_of_allowed_tokens_that_are_impossible_the_lowest_is_taken(temperature: float) -> None:
    logits_V = np.full(70, -np.inf, np.float32)
    logits_V[0] = 1.0
    mask = np.array([0, 1 << 5, 1 << 2], np.uint32)
    assert sample(logits_V, SamplingRules(temperature=temperature, top_k=3), 0.7, mask) == 37


# ---- log-probabilities


@given(any_values)
def test_log_probabilities_are_those_of_the_raw_logits(logits_V: NDArray[np.float32]) -> None:
    vocab = len(logits_V)
    peak = max(map(float, logits_V))
    norm = peak + math.log(math.fsum(math.exp(float(value) - peak) for value in logits_V))
    rules = SamplingRules(temperature=0.3, logit_bias={0: 5.0}, repetition_penalty=1.5)
    mask = np.zeros((1, -(-vocab // 32)), np.uint32)
    mask[0, 0] = 1
    sampler = native.sampler(rules, vocab, [0])
    asked = Ask(sampler=sampler, rows=1, score=(vocab - 1,), points=(0.5,), logprobs=0, masks=mask)
    (answer,) = native.choose(logits_V[None], [asked])
    assert answer.logprobs[0].logprob == pytest.approx(float(logits_V[0]) - norm, abs=1e-12)
    assert answer.scores[0].logprob == pytest.approx(float(logits_V[-1]) - norm, abs=1e-12)


@given(few_values, st.integers(0, 700))
def test_the_likeliest_tokens_are_a_stable_sort(values: NDArray[np.float32], count: int) -> None:
    sampler = native.sampler(SamplingRules(), len(values), [])
    asked = Ask(sampler=sampler, rows=1, score=(0,), choose=False, score_logprobs=count)
    expected = sorted(range(len(values)), key=lambda id: (-values[id], id))[:count]
    assert [id for id, _ in native.choose(values[None], [asked])[0].scores[0].top] == expected


def test_the_exponential_is_within_its_bound_on_every_instruction_set() -> None:
    rng = np.random.default_rng(2)
    x = -np.concatenate([rng.exponential(10, 50_000), rng.uniform(0, 760, 50_000), 10.0 ** rng.uniform(-20, 3, 20_000)])
    x = np.concatenate([x, [0.0, -0.0, -np.inf, -745.13, -745.2, -708.4, -1e300]])
    exact = np.exp(x.astype(np.longdouble))
    before = native.isa()
    try:
        for isa in native.available_isas():
            native.set_isa(isa)
            found = np.array(_native.exp_double(x))
            # The spacing of subnormals is that of the smallest.
            assert (np.abs(found - exact) <= 1.5 * np.spacing(np.maximum(found, 2.0**-1022))).all()
            assert found[-7] == found[-6] == 1.0
            assert found[-5] == found[-1] == 0.0
    finally:
        native.set_isa(before)


def test_the_logarithm_is_within_its_bound() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([1 + 10.0 ** rng.uniform(-16, 0, 5000), 10.0 ** rng.uniform(0, 9, 5000), [1.0, 2.0, 129280.0]])
    exact = np.log(x.astype(np.longdouble))
    found = np.array([_native.log(float(value)) for value in x])
    assert (np.abs(found - exact) <= 2 * np.spacing(found)).all()
    assert _native.log(1.0) == 0.0


# ---- the same everywhere


def test_answers_have_the_same_bits_on_any_threads_instructions_and_beside_any_rows() -> None:
    def asks() -> list[Ask]:
        rng = np.random.default_rng(8)
        made = []
        for i in range(24):
            rules = random_rules(rng, 9001)
            sampler = native.sampler(rules, 9001, [1, 2, 3])
            drafted, given_points = (5,) * (i % 3), tuple(rng.random(1 + i % 3).tolist())
            made.append(Ask(sampler=sampler, rows=3, score=(7,), draft=drafted, points=given_points, logprobs=5))
        return made

    logits_LV = np.random.default_rng(7).standard_normal((72, 9001)).astype(np.float32) * 3
    expected = native.choose(logits_LV, asks())
    assert len({answer.tokens for answer in expected}) > 10
    assert [native.choose(logits_LV[3 * i : 3 * i + 3], [ask])[0] for i, ask in enumerate(asks())] == expected
    threads, isa = native.threads(), native.isa()
    try:
        for count in (1, 2, 5):
            native.set_threads(count)
            assert native.choose(logits_LV, asks()) == expected
        for name in native.available_isas():
            native.set_isa(name)
            assert native.choose(logits_LV, asks()) == expected
    finally:
        native.set_threads(threads)
        native.set_isa(isa)


# ---- rows that are no numbers


def broken_row(kind: str, vocab: int) -> NDArray[np.float32]:
    row = np.random.default_rng(3).standard_normal(vocab).astype(np.float32)
    if kind == "-inf":
        row[:] = -np.inf
    else:
        row[vocab - 1] = float(kind)
    return row


@pytest.mark.parametrize("vocab", [1, 33, 300])
@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
def test_a_broken_known_row_chooses_nothing_and_changes_nothing(kind: str, vocab: int) -> None:
    rules = SamplingRules(presence_penalty=2.0, temperature=0.0)
    sampler, fresh = (native.sampler(rules, vocab, []) for _ in range(2))
    good = normal(1, vocab)
    rows_LV = np.stack([broken_row(kind, vocab), good, good])
    ask = Ask(sampler=sampler, rows=3, score=(0,), draft=(int(good.argmax()),), logprobs=1)
    assert native.choose(rows_LV, [ask]) == [Chosen((), sound=False)]
    after = [native.choose(np.stack([good]), [Ask(sampler=one, rows=1)]) for one in (sampler, fresh)]
    assert after[0] == after[1]


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
def test_a_broken_row_of_a_draft_ends_the_verification_before_it(kind: str) -> None:
    good = normal(1, 300)
    best = int(good.argmax())
    ask = Ask(sampler=native.sampler(SamplingRules(temperature=0.0), 300, []), rows=4, draft=(best, best, best))
    rows_LV = np.stack([good, good, broken_row(kind, 300), good])
    assert native.choose(rows_LV, [ask]) == [Chosen((best, best))]


# ---- what is refused

GREEDY = SamplingRules(temperature=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 2, "draft": (1,), "points": (0.1, 0.2)}, "2 rows together, the logits 3"),
        ({"rows": 4}, "4 rows together, the logits 3"),
        ({"rows": 0, "draft": (), "points": (0.1,)}, "ask 0 has 0 rows, and needs 1"),
        ({"rows": -3}, "ask 0 has -3 rows"),
        ({"draft": (1, 2, 3), "points": (0.1,) * 4}, "ask 0 has 3 rows, and needs 4"),
        ({"score": (1, 2, 3)}, "ask 0 has 3 rows, and needs 5"),
        ({"points": (0.1,)}, "ask 0 has 1 points for 3 rows that may choose"),
        ({"points": ()}, "ask 0 has 0 points for 3 rows"),
        ({"points": (0.1, 1.0, 0.1)}, r"a point of ask 0 is 1, not within \[0, 1\)"),
        ({"points": (0.1, math.nan, 0.1)}, "a point of ask 0 is nan"),
        ({"draft": (1, 50)}, r"drafted token of ask 0 50 is outside 0\.\.49"),
        ({"draft": (1, -1)}, "drafted token of ask 0 -1 is outside"),
        ({"score": (50,)}, r"scored token of ask 0 50 is outside 0\.\.49"),
        ({"score": (2**40,)}, "scored token of ask 0 1099511627776 is outside"),
        ({"score": (2**70,)}, "ask 0: its score cannot be read"),
        ({"choose": False, "draft": ()}, "ask 0 has 3 points for 0 rows that may choose"),
        ({"choose": False}, "ask 0 has a draft, but chooses nothing"),
        (
            {"choose": False, "draft": (), "points": (), "masks": np.ones((1, 2), np.uint32)},
            "ask 0 has masks, but chooses nothing",
        ),
        ({"logprobs": -1}, "ask 0 wants -1 of the likeliest tokens"),
        ({"score_logprobs": -1}, "ask 0 wants -1 of the likeliest tokens"),
        ({"masks": np.ones((2, 2), np.uint32)}, "the masks of ask 0 are 2 x 2, expected 3 x 2"),
        ({"masks": np.ones((3, 1), np.uint32)}, "the masks of ask 0 are 3 x 1, expected 3 x 2"),
        ({"masks": np.ones((3, 2), np.int64)}, "ask 0: its masks cannot be read"),
        ({"masks": np.ones((2, 3), np.uint32).T}, "ask 0: its masks cannot be read"),
        ({"masks": np.array([[1, 0], [1, 0], [0, 0]], np.uint32)}, "mask 2 of ask 0 allows no token"),
        ({"masks": np.array([[1, 0], [0, 1 << 18], [1, 0]], np.uint32)}, "mask 1 of ask 0 allows no token"),
        ({"sampler": None}, "ask 0"),
        ({"sampler": "greedy"}, "ask 0: its sampler cannot be read"),
    ],
    ids=str,
)
def test_bad_asks_are_refused_and_change_nothing(change: dict[str, Any], message: str) -> None:
    sampler = native.sampler(SamplingRules(frequency_penalty=1.0), 50, [])
    ask = Ask(sampler=sampler, rows=3, draft=(1, 2), points=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=message):
        native.choose(normal(0, 3, 50), [msgspec.structs.replace(ask, **change)])
    fresh = native.sampler(SamplingRules(frequency_penalty=1.0), 50, [])
    both = [native.choose(normal(0, 3, 50), [msgspec.structs.replace(ask, sampler=one)]) for one in (sampler, fresh)]
    assert both[0] == both[1]


def test_two_asks_that_choose_cannot_share_a_sampler() -> None:
    sampler = native.sampler(GREEDY, 5, [])
    scoring, choosing = Ask(sampler=sampler, rows=1, score=(1,), choose=False), Ask(sampler=sampler, rows=1)
    with pytest.raises(ValueError, match="two asks that choose have the same sampler"):
        native.choose(normal(0, 2, 5), [choosing, choosing])
    assert [len(answer.tokens) for answer in native.choose(normal(0, 2, 5), [scoring, choosing])] == [0, 1]


def test_a_sampler_is_for_one_vocabulary() -> None:
    with pytest.raises(ValueError, match="the sampler of ask 0 is for 49 tokens, the rows have 50 logits"):
        native.choose(normal(0, 1, 50), [Ask(sampler=native.sampler(GREEDY, 49, []), rows=1)])


def test_nothing_is_answered_for_no_asks() -> None:
    assert native.choose(np.zeros((0, 5), np.float32), []) == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; it must be from 0 to"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 1.1}, r"top_p is 1\.1; it must be from 0 to 1$"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"frequency_penalty": math.inf}, "frequency_penalty"),
        ({"logit_bias": {10: 1.0}}, r"biased token 10 is outside 0\.\.9"),
        ({"logit_bias": {1: math.inf}}, "logit_bias"),
        ({"repetition_penalty": 2.0}, r"prompt token 12 is outside 0\.\.9"),
    ],
)
def test_rules_out_of_range_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.sampler(SamplingRules(**rules), 10, [1, 12])


# ---- as part of a step


def small_plan() -> native.Plan:
    """12 tokens of vocabulary, one attention layer of width 8, logits of 40 columns, and its states."""
    recorder = native.Recorder()
    q, k, v = recorder.split(recorder.embed(packed(normal(0, 12, 16), "float32")), (8, 4, 4))
    out = recorder.gqa(q, k, v, 0, GqaShape(2, 1, 4, 0.5))
    head = packed(normal(1, 40, 8) * 5, "float32")
    return recorder.finish(recorder.linear(recorder.select(out), head), out)


def test_a_step_is_a_run_and_a_choice() -> None:
    batch = packed_batch([(0, 3), (60, 6)])
    plan, rules = small_plan(), SamplingRules(top_p=0.9, frequency_penalty=1.0)
    logits_LV, states_TD = plan.run_all(batch, native.Cache([8], 3))
    rows = len(logits_LV)

    def asks() -> list[Ask]:
        first = Ask(sampler=native.sampler(rules, 40, []), rows=1, points=(0.4,), logprobs=3)
        rest = Ask(sampler=native.sampler(rules, 40, []), rows=rows - 1, score=(1,) * (rows - 2), points=(0.9,))
        return [first, rest]

    expected = native.choose(logits_LV, asks())
    for states in (False, True):
        answers, further = plan.step(batch, native.Cache([8], 3), asks(), states=states)
        assert answers == expected
        assert [np.array_equal(given, states_TD) for given in further] == [True] * states


def test_a_step_refuses_bad_asks_before_it_computes() -> None:
    batch, cache, plan = packed_batch([(0, 3)]), native.Cache([8], 1), small_plan()
    rows = len(batch.selected_L)
    with pytest.raises(ValueError, match="rows together"):
        plan.step(batch, cache, [Ask(sampler=native.sampler(GREEDY, 40, []), rows=rows + 1)])
    with pytest.raises(ValueError, match="for 41 tokens"):
        plan.step(batch, cache, [Ask(sampler=native.sampler(GREEDY, 41, []), rows=rows)])
    with pytest.raises(ValueError, match="takes 0 inputs"):
        plan.step(batch, cache, [Ask(sampler=native.sampler(GREEDY, 40, []), rows=rows)], [normal(0, 3, 8)])


def test_the_memory_of_a_step_grows_with_its_rows() -> None:
    plan = small_plan()
    assert plan.bytes(0, 0) == 0
    per_row, per_logits = plan.bytes(1, 0), plan.bytes(1, 1) - plan.bytes(1, 0)
    assert per_row >= 4 * 16  # the embedded row at least
    assert per_logits >= 4 * 40
    assert plan.bytes(70, 9) == 70 * per_row + 9 * per_logits
    with pytest.raises(ValueError, match="0 rows or more"):
        plan.bytes(-1, 0)
