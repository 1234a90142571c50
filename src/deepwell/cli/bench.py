"""`deepwell bench`: how fast this machine reads prompts and writes answers, beside what the model costs on paper."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import median

import msgspec
import numpy as np

from deepwell import __version__
from deepwell.cli.model import engine_config, load
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.engine.load import LoadedModel
from deepwell.engine.machine import inspect_machine, resident_bytes
from deepwell.errors import ConfigError
from deepwell.model.accounting import Accounting, account
from deepwell.ops import native
from deepwell.options import BenchOptions

STREAMS = 16
SHORT_PROMPT = 64
"""Tokens of the prompts whose answers are timed: one block, so that one and many streams decode at equal depth."""


class Report(msgspec.Struct, frozen=True):
    """Speeds are medians of `repeats` runs, in tokens per second of all streams together; sizes are bytes."""

    deepwell: str
    cpu: str
    isa: str
    threads: int
    model: str
    dtype: str
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    load_seconds: float
    prefill_tokens_per_second: float
    seconds_to_first_token: float
    decode_tokens_per_second: float
    decode_tokens_per_second_16: float
    resident_bytes: int
    accounting: Accounting


def run(options: BenchOptions) -> int:
    model = load(options)
    longest = max(options.prompt_tokens + 1, SHORT_PROMPT + options.decode_tokens)
    if longest > model.runner.context:
        raise ConfigError(
            f"--prompt-tokens {options.prompt_tokens} and --decode-tokens {options.decode_tokens} need a context of "
            f"{longest} tokens; this model has {model.runner.context}"
        )
    report = measure(model, options)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)
    return 0


def measure(model: LoadedModel, options: BenchOptions) -> Report:
    """Run every measurement `repeats` times, after a short warm-up, on prompts never seen before."""
    core = EngineCore(model.runner, model.tokenizer, engine_config(options))
    random = np.random.default_rng(0)

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(random.integers(0, model.config.vocab, length).tolist())

    _times(core, [prompt(8)], 2)
    firsts, ones, manies = [], [], []
    for _ in range(options.repeats):
        firsts.append(_times(core, [prompt(options.prompt_tokens)], 1).first)
        ones.append(_times(core, [prompt(SHORT_PROMPT)], options.decode_tokens + 1).decode_rate)
        many = [prompt(SHORT_PROMPT) for _ in range(STREAMS)]
        manies.append(_times(core, many, options.decode_tokens + 1).decode_rate)
    return Report(
        deepwell=__version__,
        cpu=inspect_machine().cpu,
        isa=native.isa(),
        threads=native.threads(),
        model=model.name,
        dtype=model.dtype,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.decode_tokens,
        repeats=options.repeats,
        load_seconds=model.seconds,
        prefill_tokens_per_second=options.prompt_tokens / median(firsts),
        seconds_to_first_token=median(firsts),
        decode_tokens_per_second=median(ones),
        decode_tokens_per_second_16=median(manies),
        resident_bytes=resident_bytes(),
        accounting=account(model.config, model.dtype, depth=SHORT_PROMPT),
    )


class _Times(msgspec.Struct, frozen=True):
    """`first`: seconds until every prompt was read and had its first token. `decode_rate`: tokens/s from then on."""

    first: float
    decode_rate: float


def _times(core: EngineCore, prompts: Sequence[tuple[int, ...]], tokens: int) -> _Times:
    """Answer the prompts together, `tokens` tokens each, greedily and whatever the model would end with."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        core.add(Request(id=str(index), prompt=prompt, sampling=sampling))
    before = core.stats().computed_tokens
    began = read = time.perf_counter()
    reading = sum(map(len, prompts))
    while core.live:
        core.step()
        if core.stats().computed_tokens - before <= reading:
            read = time.perf_counter()
    ended = time.perf_counter()
    done = core.stats().computed_tokens - before
    return _Times(read - began, (done - reading) / (ended - read) if done > reading else 0.0)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    for row in _rows(report):
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(
        f"{report.model}, {report.dtype}, on {report.cpu} ({report.isa}, {report.threads} threads)", style="bold"
    )
    console.print(table)
    console.print(f"Medians of {report.repeats} runs. FLOPs at {SHORT_PROMPT} earlier tokens.", style="dim")


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    paper = report.accounting
    yield "load", f"{report.load_seconds:.3f}", "s"
    yield "prefill", f"{report.prefill_tokens_per_second:,.0f}", f"tokens/s ({report.prompt_tokens} tokens)"
    yield "time to first token", f"{report.seconds_to_first_token * 1000:,.1f}", "ms"
    yield "decode, 1 stream", f"{report.decode_tokens_per_second:,.1f}", "tokens/s"
    yield f"decode, {STREAMS} streams", f"{report.decode_tokens_per_second_16:,.1f}", "tokens/s in all"
    yield "resident memory", f"{report.resident_bytes / 1e6:,.1f}", "MB"
    yield "parameters", f"{paper.total_params / 1e6:,.2f}", f"M, of which {paper.active_params / 1e6:,.2f} M active"
    yield "computation", f"{paper.flops_per_token / 1e6:,.2f}", "MFLOPs/token"
    yield (
        "weights read",
        f"{paper.weight_bytes_per_token / 1e6:,.2f}",
        f"MB/token of {paper.weight_bytes / 1e6:,.2f} MB",
    )
    yield "KV cache", f"{paper.kv_bytes_per_token:,}", f"bytes/token; plain MHA {paper.mha_kv_bytes_per_token:,}"
