"""Speculation over a fake paged model: whatever is guessed, the answers are those of plain decoding."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.engine import Delta, EngineConfig, EngineCore, Request, SamplingParams
from deepwell.engine.scheduler import SequenceState
from deepwell.engine.speculation.speculator import PLAIN
from deepwell.errors import ConfigError
from deepwell.options import Speculate
from fake_draft_head import FakeDraftHead
from fakes import EOS, FakeRunner, reply, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASSISTANT = 4


def talk(context: tuple[int, ...]) -> int | None:
    """A language with habits, so that guesses are often right: usually the last token says the next."""
    digest = hashlib.blake2b(np.asarray(context, np.int64).tobytes(), digest_size=2, key=b"talk").digest()
    chance = int.from_bytes(digest, "little") % 100
    if chance < 2:
        return TOKENIZER.special(EOS)
    return 30 + (context[-1] * 7 + 3) % 40 if chance < 85 else None


def make_runner(blocks: int = 256, context: int = 4096, **more: object) -> FakeRunner:
    runner = FakeRunner(blocks=blocks, context=context, next_token=talk, **more)
    FakeDraftHead(runner)
    return runner


def ticking(seed: int = 0) -> Iterator[float]:
    """A clock that runs unevenly, so that `auto` changes its mind, the same in every run."""
    source, now = random.Random(seed), 0.0
    while True:
        now += source.random()
        yield now


def make_core(runner: FakeRunner, speculate: Speculate, **config: object) -> EngineCore:
    return EngineCore(runner, TOKENIZER, EngineConfig(speculate=speculate, **config), clock=ticking().__next__)


def request(id: str, prompt: tuple[int, ...], **sampling: object) -> Request:
    return Request(id=id, prompt=prompt, sampling=SamplingParams(**sampling))


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(20, 80, length).tolist())


def serve(core: EngineCore, requests: Sequence[Request]) -> dict[str, Delta]:
    """Whole answers; blocks and the sealed content are checked after each step."""
    parts: dict[str, list[Delta]] = {r.id: [] for r in requests}
    for r in requests:
        core.add(r)
    while core.live:
        for id, delta in core.step():
            parts[id].append(delta)
        core.check_integrity()
        check_sealed(core)
    assert core.stats().blocks_free == core.stats().blocks_total
    return {id: joined(deltas) for id, deltas in parts.items()}


def check_sealed(core: EngineCore) -> None:
    """A sealed block of a live sequence holds exactly the sequence's tokens: no guess that was wrong."""
    runner, pool = core._backend, core._steps.pools.pools[0]
    assert isinstance(runner, FakeRunner)
    for sequence in core._steps.scheduler.running:
        for index, block in enumerate(sequence.tables[0]):
            if block in pool._key_of:
                held = sequence.tokens[index * 64 : index * 64 + 64]
                assert runner.slots[block, :, 1].tolist() == held


Drafts = Callable[[Sequence[tuple[SequenceState, int]]], dict[str, tuple[int, ...]]]


def propose(core: EngineCore, drafts: Drafts) -> None:
    """Guess so from now on, for each sequence that lacks its newest token alone, beside the most that it may take."""
    core._drafts = lambda: drafts([(s, core._live[s.id].room - 1) for s in core._steps.ready])  # type: ignore[method-assign]


def joined(deltas: list[Delta]) -> Delta:
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])
    return Delta(
        marked=sum((delta.marked for delta in deltas), ()),
        token_ids=sum((delta.token_ids for delta in deltas), ()),
        logprobs=sum((delta.logprobs for delta in deltas), ()),
        prompt_logprobs=sum((delta.prompt_logprobs for delta in deltas), ()),
        finish_reason=deltas[-1].finish_reason,
        usage=deltas[-1].usage,
        error=deltas[-1].error,
    )


def plain(r: Request) -> Delta:
    """The answer without speculation, alone."""
    (answer,) = serve(make_core(make_runner(), "off"), [r]).values()
    return answer


def assert_same(answer: Delta, expected: Delta) -> None:
    """Equal but for the guesses and the cache hits in the usage."""
    assert answer.usage is not None
    assert expected.usage is not None
    usage = msgspec.structs.replace(
        answer.usage, drafted_tokens=0, accepted_tokens=0, cached_tokens=expected.usage.cached_tokens
    )
    assert msgspec.structs.replace(answer, usage=usage) == expected


@st.composite
def some_requests(draw: st.DrawFn) -> list[Request]:
    found = []
    for index in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 190))
        shared = draw(st.integers(0, length))
        found.append(
            request(
                str(index),
                prompt_of(0, shared) + prompt_of(index + 1, length - shared),
                max_tokens=draw(st.integers(0, 70)),
                temperature=draw(st.sampled_from([0.0, 1.0])),
                seed=index,
                top_p=draw(st.sampled_from([1.0, 0.9])),
                repetition_penalty=draw(st.sampled_from([1.0, 1.1])),
                frequency_penalty=draw(st.sampled_from([0.0, 0.3])),
                logit_bias=draw(st.sampled_from([{}, {40: 60.0}])),
                stop=draw(st.sampled_from([(), ("a",), ("xx", "Q", "th")])),
                stop_token_ids=draw(st.sampled_from([(), (33, 47)])),
                ignore_eos=draw(st.booleans()),
                logprobs=draw(st.none() | st.integers(0, 3)),
                prompt_logprobs=draw(st.none() | st.integers(0, 2)),
            )
        )
    return found


@given(
    requests=some_requests(),
    mode=st.sampled_from(["lookup", "mtp", "auto"]),
    draft_tokens=st.integers(1, 5),
    blocks=st.integers(5, 12),
    budget=st.sampled_from([1, 7, 64, 512]),
    max_running=st.integers(1, 4),
)
@settings(max_examples=80)
def test_no_answer_changes(
    requests: list[Request], mode: Speculate, draft_tokens: int, blocks: int, budget: int, max_running: int
) -> None:
    """Batches, chunks, prefix hits, preemption, stops, penalties, EOS, limits: all as without speculation."""
    runner = make_runner(blocks=blocks)
    core = make_core(runner, mode, draft_tokens=draft_tokens, token_budget=budget, max_running=max_running)
    answers = serve(core, requests)
    assert runner.violations == []
    for r in requests:
        assert_same(answers[r.id], plain(r))
    stats = core.stats()
    counted = [answer.usage for answer in answers.values() if answer.usage]
    assert sum(stats.drafted.values()) == sum(usage.drafted_tokens for usage in counted)
    assert sum(stats.accepted.values()) == sum(usage.accepted_tokens for usage in counted)
    assert stats.generated_tokens == sum(usage.completion_tokens for usage in counted)
    assert max(len(batch.tokens_T) for batch in runner.batches) <= budget


@given(some_requests(), st.randoms(use_true_random=False), st.integers(1, 8))
@settings(max_examples=40)
def test_any_guesses_at_all(requests: list[Request], source: random.Random, most: int) -> None:
    """Guesses of any length, right up to any place, even for answers that may not grow so far."""
    runner = make_runner(blocks=10)
    core = make_core(runner, "lookup", token_budget=100)

    def drafts(ready: Sequence[tuple[SequenceState, int]]) -> dict[str, tuple[int, ...]]:
        found = {}
        for sequence, room in ready:
            context, draft = list(sequence.tokens), []
            for _ in range(min(source.randint(0, most), room)):
                right = source.random() < 0.8
                draft.append(int(runner.logits_of(tuple(context)).argmax()) if right else source.randrange(320))
                context.append(draft[-1])
            found[sequence.id] = tuple(draft)
        return found

    propose(core, drafts)
    answers = serve(core, requests)
    assert runner.violations == []
    for r in requests:
        assert_same(answers[r.id], plain(r))


@pytest.mark.parametrize("mode", ["lookup", "mtp"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_right_guesses_save_steps(mode: Speculate, temperature: float) -> None:
    r = request("a", prompt_of(1, 100), max_tokens=200, temperature=temperature, seed=1, ignore_eos=True)
    core = make_core(make_runner(), mode)
    answer = serve(core, [r])["a"]
    assert_same(answer, plain(r))
    stats = core.stats()
    assert answer.usage is not None
    assert (stats.drafted[mode], stats.accepted[mode]) == (answer.usage.drafted_tokens, answer.usage.accepted_tokens)
    assert 0 < stats.accepted[mode] < stats.drafted[mode]
    # Each step but those that read the prompt gives one token and the accepted guesses.
    assert stats.steps == 200 - stats.accepted[mode]
    assert stats.steps < 150
    assert stats.computed_tokens == 100 + 199


@pytest.mark.parametrize("mode", ["lookup", "mtp"])
def test_a_second_answer_from_the_cache(mode: Speculate) -> None:
    """Prefix hits on blocks whose tokens were guesses once; the module's cache is found there too."""
    r = request("a", prompt_of(1, 100), max_tokens=200, temperature=0.0, ignore_eos=True)
    runner = make_runner()
    core = make_core(runner, mode)
    first = serve(core, [r])["a"]
    again = Request(id="b", prompt=r.prompt + first.token_ids, sampling=r.sampling)
    second = serve(core, [again])["b"]
    assert second.usage is not None
    assert second.usage.cached_tokens == 256
    assert second.usage.drafted_tokens > 20
    assert runner.violations == []
    assert_same(second, plain(again))


def test_an_untracked_prefix_gets_no_guesses_of_the_module() -> None:
    """Blocks computed without the module hold no pairs, so a sequence that starts from them is answered plainly."""
    runner = make_runner()
    core = make_core(runner, "mtp")
    r = request("a", prompt_of(1, 130), max_tokens=5, temperature=0.0, ignore_eos=True)
    tracks, core._runner._draft_head = core._runner._draft_head, None
    serve(core, [r])
    core._runner._draft_head = tracks
    answer = serve(core, [Request(id="b", prompt=r.prompt, sampling=r.sampling)])["b"]
    assert answer.usage is not None
    assert (answer.usage.cached_tokens, answer.usage.drafted_tokens) == (128, 0)
    assert runner.violations == []


def say(text: str, *ends: str) -> list[int]:
    return [*TOKENIZER.encode(text), *(TOKENIZER.special(end) for end in ends)]


@pytest.mark.parametrize(
    ("sampling", "text", "reason", "unguessed"),
    [
        ({}, "deep well water", "stop", 1),
        # A limit is known beforehand, so the last token is never guessed: its row could not be used.
        ({"max_tokens": 3}, None, "length", 2),
        ({"stop": ("well",)}, "deep ", "stop", 1),
        ({"stop_token_ids": (TOKENIZER.encode("deep well")[-1],)}, None, "stop", 1),
    ],
)
def test_what_follows_an_end_is_dropped(sampling: dict, text: str | None, reason: str, unguessed: int) -> None:
    """All of the answer is guessed in one draft, and more; nothing after the end is emitted or counted."""
    ids = [*say("deep well water", EOS), 50, 51]
    runner = FakeRunner(next_token=reply(ids, after=ASSISTANT))
    core = make_core(runner, "lookup")
    propose(core, lambda ready: {s.id: tuple(ids[len(s.tokens) - 2 :][:room]) for s, room in ready})
    r = request("a", (30, ASSISTANT), **{"temperature": 0.0, "logprobs": 1} | sampling)
    answer = serve(core, [r])["a"]
    usage = answer.usage
    assert usage is not None
    assert answer.finish_reason == reason
    assert text is None or answer.text == text
    assert len(answer.token_ids) == len(answer.logprobs) == usage.completion_tokens <= len(ids) - 2
    assert usage.accepted_tokens == usage.completion_tokens - unguessed
    assert core.stats().steps == 2
    expected = EngineCore(FakeRunner(next_token=reply(ids, after=ASSISTANT)), TOKENIZER)
    assert_same(answer, serve(expected, [r])["a"])


def test_broken_logits_of_a_wrong_guess_harm_nobody() -> None:
    poison = 25
    ids = say("deep well", EOS)
    runner = FakeRunner(next_token=reply(ids, after=ASSISTANT), nan_after=frozenset({poison}))
    core = make_core(runner, "lookup")
    propose(core, lambda ready: {s.id: (poison, 26) for s, _ in ready})
    answer = serve(core, [request("a", (30, ASSISTANT), temperature=0.0)])["a"]
    assert (answer.text, answer.finish_reason, answer.error) == ("deep well", "stop", None)


def test_broken_logits_of_a_right_guess_end_the_answer_where_they_would_without() -> None:
    poison = 25
    ids = [40, poison, 41]
    answers = []
    for drafted in (False, True):
        runner = FakeRunner(next_token=reply(ids, after=ASSISTANT), nan_after=frozenset({poison}))
        core = make_core(runner, "lookup")
        propose(
            core,
            lambda ready, drafted=drafted: {
                s.id: tuple(ids[len(s.tokens) - 2 :][:room]) for s, room in ready if drafted
            },
        )
        answers.append(serve(core, [request("a", (30, ASSISTANT), temperature=0.0)])["a"])
    assert answers[1].finish_reason == "error"
    assert "not numbers" in (answers[1].error or "")
    assert answers[1].token_ids == (40, poison)
    assert_same(answers[1], answers[0])


def test_a_failing_drafter_ends_the_guessing_and_nothing_else() -> None:
    r = request("a", prompt_of(1, 30), max_tokens=40, temperature=0.0, ignore_eos=True)
    runner = make_runner()
    core = make_core(runner, "mtp")
    assert core._runner._draft_head is not None
    core._runner._draft_head.guesses = None  # type: ignore[assignment]
    answer = serve(core, [r])["a"]
    assert_same(answer, plain(r))
    assert answer.usage is not None
    assert answer.usage.drafted_tokens == 0


@pytest.mark.parametrize("length", [30, 900])
def test_a_draft_head_that_fails_while_it_looks_on_harms_nobody(length: int) -> None:
    r = request("a", prompt_of(1, length), max_tokens=40, temperature=0.0, ignore_eos=True)
    core = make_core(make_runner(), "mtp")
    assert core._runner._draft_head is not None
    core._runner._draft_head._predict = None  # type: ignore[assignment]
    answer = serve(core, [r])["a"]
    assert_same(answer, plain(r))
    assert answer.usage is not None
    assert answer.usage.drafted_tokens == 0


@pytest.mark.parametrize("mode", ["lookup", "mtp"])
def test_abort_in_the_middle(mode: Speculate) -> None:
    runner = make_runner()
    core = make_core(runner, mode)
    other = request("b", prompt_of(2, 70), max_tokens=60, temperature=0.0, ignore_eos=True)
    core.add(request("a", prompt_of(1, 70), max_tokens=100, temperature=0.0, ignore_eos=True))
    core.add(other)
    parts = [piece for _ in range(9) for piece in core.step()]
    last = core.abort("a")
    assert last is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(len(delta.token_ids) for id, delta in parts if id == "a")
    core.check_integrity()
    while core.live:
        parts += core.step()
    assert_same(joined([delta for id, delta in parts if id == "b"]), plain(other))
    assert runner.violations == []


def test_the_context_is_not_overrun() -> None:
    runner = make_runner(context=100)
    answer = serve(make_core(runner, "lookup", draft_tokens=16), [request("a", prompt_of(1, 60), ignore_eos=True)])["a"]
    assert answer.usage is not None
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 40)
    assert max(int(batch.positions_T.max()) for batch in runner.batches) <= 99


def test_waiting_pairs_go_through_the_module_in_batches() -> None:
    """While the module's guesses are not wanted, its cache is kept up at a fraction of the calls."""
    runner = FakeRunner(next_token=talk)
    module = FakeDraftHead(runner)
    core = make_core(runner, "mtp")
    core._speculator.choose = lambda ready, followed: PLAIN  # type: ignore[method-assign]
    serve(core, [request("a", prompt_of(1, 30), max_tokens=1200, ignore_eos=True)])
    assert module.rows == [29, 511, 511]
    assert runner.violations == []


@pytest.mark.parametrize("budget", [64, 200, 512])
def test_the_module_never_computes_more_rows_than_a_step_may(budget: int) -> None:
    """A long prompt's pairs go through in the steps that read it, not all at once when its answer begins."""
    runner = FakeRunner(next_token=talk)
    module = FakeDraftHead(runner)
    core = make_core(runner, "mtp", token_budget=budget, step_ms=0)
    prompts = [request(str(i), prompt_of(i, 1500), max_tokens=80, ignore_eos=True, temperature=0.0) for i in range(2)]
    answers = serve(core, prompts)
    assert max(module.rows) <= budget
    assert sum(module.rows) >= 2 * 1499
    assert runner.violations == []
    for r in prompts:
        assert_same(answers[r.id], plain(r))
        assert answers[r.id].usage is not None
        assert answers[r.id].usage.drafted_tokens > 10


def test_a_mode_that_the_model_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="no multi-token prediction module; try lookup"):
        EngineCore(FakeRunner(), TOKENIZER, EngineConfig(speculate="mtp"))
    with pytest.raises(ConfigError, match="speculate is 'maybe'; allowed are off, lookup, mtp, auto"):
        EngineCore(FakeRunner(), TOKENIZER, EngineConfig(speculate="maybe"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draft_tokens is 0; it must be at least 1"):
        EngineConfig(draft_tokens=0)
