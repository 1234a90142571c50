"""Engines side by side: they take turns, round by round, and the machine's limits are measured around every turn.

A machine's speed changes within seconds, and two engines may not fit into memory at once. So each turn is a process of
its own that measures one group of cells, all engines have their turn at a group before the next begins, and the order
of turns rotates from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import mean, median

import msgspec

from deepwell import __version__
from deepwell.bench.cells import Cell, Plan
from deepwell.bench.engines import Deepwell, Engine
from deepwell.bench.limits import int8_speed, read_speed
from deepwell.bench.measure import Report, bound_of, fraction
from deepwell.bench.process import Finished, RunFailed, run
from deepwell.loading.machine import inspect_machine
from deepwell.ops import native


class Score(msgspec.Struct, frozen=True):
    """One engine's cell: `runs` by round in the cell's unit; the rest is None if it failed, and `error` says how.

    `ratio` is how many times better Deepwell's median is. `fraction` is the median share of the machine's limit.
    """

    engine: str
    runs: list[float]
    median: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    fraction: float | None = None
    note: str | None = None
    error: str | None = None


class Row(msgspec.Struct, frozen=True):
    """A cell, and every engine's score in the order of the comparison."""

    measure: str
    size: int
    title: str
    unit: str
    more_is_better: bool
    scores: list[Score]


class Comparison(msgspec.Struct, frozen=True):
    """`read_bytes_per_second` and `int8_ops_per_second` are the limits measured around the turns, in that order."""

    deepwell: str
    cpu: str
    isa: str
    threads: int
    model: str
    dtype: str | None
    rounds: int
    decode_tokens: int
    engines: list[str]
    read_bytes_per_second: list[float]
    int8_ops_per_second: list[float]
    rows: list[Row]

    @property
    def failed(self) -> bool:
        return any(score.error for row in self.rows for score in row.scores)


class Limit(msgspec.Struct, frozen=True):
    """What the machine did around one turn, per second; `int8` None without such an instruction."""

    read: float
    int8: float | None


def measure_limit() -> Limit:
    return Limit(read_speed(), int8_speed())


Say = Callable[[str], None]
"""Told in words what happens next."""


def compare(
    engines: Sequence[Engine],
    plan: Plan,
    *,
    model: str,
    rounds: int,
    threads: int,
    say: Say = lambda text: None,
    limit: Callable[[], Limit] = measure_limit,
    start: Callable[[Sequence[str]], Finished] = run,
) -> Comparison:
    """Measure the plan with every engine, `rounds` times. The first engine is the one that ratios speak of.

    An engine that fails at a group of cells is not asked for them again; its scores say why.
    """
    native.set_threads(threads)
    book = _Book()
    before = limit()
    for number in range(rounds):
        turn = number % len(engines)
        for cells in plan.groups():
            for engine in (*engines[turn:], *engines[:turn]):
                say(f"round {number + 1} of {rounds}: {engine.name}, {', '.join(cell.title for cell in cells)}")
                if (engine.name, cells[0]) not in book.errors:
                    before = book.enter(engine, cells, before, start, limit)
    reports = [engine.report for engine in engines if isinstance(engine, Deepwell) and engine.report]
    report = reports[0] if reports else None
    return Comparison(
        deepwell=__version__,
        cpu=inspect_machine().cpu,
        isa=native.isa(),
        threads=threads,
        model=model,
        dtype=report.dtype if report else None,
        rounds=rounds,
        decode_tokens=plan.decode_tokens,
        engines=[engine.name for engine in engines],
        read_bytes_per_second=[limit.read for limit in book.all_limits],
        int8_ops_per_second=[limit.int8 for limit in book.all_limits if limit.int8],
        rows=list(_rows(engines, plan, book, report)),
    )


_Key = tuple[str, Cell]
_MEMORY = Cell("memory", 0)


class _Book:
    """What every turn gave: runs and the limits around them, by engine and cell; errors, by engine and cell."""

    def __init__(self) -> None:
        self.runs: dict[_Key, list[float]] = {}
        self.limits: dict[_Key, list[Limit]] = {}
        self.errors: dict[_Key, str] = {}
        self.all_limits: list[Limit] = []
        self.peaks: dict[str, list[int]] = {}

    def enter(
        self,
        engine: Engine,
        cells: Sequence[Cell],
        before: Limit,
        start: Callable[[Sequence[str]], Finished],
        limit: Callable[[], Limit],
    ) -> Limit:
        """One engine's turn at a group; the limit measured after it."""
        try:
            done = start(engine.command(cells))
            found = engine.read(cells, done)
        except RunFailed as error:
            self.errors |= {(engine.name, cell): str(error) for cell in cells}
            return before
        after = limit()
        around = _between(before, after)
        self.all_limits.append(around)
        if done.peak_bytes is not None:
            self.peaks.setdefault(engine.name, []).append(done.peak_bytes)
        for cell in cells:
            value = done.seconds if cell.measure == "load" else found[cell]
            self.runs.setdefault((engine.name, cell), []).append(value)
            self.limits.setdefault((engine.name, cell), []).append(around)
        return after


def _between(before: Limit, after: Limit) -> Limit:
    return Limit(
        mean((before.read, after.read)), mean((before.int8, after.int8)) if before.int8 and after.int8 else None
    )


def _rows(engines: Sequence[Engine], plan: Plan, book: _Book, report: Report | None) -> Iterator[Row]:
    for cell in plan.cells():
        scores = [_score(engine, cell, book, report) for engine in engines]
        yield _row(cell, scores)
    peaks = [
        Score(engine.name, runs=[float(max(peaks))], median=max(peaks), low=max(peaks), high=max(peaks))
        if (peaks := book.peaks.get(engine.name))
        else Score(engine.name, runs=[])
        for engine in engines
    ]
    yield _row(_MEMORY, peaks)


def _score(engine: Engine, cell: Cell, book: _Book, report: Report | None) -> Score:
    key = (engine.name, cell)
    runs = book.runs.get(key, [])
    if error := book.errors.get(key):
        return Score(engine.name, runs, error=error)
    return Score(
        engine=engine.name,
        runs=runs,
        median=median(runs),
        low=min(runs),
        high=max(runs),
        fraction=_fraction(cell, runs, book.limits[key], report) if report else None,
        note=engine.note(cell),
    )


def _fraction(cell: Cell, runs: list[float], limits: list[Limit], report: Report) -> float | None:
    """Share of the limit, at Deepwell's count of bytes or operations per token for every engine."""
    match bound_of(cell):
        case "bytes":
            return fraction(runs, [limit.read for limit in limits], report.accounting.weight_bytes_per_token)
        case "int8":
            return fraction(runs, [limit.int8 for limit in limits if limit.int8], report.prefill_ops_per_token)
    return None


def _row(cell: Cell, scores: list[Score]) -> Row:
    own = scores[0].median
    compared = [scores[0]]
    for score in scores[1:]:
        ratio = None
        if own and score.median:
            ratio = own / score.median if cell.more_is_better else score.median / own
        compared.append(msgspec.structs.replace(score, ratio=ratio))
    return Row(cell.measure, cell.size, cell.title, cell.unit, cell.more_is_better, compared)
