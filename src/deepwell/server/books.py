"""The books as JSON and as metrics: what was asked, found and generated, how fast, what it would earn and cost.

An hour's income is theoretical: what its requests are worth by the table of prices, whether they were paid or granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request

from deepwell.accounts.books import BY, By, Latency, Sum
from deepwell.accounts.clock import DAY, HOUR, SECOND
from deepwell.accounts.money import units
from deepwell.errors import DeepwellError, RequestError
from deepwell.server.desk import Desk
from deepwell.server.query import integer, iso, moment

MOST_PERIODS = 1000
MOST_ROWS = 1000
SCRAPE_SECONDS = 15
"""How long metrics of the ledger hold, so that a scrape a second costs no more."""


class Millis(msgspec.Struct, frozen=True):
    """Percentiles in milliseconds."""

    p50: float
    p90: float
    p99: float


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """An hour, a day, or all of what was asked for.

    `input` is `hit` + `miss`; `answer_speed` the tokens a second of one answer after its first token, `input_speed` and
    `output_speed` those of the whole server over the time that has passed. `income`, `cost` and `margin` are money as
    text; `margin_rate` is the margin as a share of the cost, 5.45 for 545 %. Null: nothing is known.
    """

    start: str
    end: str
    requests: int
    interrupted: int
    input: int
    hit: int
    miss: int
    output: int
    reasoning: int
    hit_rate: float | None
    first_ms: Millis | None
    whole_ms: Millis | None
    answer_speed: float | None
    input_speed: float | None
    output_speed: float | None
    energy_wh: float | None
    income: str
    cost: str
    margin: str
    margin_rate: float | None


class BooksAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The books of a span of time. `other_income` is what was earned in other currencies. `energy_note` says why there
    is no energy."""

    by: Literal["hour", "day"]
    currency: str
    hourly_cost: str
    total: Period
    data: list[Period]
    other_income: dict[str, str]
    energy_note: str | None
    object: Literal["books"] = "books"


class UsageRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one group used; what it is grouped by is set. Money as text."""

    currency: str
    requests: int
    hit: int
    miss: int
    output: int
    reasoning: int
    cost: str
    from_granted: str
    from_topped_up: str
    hour: str | None = None
    day: str | None = None
    account: str | None = None
    key: int | None = None
    prefix: str | None = None
    model: str | None = None
    kind: str | None = None


class UsageAnswer(msgspec.Struct, frozen=True):
    """A page of groups; the next one begins at `offset` + the number of these."""

    data: list[UsageRow]
    has_more: bool
    object: Literal["list"] = "list"


def books(request: Request, desk: Desk) -> BooksAnswer:
    """GET /admin/books?from=&until=&by=hour|day: the last 24 hours where nothing is said."""
    by = request.query_params.get("by", "hour")
    if by not in ("hour", "day"):
        raise RequestError("by must be hour or day", "by")
    step = HOUR if by == "hour" else DAY
    until = moment(request, "until", desk.now)
    until += -until % step
    since = moment(request, "from", until - (DAY if by == "hour" else 30 * DAY))
    since -= since % step
    if not 0 < until - since <= MOST_PERIODS * step:
        raise RequestError(f"from must be before until, by {MOST_PERIODS} {by}s at most", "from")
    return _answer(desk, since, until, "hour" if by == "hour" else "day")


def usage(request: Request, desk: Desk) -> UsageAnswer:
    """GET /admin/usage?by=key,model&from=&until=&limit=&offset=: sums of groups, in their order."""
    names = [name for name in request.query_params.get("by", "key").split(",") if name]
    by = [name for name in BY if name in names]
    if len(by) != len(names):
        raise RequestError(f"by must be some of {', '.join(BY)}, with commas between them", "by")
    since, until = moment(request, "from", 0), moment(request, "until", desk.now + HOUR)
    limit, offset = integer(request, "limit", 100, 1, MOST_ROWS), integer(request, "offset", 0, 0, 2**53)
    found = desk.books.sums(by, since=since, until=until, latencies=False)
    rows = [_usage_row(one) for one in found[offset : offset + limit]]
    return UsageAnswer(rows, offset + limit < len(found))


def _answer(desk: Desk, since: int, until: int, by: Literal["hour", "day"]) -> BooksAnswer:
    prices = desk.platform.prices
    step = HOUR if by == "hour" else DAY
    groups: dict[int, list[Sum]] = {}
    for one in desk.books.sums([by], since=since, until=until):
        start = one.hour if by == "hour" else one.day
        assert start is not None
        groups.setdefault(start, []).append(one)
    whole = desk.books.sums([], since=since, until=until)
    clerk = _Clerk(desk)
    others = {one.currency: units(one.cost) for one in whole if one.currency != prices.currency and one.cost}
    return BooksAnswer(
        by=by,
        currency=prices.currency,
        hourly_cost=units(prices.hourly_cost),
        total=clerk.period(whole, since, until),
        data=[clerk.period(groups.get(start, ()), start, start + step) for start in range(since, until, step)],
        other_income=others,
        energy_note=desk.energy.why_not,
    )


class _Clerk:
    """Writes sums down as periods. Time before the first request of all, and time to come, cost nothing."""

    def __init__(self, desk: Desk) -> None:
        self._energy = desk.energy
        self._currency = desk.platform.prices.currency
        self._hourly_cost = desk.platform.prices.hourly_cost
        self._now = desk.now
        began = desk.rolls.began()
        self._began = self._now if began is None else began - began % HOUR

    def period(self, sums: Sequence[Sum], start: int, end: int) -> Period:
        """Of sums by currency."""
        passed = max(0, min(end, self._now) - max(start, self._began))
        income = sum(one.cost for one in sums if one.currency == self._currency)
        cost = self._hourly_cost * passed // HOUR
        hit, miss, output = (sum(getattr(one, name) for one in sums) for name in ("hit", "miss", "output"))
        generating = sum(one.generating_us for one in sums)
        return Period(
            start=iso(start),
            end=iso(end),
            requests=sum(one.requests for one in sums),
            interrupted=sum(one.interrupted for one in sums),
            input=hit + miss,
            hit=hit,
            miss=miss,
            output=output,
            reasoning=sum(one.reasoning for one in sums),
            hit_rate=_ratio(hit, hit + miss),
            first_ms=_worst(one.first for one in sums),
            whole_ms=_worst(one.whole for one in sums),
            answer_speed=_ratio(output * SECOND, generating),
            input_speed=_ratio((hit + miss) * SECOND, passed),
            output_speed=_ratio(output * SECOND, passed),
            energy_wh=self._energy.between(start // SECOND, end // SECOND),
            income=units(income),
            cost=units(cost),
            margin=units(income - cost),
            margin_rate=_ratio(income - cost, cost),
        )


class BooksMetrics(Collector):
    """The running hour of the books, and all energy, for Prometheus. Read at a scrape, which may be in any thread."""

    def __init__(self, desk: Desk, model: str) -> None:
        self._desk, self._model = desk, model
        self._read: tuple[int, Period] | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not read the ledger."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What is known; while the ledger is away, the energy alone."""
        desk = self._desk
        if desk.energy.why_not is None:
            joules = CounterMetricFamily("deepwell:energy_joules", "Energy of the processors.", labels=["model_name"])
            joules.add_metric([self._model], desk.energy.microjoules / 1e6)
            yield joules
        try:
            hour = self._hour()
        except DeepwellError:
            return
        currency = desk.platform.prices.currency
        for name in ("input", "hit", "miss", "output"):
            yield self._gauge(f"hour_{name}_tokens", f"Tokens of the running hour: {name}.", getattr(hour, name))
        yield self._gauge("hour_requests", "Requests of the running hour.", hour.requests)
        yield self._gauge("hour_hit_rate", "Share of prompt tokens found in the cache.", hour.hit_rate)
        yield self._gauge("hour_output_speed", "Tokens a second of all answers.", hour.output_speed)
        yield self._gauge("hour_answer_speed", "Tokens a second of one answer.", hour.answer_speed)
        yield self._quantiles("hour_first_token_seconds", "Arrival to first token.", hour.first_ms)
        yield self._quantiles("hour_request_seconds", "Arrival to last token.", hour.whole_ms)
        for name in ("income", "cost", "margin"):
            amount = float(getattr(hour, name))
            yield self._gauge(f"hour_{name}", f"Theoretical {name} of the running hour.", amount, currency=currency)

    def _hour(self) -> Period:
        now = self._desk.now
        if self._read is None or not 0 <= now - self._read[0] < SCRAPE_SECONDS * SECOND:
            start = now - now % HOUR
            self._read = now, _answer(self._desk, start, start + HOUR, "hour").total
        return self._read[1]

    def _gauge(self, name: str, text: str, value: float | None, **labels: str) -> Metric:
        family = GaugeMetricFamily(f"deepwell:{name}", text, labels=["model_name", *labels])
        if value is not None:
            family.add_metric([self._model, *labels.values()], value)
        return family

    def _quantiles(self, name: str, text: str, latency: Millis | None) -> Metric:
        family = GaugeMetricFamily(f"deepwell:{name}", text, labels=["model_name", "quantile"])
        for quantile in ("0.5", "0.9", "0.99") if latency else ():
            milliseconds = getattr(latency, f"p{float(quantile) * 100:.0f}")
            family.add_metric([self._model, quantile], milliseconds / 1000)
        return family


def _worst(latencies: Iterable[Latency | None]) -> Millis | None:
    """In milliseconds; where requests had several currencies, the slowest of theirs."""
    known = [one for one in latencies if one is not None]
    if not known:
        return None
    return Millis(*(max(getattr(one, name) for one in known) / 1000 for name in ("p50", "p90", "p99")))


def _ratio(part: float, of: float) -> float | None:
    return part / of if of else None


def _usage_row(one: Sum) -> UsageRow:
    money: dict[str, Any] = {name: units(getattr(one, name)) for name in ("cost", "from_granted", "from_topped_up")}
    times: dict[str, Any] = {name: iso(value) for name in ("hour", "day") if (value := getattr(one, name)) is not None}
    names: tuple[By, ...] = ("account", "key", "model", "kind")
    plain: dict[str, Any] = {name: getattr(one, name) for name in (*names, "prefix")}
    counts: dict[str, Any] = {name: getattr(one, name) for name in ("requests", "hit", "miss", "output", "reasoning")}
    return UsageRow(currency=one.currency, **counts, **money, **times, **plain)
