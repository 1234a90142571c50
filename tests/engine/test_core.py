"""The engine over a fake paged model: the same request gives the same answer however it is served."""

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.engine import Delta, EngineConfig, EngineCore, FinishReason, Request, SamplingParams, TokenLogprob, Usage
from deepwell.errors import ConfigError, QueueFull, RequestError
from deepwell.ops.base import Batch
from deepwell.weights.added_tokens import Marked, Tag
from deepwell.weights.tokenizer import Tokenizer
from fakes import EOS, FakeRunner, reply, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASSISTANT = 4


def request(id: str, prompt: tuple[int, ...], **sampling: object) -> Request:
    return Request(id=id, prompt=prompt, sampling=SamplingParams(**sampling))


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(20, 320, length).tolist())


def serve(core: EngineCore, requests: list[Request]) -> dict[str, list[Delta]]:
    """Add everything at once, step to the end, and check the blocks after each step."""
    answers: dict[str, list[Delta]] = {r.id: [] for r in requests}
    for r in requests:
        core.add(r)
    while core.live:
        for id, delta in core.step():
            assert delta.error is None or id == "bad"
            answers[id].append(delta)
        core.check_integrity()
    assert core.stats().blocks_free == core.stats().blocks_total
    return answers


def joined(deltas: list[Delta]) -> Delta:
    """One delta that says what all of them say."""
    *_, last = deltas
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])
    assert not any(delta.prompt_logprobs for delta in deltas[1:])
    return Delta(
        marked=sum((delta.marked for delta in deltas), ()),
        token_ids=sum((delta.token_ids for delta in deltas), ()),
        logprobs=sum((delta.logprobs for delta in deltas), ()),
        prompt_logprobs=deltas[0].prompt_logprobs,
        finish_reason=last.finish_reason,
        usage=last.usage,
        error=last.error,
    )


def run_one(core: EngineCore, r: Request) -> Delta:
    return joined(serve(core, [r])[r.id])


def by_hand(r: Request, runner: FakeRunner) -> tuple[int, ...]:
    """Greedy continuation straight from the fake model, without an engine."""
    context = list(r.prompt)
    while len(context) - len(r.prompt) < r.sampling.max_tokens:
        context.append(int(runner.logits_of(tuple(context)).argmax()))
    return tuple(context[len(r.prompt) :])


PROBE = request(
    "probe", prompt_of(1, 150), max_tokens=100, seed=5, temperature=0.8, top_p=0.9, logprobs=3, ignore_eos=True
)


def test_a_greedy_answer_is_the_models() -> None:
    r = request("a", prompt_of(1, 130), max_tokens=70, temperature=0.0, ignore_eos=True)
    runner = FakeRunner()
    answer = run_one(EngineCore(runner, TOKENIZER), r)
    assert answer.token_ids == by_hand(r, runner)
    assert answer.finish_reason == "length"
    assert answer.usage == Usage(prompt_tokens=130, cached_tokens=0, completion_tokens=70)
    assert answer.text == TOKENIZER.decode(id for id in answer.token_ids if not TOKENIZER.is_special(id))
    assert runner.violations == []


def same_answer(one: Delta, other: Delta) -> bool:
    keep = ("text", "token_ids", "logprobs", "prompt_logprobs", "finish_reason")
    return all(getattr(one, field) == getattr(other, field) for field in keep)


@pytest.mark.parametrize("token_budget", [1, 7, 64, 512])
def test_chunks_change_nothing(token_budget: int) -> None:
    alone = run_one(EngineCore(FakeRunner(), TOKENIZER), PROBE)
    runner = FakeRunner()
    chunked = run_one(EngineCore(runner, TOKENIZER, EngineConfig(token_budget=token_budget)), PROBE)
    assert same_answer(alone, chunked)
    assert max(len(batch.tokens_T) for batch in runner.batches) <= token_budget
    assert runner.violations == []


@pytest.mark.parametrize("token_budget", [64, 512])
def test_sixty_four_others_change_nothing(token_budget: int) -> None:
    alone = run_one(EngineCore(FakeRunner(blocks=512), TOKENIZER), PROBE)
    others = [request(f"o{i}", prompt_of(i, 3 + 5 * i), max_tokens=20 + i, seed=i) for i in range(2, 66)]
    runner = FakeRunner(blocks=512)
    core = EngineCore(runner, TOKENIZER, EngineConfig(token_budget=token_budget))
    together = serve(core, [*others[:32], PROBE, *others[32:]])
    assert same_answer(alone, joined(together["probe"]))
    assert runner.violations == []
    assert max(len(batch.selected_L) for batch in runner.batches) > 15


def test_a_prefix_hit_changes_nothing_but_the_usage() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER)
    cold, warm = run_one(core, PROBE), run_one(core, PROBE)
    assert same_answer(cold, warm)
    assert cold.usage == Usage(prompt_tokens=150, cached_tokens=0, completion_tokens=100)
    assert warm.usage == Usage(prompt_tokens=150, cached_tokens=128, completion_tokens=100)
    stats = core.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (300, 128, 200)
    assert stats.computed_tokens == 249 + 249 - 128


def test_a_second_turn_finds_the_first_answer_in_the_cache() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER)
    first = run_one(core, PROBE)
    conversation = PROBE.prompt + first.token_ids + prompt_of(9, 30)
    second = run_one(core, request("next", conversation, max_tokens=5))
    # 249 tokens were computed: the last one was never fed back.
    assert second.usage == Usage(prompt_tokens=280, cached_tokens=192, completion_tokens=second.usage.completion_tokens)


def test_preemption_changes_nothing() -> None:
    """Six answers grow in a pool that cannot hold them all."""
    requests = [
        request(f"r{i}", prompt_of(i, 60), max_tokens=150, seed=i, logprobs=2, ignore_eos=True) for i in range(6)
    ]
    alone = {r.id: run_one(EngineCore(FakeRunner(), TOKENIZER), r) for r in requests}
    runner = FakeRunner()
    core = EngineCore(runner, TOKENIZER, EngineConfig(blocks=7))
    together = serve(core, requests)
    assert core.stats().preemptions > 3
    assert runner.violations == []
    for r in requests:
        assert same_answer(alone[r.id], joined(together[r.id]))
        assert joined(together[r.id]).usage == alone[r.id].usage


@st.composite
def some_requests(draw: st.DrawFn) -> list[Request]:
    found = []
    for index in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 190))
        shared = draw(st.integers(0, length))
        prompt = prompt_of(0, shared) + prompt_of(index + 1, length - shared)
        found.append(
            request(
                str(index),
                prompt,
                max_tokens=draw(st.integers(0, 60)),
                temperature=draw(st.sampled_from([0.0, 1.0])),
                seed=index,
                repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
                logprobs=draw(st.none() | st.integers(0, 3)),
                prompt_logprobs=draw(st.none() | st.integers(0, 2)),
            )
        )
    return found


@given(some_requests(), st.integers(4, 12), st.sampled_from([1, 7, 64, 512]), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_however_requests_meet_their_answers_are_the_same(
    requests: list[Request], blocks: int, budget: int, max_running: int
) -> None:
    runner = FakeRunner(blocks=blocks)
    core = EngineCore(runner, TOKENIZER, EngineConfig(token_budget=budget, max_running=max_running))
    together = serve(core, requests)
    assert runner.violations == []
    for r in requests:
        assert same_answer(joined(together[r.id]), run_one(EngineCore(FakeRunner(blocks=4), TOKENIZER), r))


def test_logprobs_are_of_the_models_distribution_with_the_top_first() -> None:
    runner = FakeRunner()
    r = request("a", prompt_of(2, 5), max_tokens=8, temperature=0.7, top_k=3, logit_bias={9: 30.0}, logprobs=20)
    answer = run_one(EngineCore(runner, TOKENIZER), r)
    assert len(answer.logprobs) == len(answer.token_ids)
    context = r.prompt
    for entry, token in zip(answer.logprobs, answer.token_ids, strict=True):
        assert_logprob(entry, token, runner.logits_of(context), 20)
        context += (token,)


def assert_logprob(entry: TokenLogprob, token: int, logits: np.ndarray, count: int) -> None:
    raw = [float(value) for value in logits]
    norm = max(raw) + math.log(math.fsum(math.exp(value - max(raw)) for value in raw))
    best = sorted(range(len(raw)), key=lambda id: (-raw[id], id))[:count]
    assert (entry.token, entry.bytes) == (token, TOKENIZER.token_bytes(token))
    assert entry.logprob == pytest.approx(raw[token] - norm, abs=1e-9)
    assert [id for id, _ in entry.top] == best
    assert [value for _, value in entry.top] == pytest.approx([raw[id] - norm for id in best], abs=1e-9)


@pytest.mark.parametrize("max_tokens", [0, 1, 12])
def test_prompt_logprobs_score_every_prompt_token(max_tokens: int) -> None:
    runner = FakeRunner()
    core = EngineCore(runner, TOKENIZER, EngineConfig(token_budget=50))
    r = request("a", prompt_of(3, 170), max_tokens=max_tokens, prompt_logprobs=2, ignore_eos=True)
    for id in ("cold", "again"):  # the cache must not hide logits
        answer = run_one(core, Request(id=id, prompt=r.prompt, sampling=r.sampling))
        first, *rest = answer.prompt_logprobs
        assert first == TokenLogprob(r.prompt[0], TOKENIZER.token_bytes(r.prompt[0]), None)
        assert len(rest) == 169
        for place, entry in enumerate(rest, start=1):
            assert_logprob(entry, r.prompt[place], runner.logits_of(r.prompt[:place]), 2)
        assert answer.finish_reason == "length"
        assert answer.usage == Usage(prompt_tokens=170, cached_tokens=0, completion_tokens=max_tokens)


def test_no_tokens_asked_gives_none() -> None:
    answer = run_one(EngineCore(FakeRunner(), TOKENIZER), request("a", prompt_of(1, 70), max_tokens=0))
    assert answer == Delta(finish_reason="length", usage=Usage(70, 0, 0))


def say(text: str, *ends: str) -> FakeRunner:
    """A model that answers `text`, then the special tokens `ends`."""
    ids = [*TOKENIZER.encode(text), *(TOKENIZER.special(end) for end in ends)]
    return FakeRunner(next_token=reply(ids, after=ASSISTANT))


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        ({}, "naïve 🐳 deep well", "stop"),
        ({"max_tokens": 3}, None, "length"),
        ({"stop": ("deep",)}, "naïve 🐳 ", "stop"),
        ({"stop": ("xyz", "p w", "🐳 d")}, "naïve ", "stop"),
        ({"stop": ("well ",)}, "naïve 🐳 deep well", "stop"),
        ({"stop_token_ids": (0,)}, "naïve 🐳 deep well", "stop"),
    ],
)
def test_an_answer_ends_where_it_should(sampling: dict, text: str | None, reason: FinishReason) -> None:
    runner = say("naïve 🐳 deep well", EOS)
    prompt = (*TOKENIZER.encode("hi"), ASSISTANT)
    answer = run_one(EngineCore(runner, TOKENIZER), request("a", prompt, **{"temperature": 0.0} | sampling))
    assert answer.finish_reason == reason
    if text is None:
        text = b"".join(map(TOKENIZER.token_bytes, answer.token_ids)).decode("utf-8", "replace")
    assert answer.text == text
    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert (answer.token_ids[-1] == TOKENIZER.special(EOS)) == (
        not sampling.get("max_tokens") and text.endswith("well")
    )


def test_a_stop_token_ends_without_its_text() -> None:
    runner = say("one two")
    two = TOKENIZER.encode("one two")[-1]
    r = request("a", (ASSISTANT,), temperature=0.0, stop_token_ids=(two,))
    answer = run_one(EngineCore(runner, TOKENIZER), r)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == two
    assert answer.text == TOKENIZER.decode(answer.token_ids[:-1])


def test_ignore_eos_goes_on_and_special_tokens_are_no_text() -> None:
    runner = say("a", EOS, "<think>")
    r = request("a", (ASSISTANT,), temperature=0.0, ignore_eos=True, max_tokens=3)
    answer = run_one(EngineCore(runner, TOKENIZER), r)
    assert answer.token_ids == (*TOKENIZER.encode("a"), 1, TOKENIZER.special("<think>"))
    assert (answer.text, answer.finish_reason) == ("a", "length")


def marked(sampled: list[int], **sampling: Any) -> list[str | int]:
    """The marked answer of a model that samples these tokens, neighbouring texts joined."""
    runner = FakeRunner(next_token=reply(sampled, after=ASSISTANT))
    rules = {"temperature": 0.0, "max_tokens": len(sampled)} | sampling
    answer = run_one(EngineCore(runner, TOKENIZER), request("a", (ASSISTANT,), **rules))
    out: list[str | int] = []
    for is_text, parts in itertools.groupby(answer.marked, key=lambda part: isinstance(part, str)):
        found = list(parts)
        out += ["".join(map(str, found))] if is_text else found
    assert answer.text == "".join(part for part in out if isinstance(part, str))
    return out


THINK, CALL = TOKENIZER.special("<think>"), TOKENIZER.special("<｜tool▁call▁begin｜>")


def test_special_tokens_stand_where_they_were_sampled() -> None:
    hi, ho = TOKENIZER.encode("hi 🐳"), TOKENIZER.encode("ho")
    assert marked([THINK, *hi, CALL, CALL, *ho, CALL]) == [THINK, "hi 🐳", CALL, CALL, "ho", CALL]
    assert marked([*hi, THINK, *ho, 1, *hi]) == ["hi 🐳", THINK, "ho"]
    assert marked([*hi, 1, *ho], ignore_eos=True) == ["hi 🐳", 1, "ho"]
    assert marked([*hi, THINK, *ho], stop_token_ids=(THINK,)) == ["hi 🐳"]


def tagged(*sampled: int, **sampling: Any) -> tuple[list[Marked], FinishReason | None]:
    """What a model answers that samples these tokens, of which 320 is the tag `<row>` and 321 `<|endoftext|>`."""
    state = TOKENIZER.state()
    more = {320: "<row>", 321: "<|endoftext|>"}
    tokenizer = Tokenizer.restore(
        msgspec.structs.replace(state, tags={"<row>": 320, "<|endoftext|>": 321}, spelled=state.spelled | more)
    )
    runner = FakeRunner(vocab_size=322, next_token=reply(sampled, after=ASSISTANT))
    rules = {"temperature": 0.0, "max_tokens": len(sampled)} | sampling
    answer = run_one(EngineCore(runner, tokenizer), request("a", (ASSISTANT,), **rules))
    return list(answer.marked), answer.finish_reason


def test_tags_are_text_and_ends_are_known_by_name() -> None:
    (x,) = TOKENIZER.encode("x")
    row = Tag("<row>", 320)
    assert tagged(x, 320, x) == (["x", row, "x"], "length")
    assert tagged(x, 320, x, stop=("row>x",)) == (["x", "<"], "stop")
    assert tagged(x, 320, 321, x) == (["x", row], "stop")
    assert tagged(x, 321, x, ignore_eos=True) == (["x", Tag("<|endoftext|>", 321), "x"], "length")


def test_a_stop_text_may_spell_a_special_token() -> None:
    x = TOKENIZER.encode("x")
    assert marked([*x, THINK, *x], stop=("<think>",)) == ["x"]
    assert marked([*x, THINK, *x], stop=("<think>y", "xx", "think", "<")) == ["x", THINK, "x"]
    assert marked([*x, 1, *x], stop=(EOS,), ignore_eos=True) == ["x"]


def test_a_special_token_lets_go_of_held_text() -> None:
    half = TOKENIZER.encode("龙")[:-1]
    assert marked([*TOKENIZER.encode("a"), *half, THINK, *TOKENIZER.encode("b")]) == ["a\ufffd", THINK, "b"]
    stop = {"stop": ("xyz",)}
    x, yz = TOKENIZER.encode("ax"), TOKENIZER.encode("yz")
    assert marked([*x, THINK, *yz], **stop) == ["ax", THINK, "yz"]
    assert marked([*x, THINK, *x, *yz, THINK], **stop) == ["ax", THINK, "a"]
    assert marked([*half, THINK, *x], stop=("\ufffd",)) == []


def test_half_a_character_at_the_end_is_replaced() -> None:
    whale = TOKENIZER.encode("龙")
    runner = FakeRunner(next_token=reply([*whale[:-1], 1], after=ASSISTANT))
    answer = run_one(EngineCore(runner, TOKENIZER), request("a", (ASSISTANT,), temperature=0.0))
    assert answer.text == "\ufffd"


def test_the_context_ends_an_answer() -> None:
    core = EngineCore(FakeRunner(context=100), TOKENIZER)
    answer = run_one(core, request("a", prompt_of(1, 90), max_tokens=50, ignore_eos=True))
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 10)


def test_the_block_pool_ends_an_answer_that_fills_it() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER, EngineConfig(blocks=2))
    answer = run_one(core, request("a", prompt_of(1, 90), max_tokens=50, ignore_eos=True))
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 38)


@pytest.mark.parametrize(("length", "max_tokens", "fits"), [(99, 1, True), (100, 1, False), (100, 0, True)])
def test_a_prompt_that_cannot_fit_is_refused(length: int, max_tokens: int, fits: bool) -> None:
    core = EngineCore(FakeRunner(context=100), TOKENIZER)
    r = request("a", prompt_of(1, length), max_tokens=max_tokens)
    if fits:
        assert run_one(core, r).finish_reason is not None
        return
    with pytest.raises(RequestError, match="maximum context length is 100 tokens") as caught:
        core.add(r)
    assert caught.value.param == "prompt"
    assert not core.live


@pytest.mark.parametrize("answered", [0, 1, 5])
def test_abort_frees_everything(answered: int) -> None:
    core = EngineCore(FakeRunner(), TOKENIZER)
    core.add(PROBE)
    for _ in range(answered):
        core.step()
    last = core.abort("probe")
    assert last is not None
    assert (last.finish_reason, last.usage, last.token_ids) == ("abort", Usage(150, 0, answered), ())
    assert core.abort("probe") is None
    core.check_integrity()
    stats = core.stats()
    assert (stats.blocks_free, stats.running, stats.waiting, stats.aborted) == (256, 0, 0, 1)
    assert core.step() == []


def test_a_closed_generator_aborts() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER)
    pieces = core.generate(PROBE)
    next(pieces)
    pieces.close()
    core.check_integrity()
    assert core.stats().finished == {"stop": 0, "length": 0, "abort": 1, "error": 0, "cut": 0}
    assert same_answer(joined(list(core.generate(PROBE))), run_one(EngineCore(FakeRunner(), TOKENIZER), PROBE))


def test_a_full_queue_and_a_double_id_are_refused() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER, EngineConfig(max_running=2, max_waiting=1))
    for id in "abc":
        core.add(request(id, (30,)))
    with pytest.raises(QueueFull):
        core.add(request("d", (30,)))
    core.abort("b")
    with pytest.raises(RequestError, match="'a' is live"):
        core.add(request("a", (30,)))
    core.add(request("d", (30,)))
    assert (core.stats().waiting, core.stats().running) == (3, 0)
    core.step()
    assert (core.stats().waiting, core.stats().running) == (1, 2)


def test_a_failing_model_ends_the_requests_of_its_step_alone() -> None:
    broken = [True]

    def fail(batch: Batch) -> None:
        if broken[0]:
            raise MemoryError("no room")

    core = EngineCore(FakeRunner(fail=fail), TOKENIZER, EngineConfig(max_running=2, step_ms=0))
    for id in "abc":
        core.add(request(id, prompt_of(1, 70), max_tokens=2, ignore_eos=True))
    pieces = dict(core.step())
    assert {id: (d.finish_reason, d.error) for id, d in pieces.items()} == dict.fromkeys(
        "ab", ("error", "MemoryError: no room")
    )
    core.check_integrity()
    assert [*core.live] == ["c"]
    broken[0] = False
    assert joined([d for _ in range(2) for _, d in core.step()]).finish_reason == "length"
    assert core.stats().finished["error"] == 2


def test_logits_of_a_wrong_shape_are_an_error() -> None:
    runner = FakeRunner()
    runner.vocab_size = 319
    core = EngineCore(runner, TOKENIZER)
    core.add(request("a", (30,)))
    runner.vocab_size = 320
    ((_, last),) = core.step()
    assert last.finish_reason == "error"
    assert "319" in (last.error or "")
    assert "320" in (last.error or "")


def test_nan_logits_end_one_request_and_its_blocks_are_not_shared() -> None:
    poison = 25
    runner = FakeRunner(nan_after=frozenset({poison}))
    core = EngineCore(runner, TOKENIZER, EngineConfig(token_budget=80))
    bad = (*([30] * 150), poison)  # its first blocks are full, and offered to others, before the fault shows
    answers = serve(core, [request("good", prompt_of(1, 60), max_tokens=3, ignore_eos=True), request("bad", bad)])
    assert joined(answers["good"]).finish_reason == "length"
    (last,) = answers["bad"]
    assert last.finish_reason == "error"
    assert "not numbers" in (last.error or "")
    runner.nan_after = frozenset()
    assert run_one(core, request("later", bad, max_tokens=1)).usage == Usage(151, 0, 1)


def test_unseeded_requests_differ() -> None:
    core = EngineCore(FakeRunner(), TOKENIZER)
    answers = serve(core, [request(str(i), prompt_of(1, 5), max_tokens=10, ignore_eos=True) for i in range(4)])
    assert len({joined(deltas).token_ids for deltas in answers.values()}) == 4


@pytest.mark.parametrize(
    "config", [{"token_budget": 0}, {"max_running": 0}, {"max_waiting": -1}, {"drain_seconds": -1}]
)
def test_a_config_out_of_range_is_refused(config: dict) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        EngineConfig(**config)


@pytest.mark.parametrize("blocks", [0, 257])
def test_more_blocks_than_the_runner_has_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match="the runner has 256"):
        EngineCore(FakeRunner(), TOKENIZER, EngineConfig(blocks=blocks))
