"""The engine's loop, one `step` at a time: plan, run the model, sample, answer. No threads, no asyncio."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import get_args

import msgspec

from deepwell.engine.answer import AnswerState
from deepwell.engine.runner import Backend, Runner
from deepwell.engine.scheduler import Fetch, SchedulerLimits, Segment, SequenceState, StepPlan, Tier
from deepwell.engine.speculation.speculator import DRAFTERS, Kind, Speculator
from deepwell.engine.steps import Steps
from deepwell.engine.types import NOTHING, Delta, FinishReason, OnEnd, Request
from deepwell.engine.validate import check_request
from deepwell.errors import ConfigError, DeepwellError, QueueFull, RequestError
from deepwell.ops.sampling import Ask, Chosen
from deepwell.options import Speculate
from deepwell.weights.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


class EngineConfig(msgspec.Struct, frozen=True):
    """Limits of the engine.

    `token_budget`: tokens computed per step, at most. `step_ms`: about how many milliseconds a step may take while
    others wait for it, 0 for no aim: by what was measured, fewer tokens are then computed. `max_running`: requests
    served together. `max_waiting`: requests that may wait for a place; `max_running` + `max_waiting` live ones are the
    most, those of lower priority not counted, and the next is refused. `drain_seconds`: how long live requests may go
    on after a stop. `queue_seconds`: how long one may wait for its turn. `blocks`: KV blocks used, None for all that
    the runner has. `speculate`: where guesses at the next tokens come from, and `draft_tokens` the most of them per
    answer and step; no answer depends on either.
    """

    token_budget: int = 512
    step_ms: float = 250.0
    max_running: int = 64
    max_waiting: int = 64
    drain_seconds: float = 5.0
    queue_seconds: float = 600.0
    blocks: int | None = None
    speculate: Speculate = "off"
    draft_tokens: int = 3

    def __post_init__(self) -> None:
        least = {
            "token_budget": 1,
            "step_ms": 0,
            "max_running": 1,
            "max_waiting": 0,
            "drain_seconds": 0,
            "queue_seconds": 0,
            "draft_tokens": 1,
        }
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
        backend: Backend,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_end: OnEnd | None = None,
        tier: Tier | None = None,
    ) -> None:
        """`clock` gives seconds; it decides how long steps seem to take, and who has waited too long, but nothing about
        what answers say.

        `on_end` is told of every request that was added, once, when it ends. Blocks that `tier` has are read from there
        instead of being computed.
        """
        self.config = config = config or EngineConfig()
        first, *others = backend.groups
        blocks = first.blocks if config.blocks is None else config.blocks
        if not 1 <= blocks <= first.blocks:
            raise ConfigError(f"blocks is {blocks}; the runner has {first.blocks}, and at least 1 is needed")
        groups = (msgspec.structs.replace(first, blocks=blocks), *others)
        limits = SchedulerLimits(config.token_budget, config.max_running)
        self._backend = backend
        self._tokenizer = tokenizer
        self._steps = Steps(groups, backend.fingerprint, limits, step_seconds=config.step_ms / 1000, tier=tier)
        self._runner = Runner(backend, config.token_budget)
        self._capacity = min(backend.context, self._steps.pools.capacity)
        self._clock = clock
        self._on_end = on_end
        self._tier = tier
        self._speculator = Speculator(config.speculate, config.draft_tokens, backend.has_draft_head)
        self._live: dict[str, AnswerState] = {}
        self._drafted: dict[Kind, int] = dict.fromkeys(DRAFTERS, 0)
        self._accepted: dict[Kind, int] = dict.fromkeys(DRAFTERS, 0)
        self._finished: dict[FinishReason, int] = dict.fromkeys(get_args(FinishReason), 0)

    @property
    def vocab_size(self) -> int:
        """The width of the logits."""
        return self._backend.vocab_size

    @property
    def live(self) -> Collection[str]:
        """Ids of the requests that have not ended."""
        return self._live.keys()

    def check(self, request: Request, live: Collection[str]) -> None:
        """Raise RequestError unless the request may join the `live` ones. Any thread may call this."""
        check_request(request, self._backend.vocab_size, self._capacity)
        if request.id in live:
            raise RequestError(f"a request with id {request.id!r} is live already", param="id")

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError or QueueFull."""
        self.check(request, self._live.keys())
        ahead = sum(answer.request.priority >= request.priority for answer in self._live.values())
        if ahead >= self.config.max_running + self.config.max_waiting:
            raise QueueFull(f"the queue is full: {ahead} requests are live; try again shortly")
        scores = request.sampling.prompt_logprobs is not None
        sequence = SequenceState(
            request.id,
            request.prompt,
            scores,
            scope=request.scope,
            extras=request.extras,
            account=request.account,
            priority=request.priority,
        )
        self._live[request.id] = AnswerState(
            request,
            sequence,
            self._tokenizer,
            self._backend.sampler(request.sampling, request.prompt),
            seed=secrets.randbits(63),
            capacity=self._capacity,
            vocab_size=self._backend.vocab_size,
            arrived=self._clock(),
        )
        self._steps.add(sequence)

    def abort(self, id: str) -> Delta | None:
        """End a request and free its blocks; its last piece, None if it has ended already."""
        return self._end(id, self._live[id].end("abort")) if id in self._live else None

    def fail(self, message: str) -> list[tuple[str, Delta]]:
        """End every request after a fault of the engine itself; their last pieces. Nothing can be computed after it."""
        pieces = []
        for id, answer in list(self._live.items()):
            last = answer.end("error", message)
            # What failed may be the scheduler itself; what was used is counted all the same.
            with suppress(Exception):
                self._steps.end(id, forget=True)
            self._account(id, last, answer.sequence)
            pieces.append((id, last))
        return pieces

    def step(self) -> list[tuple[str, Delta]]:
        """Compute one step and return the pieces it gave, by request id."""
        if not self._live:
            return []
        begun = self._clock()
        late = self._dismissed(begun)
        if not self._live:
            return late
        self._take_in(wait=False)
        plan = self._steps.plan(self._drafts())
        for fetch in plan.fetches:
            self._begin(fetch)
        if not plan.segments and (plan.fetches or self._steps.scheduler.fetching):
            self._take_in(wait=True)
            return late
        if not plan.segments:
            raise RuntimeError(f"the scheduler found no work for {len(self._live)} live requests")
        pieces = self._compute(plan)
        seconds = self._clock() - begun
        self._steps.took(plan, seconds)
        self._speculator.learn(plan, sum(len(delta.token_ids) for _, delta in pieces), seconds)
        return late + pieces

    def generate(self, request: Request, watch: Callable[[int], None] = lambda computed: None) -> Iterator[Delta]:
        """Answer one request in the caller's thread, where no other is live. Closing the iterator aborts it.

        `watch` is told after each step how many of its tokens are in the cache; what it raises aborts the request too.
        """
        self.add(request)
        sequence = self._live[request.id].sequence
        try:
            while request.id in self._live:
                for _, delta in self.step():
                    yield delta
                watch(sequence.computed)
        finally:
            self.abort(request.id)

    def stats(self) -> EngineStats:
        """A snapshot; from another thread its numbers may be of neighbouring moments."""
        scheduler, counts = self._steps.scheduler, self._steps.counts
        pool = self._steps.pools.pools[0]
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_total=pool.blocks,
            blocks_free=pool.free,
            blocks_cached=pool.cached,
            steps=counts.steps,
            step_seconds=counts.seconds,
            computed_tokens=counts.computed,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            generated_tokens=counts.generated,
            preemptions=scheduler.preemptions,
            drafted=dict(self._drafted),
            accepted=dict(self._accepted),
            finished=dict(self._finished),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked or a request is lost."""
        self._steps.check_integrity()
        if set(self._steps.live) != set(self._live):
            raise AssertionError(f"sequences {set(self._steps.live)} differ from requests {set(self._live)}")

    def _dismissed(self, now: float) -> list[tuple[str, Delta]]:
        """The ends of requests that have waited too long for their turn to begin."""
        most = self.config.queue_seconds
        waiting = (self._live[sequence.id] for sequence in self._steps.scheduler.waiting)
        late = [answer for answer in waiting if now - answer.arrived > most and answer.sequence.cached_tokens is None]
        said = f"the server is overloaded: the request waited {most:g} seconds for its turn; try again later"
        return [(answer.request.id, self._end(answer.request.id, answer.end("abort", said))) for answer in late]

    def _drafts(self) -> dict[str, tuple[int, ...]]:
        """Guesses for the answers that wait for their next token only."""
        ready = self._steps.ready
        try:
            arm = self._speculator.choose(ready, self._runner.followed)
            if arm.kind != "mtp":
                self._runner.catch_up()
            if arm.kind is None:
                return {}
            wanted = [(s, min(arm.tokens, self._live[s.id].room - 1)) for s in ready]
            if arm.kind == "lookup":
                return self._speculator.look_up(wanted)
            return self._runner.guesses({s.id: count for s, count in wanted})
        except Exception:
            _log.exception("guessing tokens failed; the engine goes on without")
            self._speculator.stop()
            self._runner.stop_following()
            return {}

    def _begin(self, fetch: Fetch) -> None:
        """Have the tier fill blocks; they are computed if it cannot."""
        try:
            assert self._tier is not None
            self._tier.fetch(fetch)
        except Exception:
            _log.exception("a tier of the cache failed")
            self._steps.scheduler.fetched(fetch, 0)

    def _take_in(self, wait: bool) -> None:
        """Write the pages that have arrived into their blocks; what did not come, or is of no use, is computed."""
        if self._tier is None:
            return
        scheduler = self._steps.scheduler
        try:
            arrived = self._tier.arrived(wait)
        except Exception:
            _log.exception("a tier of the cache failed; what it was to bring is computed")
            arrived = [(fetch, ()) for _, fetch in scheduler.fetching.values()]
        for fetch, pages in arrived:
            if not scheduler.awaits(fetch):
                continue
            count = 0
            try:
                for block, page in zip(fetch.blocks, pages, strict=False):
                    self._runner.write_page(block, page)
                    count += 1
            except Exception as error:
                _log.warning("a cached page is of no use: %s", error)
            scheduler.fetched(fetch, count)

    def _compute(self, plan: StepPlan) -> list[tuple[str, Delta]]:
        asks, pieces = self._asks(plan)
        if pieces:
            plan = msgspec.structs.replace(plan, segments=tuple(s for s in plan.segments if s.id in self._live))
        if not plan.segments:
            self._runner.forget(plan.gone)
            return pieces
        try:
            chosen = self._runner.step(plan, asks, self._speculator.follows(len(plan.segments)))
        except Exception as error:
            _log.exception("a step of %d requests failed", len(plan.segments))
            return pieces + [(segment.id, self._fail(segment.id, error)) for segment in plan.segments]
        for segment in plan.segments:
            delta = self._advance(segment, chosen.get(segment.id))
            if delta is not None:
                pieces.append((segment.id, delta))
        return pieces

    def _asks(self, plan: StepPlan) -> tuple[dict[str, Ask], list[tuple[str, Delta]]]:
        """What is wanted of the plan's rows, by request; and the ends of those that cannot go on."""
        asks: dict[str, Ask] = {}
        failed: list[tuple[str, Delta]] = []
        for segment in plan.segments:
            try:
                if segment.wanted:
                    asks[segment.id] = self._live[segment.id].ask(segment)
            except Exception as error:
                _log.exception("request %s failed", segment.id)
                failed.append((segment.id, self._fail(segment.id, error)))
        return asks, failed

    def _advance(self, segment: Segment, chosen: Chosen | None) -> Delta | None:
        """Use what one request's rows gave. Whatever goes wrong ends this request alone."""
        answer = self._live[segment.id]
        try:
            before = answer.accepted
            delta = answer.advance(segment, chosen) if chosen is not None else None
            delta = delta and answer.metered(delta)
            self._steps.commit(segment, delta.token_ids if delta is not None else ())
        except Exception as error:
            _log.exception("request %s failed", segment.id)
            return self._fail(segment.id, error)
        if segment.drafted:
            self._drafted[self._speculator.kind] += segment.drafted
            self._accepted[self._speculator.kind] += answer.accepted - before
        if delta is not None and delta.finish_reason is not None:
            self._end(segment.id, delta)
        return delta

    def _fail(self, id: str, error: Exception) -> Delta:
        said = str(error) if isinstance(error, DeepwellError) else f"{type(error).__name__}: {error}"
        last = self._live[id].end("error", said)
        return self._end(id, last, forget=True)

    def _end(self, id: str, last: Delta, forget: bool = False) -> Delta:
        sequence = self._steps.end(id, forget)
        self._speculator.forget(id)
        self._account(id, last, sequence)
        return last

    def _account(self, id: str, last: Delta, sequence: SequenceState) -> None:
        """Count what a request has used and tell of its end: the one place that every request passes, once."""
        assert last.finish_reason is not None
        assert last.usage is not None
        answer = self._live.pop(id)
        self._finished[last.finish_reason] += 1
        if self._on_end is None:
            return
        try:
            admitted = sequence.cached_tokens is not None
            self._on_end(answer.request, last.usage if admitted else NOTHING, last.finish_reason)
        except Exception:
            _log.exception("the end of request %s could not be noted", id)
