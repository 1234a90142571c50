"""Pages outlive a process: read by number, written into another cache, found there instead of being computed."""

from collections.abc import Sequence

import msgspec
import pytest

from deepwell.engine import Delta, EngineConfig, EngineCore, Request, SamplingParams
from deepwell.engine.scheduler import Fetch
from deepwell.errors import ConfigError
from deepwell.loading.runner import NativeRunner
from deepwell.ops.paging import Page
from deepwell.weights import embedded_path
from deepwell.weights.checkpoint import Checkpoint
from fakes import FakeRunner, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Shelf:
    """A tier in memory. What it is asked for arrives `delay` questions later; `spoil` changes pages on the way."""

    def __init__(self, pages: dict[bytes, Page], delay: int = 0) -> None:
        self.pages, self.delay = pages, delay
        self.asked: list[Fetch] = []

    def match(self, keys: Sequence[bytes]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.pages), len(keys))

    def fetch(self, fetch: Fetch) -> None:
        self.asked.append(fetch)

    def arrived(self, wait: bool) -> list[tuple[Fetch, list[Page]]]:
        self.delay -= 1
        if self.delay > 0 or not self.asked:
            return []
        found, self.asked = self.asked, []
        return [(fetch, [self.pages[key] for key in fetch.keys]) for fetch in found]


def kept(core: EngineCore) -> dict[bytes, Page]:
    """All that the core's prefix cache knows, as pages."""
    pool = core._steps.pools.pools[0]
    return {key: core._backend.read_page(block) for key, block in pool._sealed.items()}


def request(id: str = "a", length: int = 300) -> Request:
    prompt = tuple(20 + (7 * place) % 290 for place in range(length))
    return Request(id=id, prompt=prompt, sampling=SamplingParams(max_tokens=40, seed=3, ignore_eos=True, logprobs=2))


def serve(core: EngineCore, *requests: Request) -> dict[str, list[Delta]]:
    answers: dict[str, list[Delta]] = {r.id: [] for r in requests}
    for r in requests:
        core.add(r)
    while core.live:
        for id, delta in core.step():
            answers[id].append(delta)
        core.check_integrity()
    return answers


def same(one: list[Delta], other: list[Delta]) -> bool:
    return [(d.marked, d.token_ids, d.logprobs) for d in one] == [(d.marked, d.token_ids, d.logprobs) for d in other]


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_a_fetched_prefix_is_a_hit_and_changes_nothing(delay: int) -> None:
    first = EngineCore(FakeRunner(), TOKENIZER)
    cold = serve(first, request())["a"]
    runner = FakeRunner()
    core = EngineCore(runner, TOKENIZER, tier=Shelf(kept(first), delay))
    answers = serve(core, request(), request("b", 50))
    assert same(answers["a"], cold)
    assert answers["a"][-1].usage is not None
    assert answers["a"][-1].usage.cached_tokens == 256
    assert runner.violations == []


def test_what_is_damaged_or_of_another_model_is_computed() -> None:
    first = EngineCore(FakeRunner(), TOKENIZER)
    cold = serve(first, request())["a"]
    pages = kept(first)
    keys = first._steps.pools.pools[0].root
    assert keys
    third = sorted(pages.items(), key=lambda entry: entry[1].data)[2][0]
    pages[third] = msgspec.structs.replace(pages[third], fingerprint=b"other")
    runner = FakeRunner()
    answer = serve(EngineCore(runner, TOKENIZER, tier=Shelf(pages)), request())["a"]
    assert same(answer, cold)
    assert answer[-1].usage is not None
    assert answer[-1].usage.cached_tokens < 256
    assert runner.violations == []


def test_an_abort_while_blocks_load_leaves_nothing_behind() -> None:
    first = EngineCore(FakeRunner(), TOKENIZER)
    serve(first, request())
    runner = FakeRunner()
    core = EngineCore(runner, TOKENIZER, tier=Shelf(kept(first), delay=4))
    core.add(request())
    assert core.step() == []
    core.abort("a")
    core.check_integrity()
    answer = serve(core, request("b"))["b"]
    assert answer[-1].finish_reason == "length"
    assert runner.violations == []


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
def test_pages_of_the_native_backend_carry_every_bit(cache_dtype: str) -> None:
    """Another process' cache is played by another runner; the prediction module's layer is part of a page."""

    def core(tier: Shelf | None = None) -> EngineCore:
        source = Checkpoint(embedded_path())
        runner = NativeRunner(source, "int8", cache_dtype=cache_dtype, blocks=16, mtp=True)
        return EngineCore(runner, source.tokenizer(), EngineConfig(speculate="mtp"), tier=tier)

    first = core()
    cold = serve(first, request())["a"]
    warm = serve(core(Shelf(kept(first))), request())["a"]
    ids = [[id for delta in answer for id in delta.token_ids] for answer in (cold, warm)]
    assert ids[0] == ids[1]
    assert [x for d in cold for x in d.logprobs] == [x for d in warm for x in d.logprobs]
    assert warm[-1].usage is not None
    assert warm[-1].usage.cached_tokens == 256


def test_a_page_of_another_layout_is_refused() -> None:
    source = Checkpoint(embedded_path())
    runner = NativeRunner(source, "float32", blocks=2)
    page = runner.read_page(1)
    assert len(page.data) == sum(page.widths) * 64 * 4
    runner.write_page(0, page)
    assert runner.read_page(0) == page
    for change in ({"dtype": "bfloat16"}, {"widths": (1,)}, {"fingerprint": b""}):
        with pytest.raises(ConfigError, match="another model"):
            runner.write_page(0, msgspec.structs.replace(page, **change))
    with pytest.raises(ConfigError, match="bytes, not 3"):
        runner.write_page(0, msgspec.structs.replace(page, data=b"abc"))
    with pytest.raises(ValueError, match=r"block 2 is outside 0\.\.1"):
        runner.read_page(2)


@pytest.mark.parametrize("broken", ["match", "fetch", "arrived"])
def test_a_tier_that_fails_is_a_miss(broken: str) -> None:
    first = EngineCore(FakeRunner(), TOKENIZER)
    cold = serve(first, request())["a"]
    shelf = Shelf(kept(first))

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    setattr(shelf, broken, fail)
    runner = FakeRunner()
    answers = serve(EngineCore(runner, TOKENIZER, tier=shelf), request(), request("b", 50))
    assert same(answers["a"], cold)
    assert answers["b"][-1].finish_reason == "length"
    assert runner.violations == []


def test_what_ended_while_nothing_else_ran_is_forgotten() -> None:
    first = EngineCore(FakeRunner(), TOKENIZER)
    serve(first, request())
    core = EngineCore(FakeRunner(), TOKENIZER, tier=Shelf(kept(first)))
    for number in range(40):
        serve(core, request(str(number)))
    assert len(core._runner._tables.rows) <= 2
