"""`deepwell bench`: how fast this machine reads prompts and writes answers, beside its limits and other engines."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from rich.console import Console
from rich.table import Table

from deepwell.bench.cells import SHORT_PROMPT, Cell, Plan
from deepwell.bench.chart import amount, amount_unit, draw
from deepwell.bench.compare import Comparison, Row, Score, compare
from deepwell.bench.engines import Deepwell, find_peer
from deepwell.bench.measure import Report, measure
from deepwell.cli.hub import located
from deepwell.cli.model import engine_config, load
from deepwell.cli.terminal import visible
from deepwell.cli.waiting import Wait
from deepwell.errors import ConfigError
from deepwell.loading.machine import default_threads, inspect_machine
from deepwell.options import BenchOptions


def run(options: BenchOptions) -> int:
    plan = plan_of(options)
    if options.compare:
        return _compare(options, plan)
    if options.chart:
        raise ConfigError("--chart draws a comparison; it needs --compare NAME=PATH")
    model = load(options)
    with Wait("measuring") as wait:
        report = measure(
            model,
            plan,
            options.repeats,
            beside=not options.no_limits,
            engine=engine_config(options),
            progress=wait,
        )
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)
    return 0


def plan_of(options: BenchOptions) -> Plan:
    """What the options ask to measure. Raises ConfigError for a measure without sizes."""
    plan = Plan(options.measure, options.prompt_tokens, options.streams, options.depths, options.decode_tokens)
    if not plan.cells():
        raise ConfigError("nothing is to be measured: --measure, or the sizes of what it names, are empty")
    return plan


def _compare(options: BenchOptions, plan: Plan) -> int:
    if (model := located(options.model)) is None:
        raise ConfigError("--compare needs MODEL, a file that the other engines can read too")
    if not model.exists():
        raise ConfigError(f"{model} does not exist")
    if options.chart and not options.chart.absolute().parent.is_dir():
        raise ConfigError(f"--chart {options.chart}: the folder does not exist")
    threads = options.threads or default_threads(inspect_machine())
    own = Deepwell(model, plan, threads, options.dtype, options.context)
    peers = [find_peer(text, model, plan, threads) for text in options.compare]
    names = [own.name, *(peer.name for peer in peers)]
    if len(set(names)) < len(names):
        raise ConfigError(f"--compare: every engine needs a name of its own, not {', '.join(names)}")
    with Console(stderr=True, highlight=False, markup=False).status("") as status:
        result = compare(
            [own, *peers],
            plan,
            model=model.absolute().name,
            rounds=options.repeats,
            threads=threads,
            say=status.update,
        )
    if options.chart:
        options.chart.write_text(draw(result), encoding="utf-8")
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        _show_comparison(result)
    return 1 if result.failed else 0


def _show(report: Report) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    for row in _rows(report):
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(
        f"{visible(report.model)}, {report.dtype}, on {report.cpu} ({report.isa}, {report.threads} threads)",
        style="bold",
    )
    console.print(table)
    console.print(
        f"Medians of {report.repeats} runs, limits measured beside each. FLOPs at {SHORT_PROMPT} earlier tokens.",
        style="dim",
    )
    if report.speculate != "off":
        console.print(
            f"Answers were guessed ahead (--speculate {report.speculate}), which depends on the text; --speculate off "
            "measures plain decoding.",
            style="dim",
        )


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    paper = report.accounting
    yield "load", f"{report.load_seconds:.3f}", "s"
    for result in report.results:
        if result.measure == "load":
            continue
        title = Cell(result.measure, result.size).title  # type: ignore[arg-type]
        yield title, amount(result.median, result.unit), result.unit + _share(result.measure, result.fraction)
    if report.seconds_to_first_token is not None:
        yield "time to first token", f"{report.seconds_to_first_token * 1000:,.1f}", "ms"
    yield "resident memory", f"{report.resident_bytes / 1e6:,.1f}", "MB"
    yield "parameters", f"{paper.total_params / 1e6:,.2f}", f"M, of which {paper.active_params / 1e6:,.2f} M active"
    yield "computation", f"{paper.flops_per_token / 1e6:,.2f}", "MFLOPs/token"
    yield (
        "weights read",
        f"{paper.weight_bytes_per_token / 1e6:,.2f}",
        f"MB/token of {paper.weight_bytes / 1e6:,.2f} MB",
    )
    yield "KV cache", f"{paper.kv_bytes_per_token:,}", f"bytes/token; plain MHA {paper.mha_kv_bytes_per_token:,}"


def _share(measure: str, fraction: float | None) -> str:
    if fraction is None:
        return ""
    limit = "8-bit peak" if measure == "prefill" else "read bandwidth"
    return f", {fraction:.0%} of the {limit}"


def _show_comparison(result: Comparison) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in result.engines:
        table.add_column(name, justify="right")
    notes = list(dict.fromkeys(score.note for row in result.rows for score in row.scores if score.note))
    for row in result.rows:
        table.add_row(f"{row.title} ({amount_unit(row.unit)})", *(_cell(row, score, notes) for score in row.scores))
    console = Console(highlight=False, markup=False)
    console.print(f"{result.model} on {result.cpu} ({result.isa}, {result.threads} threads)", style="bold")
    console.print(table)
    console.print(
        f"Medians of {result.rounds} rounds taken in turns, (lowest to highest), x: times better Deepwell is, "
        "%: share of the read bandwidth (decode) or of the 8-bit peak (prefill) measured around each turn.",
        style="dim",
    )
    for number, note in enumerate(notes, 1):
        console.print(f"[{number}] {note}", style="dim")
    for said in dict.fromkeys(f"{s.engine} failed: {s.error}" for row in result.rows for s in row.scores if s.error):
        console.print(said, style="red")


def _cell(row: Row, score: Score, notes: list[str]) -> str:
    if score.median is None:
        return "failed" if score.error else "-"
    parts = [amount(score.median, row.unit)]
    if score.note:
        parts[0] += f"[{notes.index(score.note) + 1}]"
    if score.low is not None and score.high is not None and len(score.runs) > 1:
        parts.append(f"({amount(score.low, row.unit)} to {amount(score.high, row.unit)})")
    if score.ratio is not None:
        parts.append(f"x{score.ratio:.2f}")
    if score.fraction is not None:
        parts.append(f"{score.fraction:.0%}")
    return " ".join(parts)
