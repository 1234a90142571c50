"""The engine's loop, one `step` at a time: plan, run the model, sample, answer. No threads, no asyncio."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.answer import Answer
from deepwell.engine.blocks import BlockPool
from deepwell.engine.runner import Runner
from deepwell.engine.sampling import Scratch
from deepwell.engine.scheduler import Scheduler, SchedulerLimits, Segment, StepPlan
from deepwell.engine.speculation.speculator import DRAFTERS, Kind, Speculator
from deepwell.engine.types import NOTHING, Delta, FinishReason, OnEnd, Request
from deepwell.engine.validate import check_request
from deepwell.errors import ConfigError, QueueFull, RequestError
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.options import Speculate
from deepwell.weights.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class EngineConfig(msgspec.Struct, frozen=True):
    """Limits of the engine.

    `token_budget`: tokens computed per step. `max_running`: requests served together. `max_waiting`: requests that may
    wait for a place; `max_running` + `max_waiting` live ones are the most, and the next is refused. `drain_seconds`:
    how long live requests may go on after a stop. `blocks`: KV blocks used, None for all that the runner has.
    `speculate`: where guesses at the next tokens come from, and `draft_tokens` the most of them per answer and step;
    no answer depends on either.
    """

    token_budget: int = 512
    max_running: int = 64
    max_waiting: int = 64
    drain_seconds: float = 5.0
    blocks: int | None = None
    speculate: Speculate = "off"
    draft_tokens: int = 3

    def __post_init__(self) -> None:
        least = {"token_budget": 1, "max_running": 1, "max_waiting": 0, "drain_seconds": 0, "draft_tokens": 1}
        for field, low in least.items():
            if not getattr(self, field) >= low:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least {low}")


class EngineStats(msgspec.Struct, frozen=True):
    """What the engine does now, and counters since it began.

    `computed_tokens` went through the model (again after a preemption); guesses that proved wrong are not counted.
    `drafted` guesses were checked and `accepted` of them were right, by their origin. `prompt_tokens`, and
    `cached_tokens` of them, are those of requests that have ended after being admitted. `finished` counts answers by
    finish reason; `step_seconds` is time spent in steps.
    """

    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int
    steps: int
    step_seconds: float
    computed_tokens: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    drafted: dict[Kind, int]
    accepted: dict[Kind, int]
    finished: dict[FinishReason, int]

    @property
    def aborted(self) -> int:
        return self.finished["abort"]


class EngineCore:
    """Live requests, their blocks and the model. Not thread-safe: one caller at a time, `stats` excepted."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_end: OnEnd | None = None,
    ) -> None:
        """`clock` gives seconds; it decides how long steps seem to take, and nothing about what they say.

        `on_end` is told of every request that was added, once, when it ends.
        """
        self.config = config = config or EngineConfig()
        blocks = runner.blocks if config.blocks is None else config.blocks
        if not 1 <= blocks <= runner.blocks:
            raise ConfigError(f"blocks is {blocks}; the runner has {runner.blocks}, and at least 1 is needed")
        self._runner = runner
        self._tokenizer = tokenizer
        self._pool = BlockPool(blocks, runner.fingerprint)
        self._scheduler = Scheduler(self._pool, SchedulerLimits(config.token_budget, config.max_running))
        self._capacity = min(runner.context, blocks * BLOCK_TOKENS)
        self._scratch = Scratch(runner.vocab_size)
        self._clock = clock
        self._on_end = on_end
        self._speculator = Speculator(config.speculate, config.draft_tokens, runner.further, blocks)
        self._live: dict[str, Answer] = {}
        self._steps = self._computed = self._prompt = self._cached = self._generated = 0
        self._seconds = 0.0
        self._drafted: dict[Kind, int] = dict.fromkeys(DRAFTERS, 0)
        self._accepted: dict[Kind, int] = dict.fromkeys(DRAFTERS, 0)
        self._finished: dict[FinishReason, int] = dict.fromkeys(("stop", "length", "abort", "error"), 0)

    @property
    def live(self) -> Collection[str]:
        """Ids of the requests that have not ended."""
        return self._live.keys()

    def check(self, request: Request, live: Collection[str]) -> None:
        """Raise RequestError or QueueFull unless the request may join the `live` ones. Any thread may call this."""
        check_request(request, self._runner.vocab_size, self._capacity)
        if request.id in live:
            raise RequestError(f"a request with id {request.id!r} is live already", param="id")
        if len(live) >= self.config.max_running + self.config.max_waiting:
            raise QueueFull(f"the queue is full: {len(live)} requests are live; try again shortly")

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError or QueueFull."""
        self.check(request, self._live.keys())
        seed = secrets.randbits(63)
        answer = Answer(request, self._tokenizer, seed=seed, capacity=self._capacity, scratch=self._scratch)
        self._live[request.id] = answer
        self._scheduler.add(answer.sequence)

    def abort(self, id: str) -> Delta | None:
        """End a request and free its blocks; its last piece, None if it has ended already."""
        answer = self._live.get(id)
        return self._end(answer, answer.end("abort")) if answer else None

    def fail(self, message: str) -> list[tuple[str, Delta]]:
        """End every request after a fault of the engine itself; their last pieces. Nothing can be computed after it."""
        pieces = []
        for id, answer in list(self._live.items()):
            last = answer.end("error", message)
            # What failed may be the scheduler itself; what was used is counted all the same.
            with suppress(Exception):
                self._scheduler.remove(answer.sequence, forget=True)
            self._account(answer, last)
            pieces.append((id, last))
        return pieces

    def step(self) -> list[tuple[str, Delta]]:
        """Compute one step and return the pieces it gave, by request id."""
        if not self._live:
            return []
        begun = self._clock()
        plan = self._scheduler.plan(self._drafts())
        if not plan.segments:
            raise RuntimeError(f"the scheduler found no work for {len(self._live)} live requests")
        pieces = self._compute(plan)
        self._steps += 1
        seconds = self._clock() - begun
        self._seconds += seconds
        self._speculator.learn(plan, sum(len(delta.token_ids) for _, delta in pieces), seconds)
        return pieces

    def generate(self, request: Request) -> Iterator[Delta]:
        """Answer one request in the caller's thread, where no other is live. Closing the iterator aborts it."""
        self.add(request)
        try:
            while request.id in self._live:
                for _, delta in self.step():
                    yield delta
        finally:
            self.abort(request.id)

    def stats(self) -> EngineStats:
        """A snapshot; from another thread its numbers may be of neighbouring moments."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            blocks_total=self._pool.blocks,
            blocks_free=self._pool.free,
            blocks_cached=self._pool.cached,
            steps=self._steps,
            step_seconds=self._seconds,
            computed_tokens=self._computed,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            preemptions=self._scheduler.preemptions,
            drafted=dict(self._drafted),
            accepted=dict(self._accepted),
            finished=dict(self._finished),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked or a request is lost."""
        self._scheduler.check_integrity()
        scheduled = {s.id for s in (*self._scheduler.running, *self._scheduler.waiting)}
        if scheduled != set(self._live):
            raise AssertionError(f"scheduled {scheduled} differ from live {set(self._live)}")

    def _drafts(self) -> dict[str, tuple[int, ...]]:
        """Guesses for the answers that wait for their next token only."""
        ready = [s for s in self._scheduler.running if s.computed == len(s.tokens) - 1]
        try:
            return self._speculator.drafts([(s, self._live[s.id].room - 1) for s in ready])
        except Exception:
            _log.exception("guessing tokens failed; the engine goes on without")
            self._speculator.stop()
            return {}

    def _compute(self, plan: StepPlan) -> list[tuple[str, Delta]]:
        try:
            logits_LV = self._speculator.run(self._runner, plan)
            expected = (sum(segment.wanted for segment in plan.segments), self._runner.vocab_size)
            if logits_LV.shape != expected:
                raise RuntimeError(f"logits have shape {logits_LV.shape}, expected {expected}")
        except Exception as error:
            _log.exception("a step of %d requests failed", len(plan.segments))
            return [(segment.id, self._fail(segment.id, error)) for segment in plan.segments]
        self._computed += plan.tokens
        pieces: list[tuple[str, Delta]] = []
        row = 0
        for segment in plan.segments:
            rows_LV = logits_LV[row : row + segment.wanted]
            row += segment.wanted
            delta = self._advance(segment, rows_LV)
            if delta is not None:
                pieces.append((segment.id, delta))
        self._speculator.observe(plan, {id: answer.sequence for id, answer in self._live.items()})
        return pieces

    def _advance(self, segment: Segment, rows_LV: NDArray[np.float32]) -> Delta | None:
        """Use one request's rows. Whatever goes wrong ends this request alone."""
        answer = self._live[segment.id]
        try:
            before = answer.accepted
            delta = answer.advance(rows_LV, segment.start + len(segment.tokens) - segment.wanted, segment.draft)
            self._scheduler.commit(answer.sequence, segment)
            self._count(segment.drafted, answer.accepted - before)
        except Exception as error:
            _log.exception("request %s failed", segment.id)
            return self._fail(segment.id, error)
        if delta is not None:
            self._generated += len(delta.token_ids)
            if delta.finish_reason is not None:
                self._end(answer, delta)
        return delta

    def _count(self, drafted: int, accepted: int) -> None:
        if drafted:
            kind = self._speculator.kind
            self._drafted[kind] += drafted
            self._accepted[kind] += accepted
            self._computed -= drafted - accepted

    def _fail(self, id: str, error: Exception) -> Delta:
        answer = self._live[id]
        return self._end(answer, answer.end("error", f"{type(error).__name__}: {error}"), forget=True)

    def _end(self, answer: Answer, last: Delta, forget: bool = False) -> Delta:
        self._scheduler.remove(answer.sequence, forget)
        self._speculator.forget(answer.request.id)
        self._account(answer, last)
        return last

    def _account(self, answer: Answer, last: Delta) -> None:
        """Count what a request has used and tell of its end: the one place that every request passes, once."""
        del self._live[answer.request.id]
        assert last.finish_reason is not None
        assert last.usage is not None
        self._finished[last.finish_reason] += 1
        usage = NOTHING
        if answer.sequence.cached_tokens is not None:
            usage = last.usage
            self._prompt += usage.prompt_tokens
            self._cached += usage.cached_tokens
        if self._on_end is not None:
            try:
                self._on_end(answer.request, usage, last.finish_reason)
            except Exception:
                _log.exception("the end of request %s could not be noted", answer.request.id)
