"""What may come next is kept to: alone, after a trigger, with guesses, and where nothing is allowed any more."""

from collections.abc import Sequence

import numpy as np
import pytest

from deepwell.engine import Delta, EngineConfig, EngineCore, Request, SamplingParams
from deepwell.grammar.constraint import AfterTrigger, Allowed, ConstraintError, masks_of
from fakes import EOS, FakeRunner, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.special(EOS)


def bits(ids: Sequence[int]) -> np.ndarray:
    mask = np.zeros(10, np.uint32)
    for id in ids:
        mask[id // 32] |= np.uint32(1 << id % 32)
    return mask


class Counting:
    """A toy grammar: token 40 + k must follow token 40 + k - 1 (any of two twins); after `length` it ends."""

    def __init__(self, length: int) -> None:
        self.length, self.said = length, 0

    def allowed(self, draft: Sequence[int]) -> list[Allowed]:
        return [self._place(self.said + ahead) for ahead in range(1 + len(draft))]

    def _place(self, said: int) -> Allowed:
        if said >= self.length:
            return Allowed(bits([]), may_end=True)
        return Allowed(bits([40 + said, 140 + said]), may_end=False)

    def accept(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            assert token in (40 + self.said, 140 + self.said), "a token that was not allowed"
            self.said += 1


def answer(core: EngineCore, constraint: object, **sampling: object) -> Delta:
    rules = {"max_tokens": 60, "seed": 3} | sampling
    r = Request(id="a", prompt=(30, 31), sampling=SamplingParams(**rules), constraint=constraint)
    deltas = list(core.generate(r))
    ids = tuple(id for delta in deltas for id in delta.token_ids)
    return Delta(token_ids=ids, finish_reason=deltas[-1].finish_reason, error=deltas[-1].error)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_answer_keeps_to_its_constraint_and_ends_with_it(temperature: float, ignore_eos: bool) -> None:
    said = answer(EngineCore(FakeRunner(), TOKENIZER), Counting(20), temperature=temperature, ignore_eos=ignore_eos)
    assert [id % 100 for id in said.token_ids[:-1]] == [*range(40, 60)]
    assert {id // 100 for id in said.token_ids[:-1]} == {0, 1}
    assert (said.token_ids[-1], said.finish_reason) == (END, "stop")


def test_a_constraint_begins_after_its_trigger() -> None:
    runner = FakeRunner(next_token=lambda context: 99 if len(context) == 12 else None)
    said = answer(EngineCore(runner, TOKENIZER), AfterTrigger({99}, Counting(5)), temperature=0.0)
    assert said.token_ids[10] == 99
    assert END not in said.token_ids[:11]
    assert [id % 100 for id in said.token_ids[11:-1]] == [*range(40, 45)]
    assert said.token_ids[-1] == END


@pytest.mark.parametrize("trigger", [False, True])
def test_guesses_change_nothing(trigger: bool) -> None:
    def constraint() -> Counting | AfterTrigger:
        return AfterTrigger({99}, Counting(30)) if trigger else Counting(30)

    def runner() -> FakeRunner:
        return FakeRunner(next_token=lambda context: 99 if len(context) == 9 else None)

    plain = answer(EngineCore(runner(), TOKENIZER), constraint(), temperature=0.8)
    core = EngineCore(runner(), TOKENIZER, EngineConfig(speculate="lookup"))
    right = list(plain.token_ids)

    def drafts() -> dict[str, tuple[int, ...]]:
        """Right guesses, then one that is not allowed."""
        found = {}
        for s in core._steps.ready:
            done, room = len(s.tokens) - 2, core._live[s.id].room - 1
            found[s.id] = (*right[done : done + done % 4], 200)[:room]
        return found

    core._drafts = drafts  # type: ignore[method-assign]
    assert answer(core, constraint(), temperature=0.8) == plain
    assert core.stats().accepted["lookup"] > 10


def test_a_constraint_that_leaves_no_way_ends_its_request_alone() -> None:
    class Dead:
        def allowed(self, draft: Sequence[int]) -> list[Allowed]:
            return [Allowed(bits([]), may_end=False)] * (1 + len(draft))

        def accept(self, tokens: Sequence[int]) -> None: ...

    core = EngineCore(FakeRunner(), TOKENIZER)
    core.add(Request(id="good", prompt=(30,), sampling=SamplingParams(max_tokens=3, ignore_eos=True)))
    core.add(Request(id="bad", prompt=(30,), sampling=SamplingParams(), constraint=Dead()))
    pieces = [piece for _ in range(3) for piece in core.step()]
    last = dict(pieces)
    assert last["bad"].finish_reason == "error"
    assert "allows no token" in (last["bad"].error or "")
    assert last["good"].finish_reason == "length"
    core.check_integrity()


def test_ends_are_the_engines() -> None:
    """A grammar's own opinion of the tokens that end an answer does not count."""
    (may, must_not) = masks_of([Allowed(bits([5]), True), Allowed(bits([5, 1]), False)], 2, [1, 300], 320)
    assert (may == bits([5, 1, 300])).all()
    assert (must_not == bits([5])).all()
    assert masks_of([Allowed(), Allowed()], 2, [1], 320) is None
    free = masks_of([Allowed(may_end=False)], 1, [1], 320)
    assert free is not None
    assert free.sum() == 10 * 0xFFFFFFFF - 2
    with pytest.raises(ConstraintError):
        masks_of([Allowed(bits([1]), False)], 1, [1], 320)


@pytest.mark.parametrize(
    "places",
    [[], [Allowed()] * 2, [Allowed(np.ones(1, np.uint32))], [Allowed(np.ones(10, np.float32))]],  # type: ignore[arg-type]
)
def test_a_constraint_that_says_too_much_or_too_little_harms_its_request_alone(places: list[Allowed]) -> None:
    class Wrong:
        def allowed(self, draft: Sequence[int]) -> list[Allowed]:
            return places

        def accept(self, tokens: Sequence[int]) -> None: ...

    core = EngineCore(FakeRunner(), TOKENIZER)
    core.add(Request(id="good", prompt=(30,), sampling=SamplingParams(max_tokens=3, ignore_eos=True)))
    core.add(Request(id="bad", prompt=(30,), sampling=SamplingParams(), constraint=Wrong()))
    last = dict(piece for _ in range(3) for piece in core.step())
    assert (last["bad"].finish_reason, last["good"].finish_reason) == ("error", "length")
