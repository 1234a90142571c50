"""The engine beside an event loop: streams end once, cancelled ones free their blocks, a stop is clean."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from random import Random

import pytest

from deepwell.engine import AsyncEngine, Delta, EngineConfig, EngineCore, Request, SamplingParams, Stream
from deepwell.engine.engine import PIECES
from deepwell.engine.types import FinishReason, Usage
from deepwell.errors import Broke, EngineStopped, LedgerDown, OverLimit, QueueFull, RequestError
from deepwell.ops.base import Batch
from fakes import FakeRunner, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def request(id: str, length: int = 100, max_tokens: int = 20, **sampling: object) -> Request:
    prompt = tuple(20 + (7 * place) % 290 for place in range(length))
    params = SamplingParams(max_tokens=max_tokens, seed=3, ignore_eos=True, **sampling)
    return Request(id=id, prompt=prompt, sampling=params)


@asynccontextmanager
async def running(runner: FakeRunner | None = None, **config: object) -> AsyncIterator[AsyncEngine]:
    """A started engine that must end without a leaked block."""
    runner = runner or FakeRunner()
    engine = AsyncEngine(runner, TOKENIZER, EngineConfig(**config))
    engine.start()
    yield engine
    await asyncio.wait_for(engine.stop(), 20)
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
    assert runner.violations == []


async def read(stream: Stream) -> list[Delta]:
    return [delta async for delta in stream]


async def settled(engine: AsyncEngine) -> None:
    """Wait until nothing is live."""
    async with asyncio.timeout(10):
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.005)


async def test_many_streams_give_what_the_core_gives() -> None:
    requests = [request(str(i), length=10 + 9 * i, max_tokens=5 + i) for i in range(40)]
    async with running() as engine:
        answers = await asyncio.gather(*(read(engine.submit(r)) for r in requests))
        for r, deltas in zip(requests, answers, strict=True):
            alone = list(EngineCore(FakeRunner(), TOKENIZER).generate(r))
            assert [d.text for d in deltas] == [d.text for d in alone]
            assert [d.token_ids for d in deltas] == [d.token_ids for d in alone]
            assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert engine.stats().finished["length"] == 40


async def test_a_finished_stream_stays_finished() -> None:
    async with running() as engine:
        stream = engine.submit(request("a", max_tokens=2))
        assert len(await read(stream)) == 2
        assert await read(stream) == []
        stream.abort()
        await stream.aclose()
        again = engine.submit(request("a", max_tokens=2))
        assert len(await read(again)) == 2
        assert engine.stats().aborted == 0


async def test_abort_ends_the_stream_and_frees_the_blocks() -> None:
    async with running(FakeRunner(delay=0.005)) as engine:
        stream = engine.submit(request("a", max_tokens=10_000))
        await anext(stream)
        stream.abort()
        stream.abort()
        *_, last = await read(stream)
        assert last.finish_reason == "abort"
        assert last.usage is not None
        assert 1 <= last.usage.completion_tokens < 100
        assert engine.stats().aborted == 1
        assert engine.stats().blocks_free == engine.stats().blocks_total


async def test_a_cancelled_reader_aborts_its_request() -> None:
    async with running(FakeRunner(delay=0.005)) as engine:
        reader = asyncio.create_task(read(engine.submit(request("a", max_tokens=10_000))))
        other = asyncio.create_task(read(engine.submit(request("b", max_tokens=30))))
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert (await other)[-1].finish_reason == "length"
        await settled(engine)
        assert engine.stats().finished == {"stop": 0, "length": 1, "abort": 1, "error": 0, "cut": 0}


async def test_leaving_the_block_aborts() -> None:
    async with running(FakeRunner(delay=0.005)) as engine:
        async with engine.submit(request("a", max_tokens=10_000)) as stream:
            async for _ in stream:
                break
        await settled(engine)
        assert engine.stats().aborted == 1


async def test_a_waiting_request_can_be_aborted() -> None:
    async with running(FakeRunner(delay=0.005), max_running=1) as engine:
        first = asyncio.create_task(read(engine.submit(request("a", max_tokens=50))))
        second = engine.submit(request("b"))
        second.abort()
        (last,) = await read(second)
        assert last.finish_reason == "abort"
        assert (await first)[-1].finish_reason == "length"


async def test_admission_is_bounded_and_recovers() -> None:
    """200 clients at once on 4 places and a queue of 8."""
    async with running(FakeRunner(delay=0.001), max_running=4, max_waiting=8) as engine:
        streams, refused = [], 0
        for index in range(200):
            try:
                streams.append(engine.submit(request(str(index))))
            except QueueFull:
                refused += 1
        assert (len(streams), refused) == (12, 188)
        assert engine.stats().waiting + engine.stats().running == 12
        assert all(deltas[-1].finish_reason == "length" for deltas in await asyncio.gather(*map(read, streams)))
        assert (await read(engine.submit(request("late"))))[-1].finish_reason == "length"


async def test_a_bad_request_is_refused_at_once() -> None:
    async with running() as engine:
        with pytest.raises(RequestError) as caught:
            engine.submit(request("a", length=5000))
        assert caught.value.param == "prompt"
        stream = engine.submit(request("b"))
        with pytest.raises(RequestError, match="'b' is live"):
            engine.submit(request("b"))
        await read(stream)


async def test_submitting_does_not_wait_for_a_step() -> None:
    async with running(FakeRunner(delay=1.0)) as engine:
        first = engine.submit(request("a", max_tokens=1))
        await asyncio.sleep(0.1)
        second = engine.submit(request("b", max_tokens=1))
        assert engine.stats().steps == 0, "the first step is still under way"
        await asyncio.gather(read(first), read(second))


async def test_stop_lets_live_requests_finish() -> None:
    async with running(FakeRunner(delay=0.005)) as engine:
        reader = asyncio.create_task(read(engine.submit(request("a", max_tokens=20))))
        await asyncio.sleep(0.02)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        with pytest.raises(EngineStopped, match="stopping"):
            engine.submit(request("b"))
        await stopping
        assert (await reader)[-1].finish_reason == "length"


async def test_stop_aborts_what_does_not_finish_in_time() -> None:
    async with running(FakeRunner(delay=0.01), drain_seconds=0.1, max_running=2) as engine:
        readers = [asyncio.create_task(read(engine.submit(request(id, max_tokens=3000)))) for id in "abc"]
        await asyncio.sleep(0.05)
        await engine.stop()
        for deltas in await asyncio.gather(*readers):
            assert deltas[-1].finish_reason == "abort"
    assert not [thread for thread in threading.enumerate() if thread.name == "deepwell-engine"]


async def test_stop_is_safe_twice_and_unstarted() -> None:
    engine = AsyncEngine(FakeRunner(), TOKENIZER)
    with pytest.raises(EngineStopped, match="not been started"):
        engine.submit(request("a"))
    await engine.stop()
    async with running() as engine:
        await asyncio.gather(engine.stop(), engine.stop())
        with pytest.raises(EngineStopped, match="only once"):
            engine.start()


async def test_a_failing_step_is_told_and_the_engine_lives_on() -> None:
    calls = []

    def fail(batch: Batch) -> None:
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("broken step")

    async with running(FakeRunner(fail=fail)) as engine:
        *_, last = await read(engine.submit(request("a")))
        assert (last.finish_reason, last.error) == ("error", "RuntimeError: broken step")
        *_, last = await read(engine.submit(request("b")))
        assert last.finish_reason == "length"


async def test_a_failing_engine_tells_every_stream_and_refuses_more() -> None:
    """A fault of the engine itself, outside of any request."""
    engine = AsyncEngine(FakeRunner(), TOKENIZER)
    engine._core.step = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    engine.start()
    streams = [engine.submit(request(id)) for id in "ab"]
    for deltas in await asyncio.gather(*map(read, streams)):
        assert deltas[-1].finish_reason == "error"
        assert "ZeroDivisionError" in (deltas[-1].error or "")
    with pytest.raises(EngineStopped, match="the engine failed"):
        engine.submit(request("c"))
    await engine.stop()


def test_a_closed_event_loop_frees_everything() -> None:
    engine = AsyncEngine(FakeRunner(delay=0.005), TOKENIZER)
    engine.start()

    async def leave() -> None:
        await anext(engine.submit(request("a", max_tokens=3000)))

    asyncio.run(leave())
    deadline = time.perf_counter() + 10
    while engine.stats().running and time.perf_counter() < deadline:
        time.sleep(0.01)
    asyncio.run(engine.stop())
    engine.check_integrity()
    assert engine.stats().aborted == 1


async def test_a_place_counts_until_it_is_given_back() -> None:
    async with running(max_running=1, max_waiting=1) as engine:
        first, second = engine.place(), engine.place()
        assert engine.stats().waiting == 2
        for refused in (engine.place, engine.check_room, lambda: engine.submit(request("a"))):
            with pytest.raises(QueueFull, match="2 requests are live"):
                refused()
        first.close()
        first.close()
        stream = engine.submit(request("a"))
        with pytest.raises(QueueFull):
            engine.place()
        second.close()
        await read(stream)
        engine.check_room()


async def test_a_place_is_filled_once() -> None:
    async with running(max_running=1, max_waiting=0) as engine:
        with engine.place() as place:
            stream = place.submit(request("a"))
            with pytest.raises(RuntimeError, match="filled"):
                place.submit(request("b"))
        assert (await read(stream))[-1].finish_reason == "length", "leaving the block does not end the request"
        engine.check_room()


async def test_a_refused_request_leaves_its_place_free() -> None:
    async with running(max_running=1, max_waiting=0) as engine:
        with pytest.raises(RequestError), engine.place() as place:
            place.submit(request("a", length=5000))
        engine.check_room()


async def test_an_error_after_submitting_ends_the_request() -> None:
    async with running(FakeRunner(delay=0.005)) as engine:
        with suppress(ZeroDivisionError), engine.place() as place:
            place.submit(request("a", max_tokens=10_000))
            raise ZeroDivisionError
        await settled(engine)
        assert engine.stats().aborted == 1


async def test_a_place_taken_before_the_stop_cannot_be_filled_after_it() -> None:
    async with running() as engine:
        with engine.place() as place:
            await engine.stop()
            with pytest.raises(EngineStopped, match="stopping"):
                place.submit(request("a"))


@pytest.mark.parametrize("seed", range(5))
async def test_places_never_leak(seed: int) -> None:
    """A crowd that takes places, dawdles, is refused, fills them, leaves early or reads to the end."""
    random = Random(seed)
    bound = 6

    async def client(engine: AsyncEngine, number: int) -> None:
        await asyncio.sleep(random.random() * 0.1)
        with suppress(QueueFull, RequestError, ZeroDivisionError), engine.place() as place:
            assert engine.stats().running + engine.stats().waiting <= bound
            await asyncio.sleep(random.random() * 0.01)
            match random.randrange(6):
                case 0:
                    return
                case 1:
                    raise ZeroDivisionError
                case 2:
                    place.submit(request(str(number), length=5000))
                case 3:
                    place.submit(request(str(number), max_tokens=10_000)).abort()
                case 4:
                    async with place.submit(request(str(number), max_tokens=10_000)) as stream:
                        await anext(stream)
                case 5:
                    await read(place.submit(request(str(number), max_tokens=random.randrange(1, 20))))

    async with running(FakeRunner(delay=0.0005), max_running=2, max_waiting=4) as engine:
        ends = noted_ends(engine)
        tasks = [asyncio.create_task(client(engine, number)) for number in range(120)]
        for task in random.sample(tasks, 20):
            await asyncio.sleep(0.002)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        await settled(engine)
        for place in [engine.place() for _ in range(bound)]:
            place.close()
        ids = [ended.id for ended, _, _ in ends]
        assert len(ids) == len(set(ids)) == sum(engine.stats().finished.values())


Ends = list[tuple[Request, Usage, FinishReason]]


def noted_ends(engine: AsyncEngine) -> Ends:
    ends: Ends = []
    engine.tell_ends(lambda *end: ends.append(end))
    return ends


async def test_every_end_is_told_once_with_the_usage_that_the_reader_sees() -> None:
    async with running(FakeRunner(delay=0.002)) as engine:
        ends = noted_ends(engine)
        whole = engine.submit(request("whole", max_tokens=7))
        left = engine.submit(request("left", max_tokens=10_000))
        pieces = [await anext(left) for _ in range(50)]
        left.abort()
        pieces += await read(left)
        await read(whole)
        told = {ended.id: (usage, reason) for ended, usage, reason in ends}
        assert len(ends) == len(told) == 2
        assert told["whole"] == (Usage(100, 0, 7), "length")
        assert told["left"] == (pieces[-1].usage, "abort")
        assert told["left"][0].completion_tokens == sum(len(piece.token_ids) for piece in pieces) >= 50


async def test_what_never_began_has_used_nothing() -> None:
    async with running(FakeRunner(delay=0.005), max_running=1) as engine:
        ends = noted_ends(engine)
        first = engine.submit(request("a", max_tokens=50))
        await anext(first)
        second = engine.submit(request("b"))
        second.abort()
        await read(second)
        await read(first)
        assert [(ended.id, usage, reason) for ended, usage, reason in ends] == [
            ("b", Usage(0, 0, 0), "abort"),
            ("a", Usage(100, 0, 50), "length"),
        ]


async def test_a_stop_tells_the_end_of_what_it_cuts_off() -> None:
    async with running(FakeRunner(delay=0.01), drain_seconds=0.1, max_running=2) as engine:
        ends = noted_ends(engine)
        readers = [asyncio.create_task(read(engine.submit(request(id, max_tokens=3000)))) for id in "abc"]
        await asyncio.sleep(0.05)
        await engine.stop()
        answers = dict(zip("abc", await asyncio.gather(*readers), strict=True))
        counted = {id: sum(len(delta.token_ids) for delta in deltas) for id, deltas in answers.items()}
        assert {ended.id: usage.completion_tokens for ended, usage, _ in ends} == counted
        assert [reason for _, _, reason in ends] == ["abort"] * 3
        assert counted["a"] > 0 == counted["c"]


async def test_a_failing_engine_tells_what_was_used_until_then() -> None:
    """Of one that was read, one that waited, and one that the engine's thread never saw."""
    engine = AsyncEngine(FakeRunner(), TOKENIZER, EngineConfig(max_running=1, step_ms=0))
    ends = noted_ends(engine)
    loop, step, submitted = asyncio.get_running_loop(), engine._core.step, threading.Event()

    def submit_unseen() -> None:
        streams.append(engine.submit(request("unseen")))
        submitted.set()

    def break_down() -> list[tuple[str, Delta]]:
        if engine.stats().steps < 5:
            return step()
        loop.call_soon_threadsafe(submit_unseen)
        assert submitted.wait(5)
        raise ZeroDivisionError

    engine._core.step = break_down  # type: ignore[method-assign]
    engine.start()
    streams = [engine.submit(request(id)) for id in ("read", "waits")]
    answers = await asyncio.gather(*map(read, streams))
    answers.append(await read(streams[2]))
    assert all("ZeroDivisionError" in (deltas[-1].error or "") for deltas in answers)
    assert {ended.id: (usage, reason) for ended, usage, reason in ends} == {
        "read": (Usage(100, 0, 5), "error"),
        "waits": (Usage(0, 0, 0), "error"),
        "unseen": (Usage(0, 0, 0), "error"),
    }
    assert len(ends) == 3
    await engine.stop()
    engine.check_integrity()
    assert engine.stats().blocks_free == engine.stats().blocks_total


async def test_a_listener_that_fails_harms_no_request() -> None:
    async with running() as engine:
        engine.tell_ends(lambda *end: 1 / 0)  # type: ignore[arg-type, return-value]
        assert (await read(engine.submit(request("a"))))[-1].finish_reason == "length"
        assert (await read(engine.submit(request("b"))))[-1].finish_reason == "length"


async def test_a_request_that_cannot_be_taken_in_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as engine:
        ends = noted_ends(engine)
        add = engine._core.add

        def breaking(asked: Request) -> None:
            if asked.id == "bad":
                raise TypeError("too odd")
            add(asked)

        monkeypatch.setattr(engine._core, "add", breaking)
        bad, good = await asyncio.gather(read(engine.submit(request("bad"))), read(engine.submit(request("good"))))
        assert (bad[-1].finish_reason, bad[-1].error) == ("error", "TypeError: too odd")
        assert good[-1].finish_reason == "length"
        assert sorted(ended.id for ended, _, _ in ends) == ["bad", "good"]


async def test_a_follower_waits_for_its_leader_and_finds_its_prompt() -> None:
    async with running() as engine:
        with engine.place() as first, first.another() as second:
            leader = first.submit(request("leader"))
            follower = second.submit(request("follower"), after=leader)
        said, again = await asyncio.gather(read(leader), read(follower))
        assert [d.token_ids for d in said] == [d.token_ids for d in again]
        assert again[-1].usage == Usage(prompt_tokens=100, cached_tokens=64, completion_tokens=20)


@pytest.mark.parametrize("first_to_go", ["leader", "follower"])
async def test_a_follower_ends_once_whoever_leaves_before_it_began(first_to_go: str) -> None:
    async with running(FakeRunner(delay=0.01), token_budget=16) as engine:
        with engine.place() as first, first.another() as second:
            leader = first.submit(request("leader", max_tokens=3))
            follower = second.submit(request("follower", max_tokens=3), after=leader)
        streams = {"leader": leader, "follower": follower}
        gone = streams.pop(first_to_go)
        gone.abort()
        (stays,) = streams.values()
        ends = [deltas[-1].finish_reason for deltas in await asyncio.gather(read(gone), read(stays))]
        assert ends == ["abort", "length"]


async def test_one_account_cannot_take_all_the_room() -> None:
    async with running(FakeRunner(delay=0.001), max_running=2, max_waiting=6) as engine:
        with ExitStack() as stack:
            for _ in range(6):
                stack.enter_context(engine.place(account=1))
            with pytest.raises(OverLimit, match="an account may have 6 requests at one time; try") as refused:
                engine.place(account=1)
            assert refused.value.retry_after >= 1
            modest = stack.enter_context(engine.place(account=2))
            with pytest.raises(OverLimit, match="4 requests at one time while 1 others wait"):
                engine.place(account=1)
            stream = modest.submit(Request(id="1", prompt=(1,), sampling=SamplingParams(max_tokens=2)))
            async for _ in stream:
                pass
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(engine.place())  # who gave no account may have all of it
            with pytest.raises(QueueFull):
                engine.place(account=2)


async def test_requests_of_low_priority_keep_out_nobody_else() -> None:
    async with running(FakeRunner(), max_running=1, max_waiting=1) as engine:
        low = [engine.place(priority=-1) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.place(priority=-1)
        high = [engine.place() for _ in range(2)]
        for place in (*low, *high):
            place.close()
        assert engine.stats().waiting == 0


class Purse:
    """A meter that lets an answer have so many tokens."""

    def __init__(self, most: int, why: Exception | None) -> None:
        self.most, self.why = most, why
        self.counts: list[tuple[int, int, int]] = []

    def progress(self, hit: int, miss: int, output: int) -> bool:
        self.counts.append((hit, miss, output))
        return output < self.most


@pytest.mark.parametrize(("why", "reason"), [(Broke("Insufficient Balance"), "cut"), (LedgerDown("away"), "error")])
async def test_a_meter_counts_tokens_before_they_are_seen_and_ends_the_answer(why: Exception, reason: str) -> None:
    async with running(FakeRunner()) as engine:
        purse = Purse(3, why)
        seen = 0
        request = Request(id="1", prompt=(1, 2), sampling=SamplingParams(max_tokens=9, ignore_eos=True), meter=purse)
        async for delta in engine.submit(request):
            seen += len(delta.token_ids)
            assert purse.counts[-1][2] >= seen
        assert purse.counts == [(0, 2, 1), (0, 2, 2), (0, 2, 3)]
        assert (delta.finish_reason, seen, delta.error) == (reason, 3, str(why))
        assert delta.usage is not None
        assert delta.usage.completion_tokens == 3


async def test_who_waits_too_long_for_a_turn_is_told() -> None:
    async with running(FakeRunner(delay=0.01), max_running=1, queue_seconds=0.1) as engine:
        rules = SamplingParams(max_tokens=40, ignore_eos=True)
        first, second = (engine.submit(Request(id=id, prompt=(1,), sampling=rules)) for id in "12")
        pieces = [piece async for piece in second]
        assert [piece.finish_reason for piece in pieces] == ["abort"]
        assert "waited 0.1 seconds for its turn" in (pieces[0].error or "")
        assert len([piece async for piece in first]) == 40


async def test_a_slow_reader_finds_all_of_the_answer_in_few_pieces() -> None:
    async with running(FakeRunner()) as engine:
        rules = SamplingParams(max_tokens=1000, ignore_eos=True, logprobs=0, seed=1)
        slow, quick = (engine.submit(Request(id=id, prompt=(1,), sampling=rules)) for id in "12")
        expected = [piece async for piece in quick]
        while engine.stats().running:
            await asyncio.sleep(0.01)
        found = [piece async for piece in slow]
        assert len(found) <= 3 * PIECES < len(expected)
        assert "".join(piece.text for piece in found) == "".join(piece.text for piece in expected)
        for part in ("token_ids", "logprobs"):
            assert [x for p in found for x in getattr(p, part)] == [x for p in expected for x in getattr(p, part)]
        assert found[-1].finish_reason == "length"
