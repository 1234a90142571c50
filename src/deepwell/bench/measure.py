"""Deepwell's own speed: the cells of a plan on a loaded model, each beside the limit that bounds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import mean, median

import msgspec
import numpy as np

from deepwell import __version__
from deepwell.bench.cells import READING_STEPS, SHORT_PROMPT, Cell, Plan
from deepwell.bench.limits import int8_speed, prefill_ops, read_speed
from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.errors import ConfigError, DeepwellError
from deepwell.loading.load import LoadedModel
from deepwell.loading.machine import inspect_machine, resident_bytes
from deepwell.model.accounting import Accounting
from deepwell.ops import native
from deepwell.ops.base import BLOCK_TOKENS
from deepwell.options import Speculate


class Result(msgspec.Struct, frozen=True):
    """A cell measured: `runs` in its unit, one per repeat.

    `limit` is what the machine did beside each run, per second: bytes read, or 8-bit operations. `fraction` is the
    median share of it that the run used. Both are empty where nothing was measured beside it.
    """

    measure: str
    size: int
    unit: str
    runs: list[float]
    median: float
    limit: list[float] = []
    fraction: float | None = None


class Report(msgspec.Struct, frozen=True):
    """Results are in the plan's order; sizes are bytes. `prefill_ops_per_token` leaves out embedding, head, attention.

    `seconds_to_first_token` is the time to read the plan's first prompt and give one token, None without prefill.
    """

    deepwell: str
    cpu: str
    isa: str
    threads: int
    model: str
    dtype: str
    speculate: Speculate
    decode_tokens: int
    repeats: int
    load_seconds: float
    seconds_to_first_token: float | None
    resident_bytes: int
    prefill_ops_per_token: int
    results: list[Result]
    accounting: Accounting


def check(model: LoadedModel, plan: Plan) -> None:
    """Raise ConfigError if the model cannot hold the plan's sequences."""
    if plan.context() > model.runner.context:
        raise ConfigError(
            f"--prompt-tokens {_listed(plan.prompt_tokens)}, --depths {_listed(plan.depths)} and --decode-tokens "
            f"{plan.decode_tokens} need a context of {plan.context()} tokens; this model has "
            f"{model.runner.context} (measured: {', '.join(plan.measures)})"
        )
    room = model.runner.blocks * BLOCK_TOKENS
    many = max(plan.streams, default=0) if "streams" in plan.measures else 0
    pages = -(-(SHORT_PROMPT + READING_STEPS + plan.decode_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS
    if many * pages > room:
        raise ConfigError(f"{many} streams need room for {many * pages} tokens; the KV cache holds {room}")


def measure(
    model: LoadedModel,
    plan: Plan,
    repeats: int,
    *,
    beside: bool = True,
    engine: EngineConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Run every cell `repeats` times, after a short warm-up, on prompts never seen before.

    `beside` measures the machine's limit before and after each run. `engine` is the engine's configuration, but for
    what many streams need. `progress` is told how many of how many runs are done. Raises ConfigError for
    sequences that do not fit.
    """
    check(model, plan)
    bench = _Bench(model, plan, engine or EngineConfig())
    begun = time.perf_counter()
    bench.first_token(8)
    first_token = model.seconds + time.perf_counter() - begun
    paper = model.account(SHORT_PROMPT)
    ops = prefill_ops(model.config, paper.active_params)
    runs: dict[Cell, list[float]] = {cell: [] for cell in plan.cells()}
    limits: dict[Cell, list[float]] = {cell: [] for cell in runs}
    resident = 0
    for cell in runs:
        bench.warm(cell)
    for done in range(repeats):
        for number, cell in enumerate(runs):
            progress(done * len(runs) + number, repeats * len(runs))
            limit = _limit_of(cell) if beside else None
            before = limit() if limit else None
            runs[cell].append(first_token if cell.measure == "load" else bench.rate(cell))
            resident = max(resident, resident_bytes())
            after = limit() if limit else None
            if before and after:
                limits[cell].append(mean((before, after)))
    costs = {"prefill": ops, "decode": paper.weight_bytes_per_token, "depth": paper.weight_bytes_per_token}
    prefills = [cell for cell in runs if cell.measure == "prefill"]
    return Report(
        deepwell=__version__,
        cpu=inspect_machine().cpu,
        isa=native.isa(),
        threads=native.threads(),
        model=model.name,
        dtype=model.dtype,
        speculate=bench.speculate,
        decode_tokens=plan.decode_tokens,
        repeats=repeats,
        load_seconds=model.seconds,
        seconds_to_first_token=prefills[0].size / median(runs[prefills[0]]) if prefills else None,
        resident_bytes=resident,
        prefill_ops_per_token=ops,
        results=[_result(cell, runs[cell], limits[cell], costs.get(cell.measure, 0)) for cell in runs],
        accounting=paper,
    )


def bound_of(cell: Cell) -> str | None:
    """What bounds the cell: `bytes` read, `int8` operations, or None where neither says much."""
    if cell.measure in ("decode", "depth"):
        return "bytes"
    return "int8" if cell.measure == "prefill" else None


def fraction(runs: Sequence[float], limits: Sequence[float], cost: int) -> float | None:
    """Median share of the limit, for runs in tokens/s that cost `cost` bytes or operations per token."""
    if not runs or len(limits) != len(runs):
        return None
    return median(cost * run / limit for run, limit in zip(runs, limits, strict=True))


def _limit_of(cell: Cell) -> Callable[[], float | None] | None:
    kind = bound_of(cell)
    return {"bytes": read_speed, "int8": int8_speed}[kind] if kind else None


def _result(cell: Cell, runs: list[float], limits: list[float], cost: int) -> Result:
    return Result(cell.measure, cell.size, cell.unit, runs, median(runs), limits, fraction(runs, limits, cost))


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


class _Bench:
    """An engine of its own, and prompts drawn from a seed: no two are equal, so nothing is found in the cache."""

    def __init__(self, model: LoadedModel, plan: Plan, engine: EngineConfig) -> None:
        self._tokens = plan.decode_tokens
        self.speculate = engine.speculate
        most = max((1, *plan.streams))
        # Twice the streams, so that READING_STEPS is enough for all prompts beside the answers already begun.
        config = msgspec.structs.replace(
            engine,
            max_running=most,
            token_budget=max(engine.token_budget, 2 * most),
            # No more than the largest cell takes: after it has run once, the cache's memory is all the process's own.
            blocks=min(model.runner.blocks, max(map(self._blocks, plan.cells()))),
        )
        self._core = EngineCore(model.runner, model.tokenizer, config)
        self._vocab = model.config.vocab
        self._random = np.random.default_rng(0)

    def _blocks(self, cell: Cell) -> int:
        """KV blocks that a cell takes, with room for what is read beside."""
        streams = cell.size if cell.measure == "streams" else 1
        prompt = cell.size if cell.measure in ("prefill", "depth") else SHORT_PROMPT
        return streams * (-(-(prompt + READING_STEPS + self._tokens) // BLOCK_TOKENS) + 1)

    def warm(self, cell: Cell) -> None:
        """Run a cell once without counting, but for the long prompts of depth: as other engines' benches do."""
        if cell.measure not in ("load", "depth"):
            self.rate(cell)

    def rate(self, cell: Cell) -> float:
        """Tokens per second of a cell that is not load."""
        match cell.measure:
            case "prefill":
                return cell.size / self.first_token(cell.size)
            case "depth":
                return self._decode([self._prompt(cell.size)])
        return self._decode([self._prompt(SHORT_PROMPT) for _ in range(cell.size)])

    def first_token(self, length: int) -> float:
        """Seconds to read a prompt of `length` tokens and give one token."""
        begun = time.perf_counter()
        self._add([self._prompt(length)], 1)
        while self._core.live:
            self._step()
        return time.perf_counter() - begun

    def _decode(self, prompts: Sequence[tuple[int, ...]]) -> float:
        """Tokens per second of all prompts' answers, from when each has its first token, all running to the end."""
        self._add(prompts, self._tokens + READING_STEPS)
        started: set[str] = set()
        while len(started) < len(prompts):
            started |= self._step().keys()
        begun, done = time.perf_counter(), 0
        while done < self._tokens * len(prompts) and self._core.live:
            done += sum(self._step().values())
        seconds = time.perf_counter() - begun
        for id in list(self._core.live):
            self._core.abort(id)
        return done / seconds

    def _prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, self._vocab, length).tolist())

    def _add(self, prompts: Sequence[tuple[int, ...]], tokens: int) -> None:
        """Greedy answers of `tokens` tokens each, whatever the model would end with."""
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        for index, prompt in enumerate(prompts):
            self._core.add(Request(id=str(index), prompt=prompt, sampling=sampling))

    def _step(self) -> dict[str, int]:
        """Compute a step; tokens it gave, by request."""
        given = {}
        for id, delta in self._core.step():
            if delta.error is not None:
                raise DeepwellError(f"the engine failed while it was measured: {delta.error}")
            given[id] = len(delta.token_ids)
        return given
