"""What an operator watches, in Prometheus' text format.

Names follow vLLM's, with our prefix, so that dashboards carry over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deepwell.engine.engine import EngineStats
from deepwell.engine.speculation.speculator import Kind
from deepwell.engine.types import Delta, FinishReason, Request, Usage

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The counters of one server, in a registry of its own. Gauges are read from the engine at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineGauges(stats, model))
        self._model = model
        self._http = self._counter("http_requests", "HTTP requests by endpoint and status.", "path", "status")
        self._finished = self._counter("request_success", "Answers by finish reason.", "finished_reason")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of ended requests, aborted ones too.")
        self._generated = self._counter("generation_tokens", "Tokens generated for ended requests, aborted ones too.")
        self._queried = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._first = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _LONG)
        self._between = self._histogram("inter_token_latency_seconds", "Time between tokens of an answer.", _SHORT)
        self._whole = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", _LONG)

    def http(self, path: str, status: int) -> None:
        self._http.labels(self._model, path, str(status)).inc()

    def ended(self, request: Request, usage: Usage, reason: FinishReason) -> None:
        """Count a request that has ended, with what it used. See OnEnd."""
        self._finished.labels(self._model, reason).inc()
        self._prompt.labels(self._model).inc(usage.prompt_tokens)
        self._queried.labels(self._model).inc(usage.prompt_tokens)
        self._hits.labels(self._model).inc(usage.cached_tokens)
        self._generated.labels(self._model).inc(usage.completion_tokens)

    def request(self) -> RequestTimer:
        """A timer for a request that arrives now."""
        return RequestTimer(self)

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"deepwell:{name}", text, ("model_name", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        named = Histogram(f"deepwell:{name}", text, ("model_name",), buckets=buckets, registry=self.registry)
        return named.labels(self._model)


class RequestTimer:
    """Notes when the tokens of one answer came to its reader. What was used, the engine tells `Metrics.ended`.

    `first` is the time to the first token in seconds; the rest are numbers of tokens so far.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.first: float | None = None
        self.prompt_tokens = self.cached_tokens = self.tokens = 0
        self._metrics = metrics
        self._arrived = time.perf_counter()
        self._last: float | None = None
        self._finished = False

    def delta(self, delta: Delta) -> None:
        """Count a piece of the answer that came now."""
        m, now, count = self._metrics, time.perf_counter(), len(delta.token_ids)
        self.tokens += count
        if delta.usage is not None:
            self.cached_tokens = delta.usage.cached_tokens
        if count and self._last is None:
            self.first = now - self._arrived
            m._first.observe(self.first)
        elif self._last is not None:
            for _ in range(count):
                m._between.observe((now - self._last) / count)
        if count:
            self._last = now
        if delta.finish_reason is not None:
            self._finish(now)

    def close(self) -> None:
        """No more will come: an answer without an end was left by its client."""
        if not self._finished:
            self._finish(time.perf_counter())

    def _finish(self, now: float) -> None:
        m, self._finished = self._metrics, True
        m._whole.observe(now - self._arrived)


class _EngineGauges(Collector):
    def __init__(self, stats: Callable[[], EngineStats], model: str) -> None:
        self._stats, self._model = stats, model

    def collect(self) -> Iterator[Metric]:
        s = self._stats()
        used = (s.blocks_total - s.blocks_free) / s.blocks_total if s.blocks_total else 0.0
        yield self._gauge("num_requests_running", "Requests in the current step.", s.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", s.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, from 0 to 1.", used)
        yield self._gauge("kv_blocks", "KV blocks of 64 tokens in all.", s.blocks_total)
        yield self._gauge("kv_blocks_free", "KV blocks that no running request holds.", s.blocks_free)
        yield self._gauge("kv_blocks_cached", "KV blocks that hold a reusable prefix.", s.blocks_cached)
        yield self._by_kind("draft_tokens", "Tokens guessed ahead and checked, by their origin.", s.drafted)
        yield self._by_kind("accepted_tokens", "Tokens guessed right, by their origin.", s.accepted)

    def _by_kind(self, name: str, text: str, counts: Mapping[Kind, int]) -> Metric:
        family = CounterMetricFamily(f"deepwell:{name}", text, labels=["model_name", "kind"])
        for kind, count in counts.items():
            family.add_metric([self._model, kind], count)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"deepwell:{name}", text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
