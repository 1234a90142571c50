"""Deepwell against other engines on a processor: measured cell by cell, and rendered from what was measured.

    python benchmarks/random_gguf.py v2lite q4_0 models/v2lite-q4_0.gguf    (and the other files)
    python benchmarks/cpu.py measure models runs/cpu --peer llama.cpp=PATH --peer ik_llama.cpp=PATH
    python benchmarks/cpu.py render runs/cpu benchmarks/cpu.md

`measure` writes one JSON per file of the folder and measure, as `deepwell bench --compare --json` prints it. What is
there already is not measured again, so an interrupted run goes on where it stopped; delete a JSON to repeat it.
`render` needs neither models nor peers: it writes the Markdown page and a picture per model beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import median

import msgspec

from deepwell.bench.cells import Plan
from deepwell.bench.chart import amount, amount_unit, draw
from deepwell.bench.compare import Comparison, Row, Score, compare
from deepwell.bench.engines import Deepwell, find_peer
from deepwell.errors import DeepwellError
from deepwell.files import write_whole
from deepwell.loading.machine import default_threads, inspect_machine

SHAPES = {
    "v2lite": "DeepSeek-V2-Lite: 15.7 B parameters, 2.45 B active, latent attention, 64 experts",
    "ds7b": "DeepSeek LLM 7B: 6.9 B parameters, dense",
    "coder1b": "DeepSeek-Coder 1.3B: 1.35 B parameters, dense",
}
MIXES = ("q4_0", "q4_k_m")
PLANS: dict[str, Plan] = {
    "load": Plan(("load",), (), (), (), 1),
    "read-and-write": Plan(("prefill", "decode"), (512,), (), (), 64),
    "streams": Plan(("streams",), (), (16,), (), 24),
    "long": Plan(("prefill",), (2048,), (), (), 1),
    "depth": Plan(("depth",), (), (), (4096,), 16),
}
"""What is measured together and kept in one JSON."""
ALONE = ("long",)
"""Measured without peers, beside the machine's limit only: they would take minutes a run."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure engines side by side, and render what was measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure what is not yet in RUNS")
    measuring.add_argument("models", type=Path, help="folder of SHAPE-MIX.gguf files")
    measuring.add_argument("runs", type=Path, help="folder for the JSONs")
    measuring.add_argument("--peer", action="append", default=[], help="another engine, NAME=PATH of its bin folder")
    measuring.add_argument("--shapes", default=",".join(SHAPES))
    measuring.add_argument("--mixes", default=",".join(MIXES))
    measuring.add_argument("--measures", default=",".join(PLANS))
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--threads", type=int, default=default_threads(inspect_machine()))
    rendering = commands.add_parser("render", help="write the page from the JSONs in RUNS")
    rendering.add_argument("runs", type=Path)
    rendering.add_argument("page", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "measure":
            measure(args)
        else:
            render(args.runs, args.page)
    except DeepwellError as error:
        sys.exit(str(error))


def measure(args: argparse.Namespace) -> None:
    """Measure every cell that has no JSON yet. A cell in which an engine failed is kept too, with its error."""
    args.runs.mkdir(parents=True, exist_ok=True)
    for shape in _chosen(args.shapes, SHAPES):
        for mix in _chosen(args.mixes, MIXES):
            model = args.models / f"{shape}-{mix}.gguf"
            if not model.is_file():
                print(f"{model} is missing, skipped", file=sys.stderr)
                continue
            for name in _chosen(args.measures, PLANS):
                kept = args.runs / f"{shape}-{mix}-{name}.json"
                if kept.exists():
                    print(f"{kept} is there", file=sys.stderr)
                else:
                    _keep(kept, _measured(model, PLANS[name], args))


def _chosen(text: str, allowed: Collection[str]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in allowed]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(allowed)}")
    return names


def _measured(model: Path, plan: Plan, args: argparse.Namespace) -> Comparison:
    engines = [Deepwell(model, plan, args.threads, "auto", None)]
    texts = () if plan in [PLANS[name] for name in ALONE] else args.peer
    peers = [find_peer(text, model, plan, args.threads) for text in texts]

    def say(text: str) -> None:
        print(f"{model.stem}: {text}", file=sys.stderr, flush=True)

    return compare([*engines, *peers], plan, model=model.stem, rounds=args.rounds, threads=args.threads, say=say)


def _keep(path: Path, result: Comparison) -> None:
    """Whole or not at all."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(result)))


def render(runs: Path, page: Path) -> None:
    """Write the page, and a picture per model file beside it."""
    parts = [_heading(runs)]
    for shape, words in SHAPES.items():
        for mix in MIXES:
            kept = [runs / f"{shape}-{mix}-{name}.json" for name in PLANS]
            found = [msgspec.json.decode(path.read_bytes(), type=Comparison) for path in kept if path.exists()]
            if not found:
                continue
            whole = _joined(found)
            picture = page.with_name(f"{page.stem}-{shape}-{mix}.svg")
            picture.write_text(draw(whole), encoding="utf-8")
            parts.append(f"## {shape}, {mix}\n{words}.\n\n![{shape}, {mix}]({picture.name})\n\n{_section(whole)}")
    parts += _dense_against_moe(runs)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _heading(runs: Path) -> str:
    files = sorted(runs.glob("*.json"))
    if not files:
        sys.exit(f"{runs} holds no measurements")
    first = msgspec.json.decode(files[0].read_bytes(), type=Comparison)
    return (
        "# Engines on a processor\n\n"
        f"Written by `python benchmarks/cpu.py render`; do not edit. {first.cpu}, {first.threads} threads, "
        f"{first.isa}; Deepwell {first.deepwell}.\n\n"
        "Weights are random, made by `benchmarks/random_gguf.py`: shapes and types are true, answers mean nothing, and "
        "experts are used more evenly than by a trained model. All engines read the same file and take turns in every "
        "round, each in a process of its own. Shown: the median of the rounds (lowest to highest); x: how many times "
        "better Deepwell is; %: the share of what the machine did around each turn - of its read bandwidth when "
        "decoding, of its 8-bit multiplications when reading a prompt - at Deepwell's count of bytes and operations."
    )


def _dense_against_moe(runs: Path) -> list[str]:
    """Decoding time of the dense 7B over the sparse 16B, per engine: fewer active bytes should be time won."""
    rates: dict[str, dict[str, float]] = {}
    for shape in ("v2lite", "ds7b"):
        file = runs / f"{shape}-q4_0-read-and-write.json"
        if not file.exists():
            return []
        rows = msgspec.json.decode(file.read_bytes(), type=Comparison).rows
        scores = next(row.scores for row in rows if row.measure == "decode")
        rates[shape] = {score.engine: score.median for score in scores if score.median}
    lines = ["## 7B dense against 16B of experts", "", "| | " + " | ".join(rates["ds7b"]) + " |"]
    lines.append("|---|" + "---|" * len(rates["ds7b"]))
    for shape, words in (("ds7b", "LLM 7B, dense, ms per token"), ("v2lite", "V2-Lite, 16B, ms per token")):
        lines.append(f"| {words} | " + " | ".join(f"{1000 / rates[shape][name]:.1f}" for name in rates["ds7b"]) + " |")
    ratios = [rates["v2lite"][name] / rates["ds7b"][name] for name in rates["ds7b"]]
    lines.append("| ratio (the bytes read would allow 2.6) | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    return ["\n".join(lines)]


def _joined(parts: list[Comparison]) -> Comparison:
    """The measurements of one file as one comparison; memory is the most that any of them saw."""
    rows = [row for part in parts for row in part.rows if row.measure != "memory"]
    memories = [row for part in parts for row in part.rows if row.measure == "memory"]
    widest = max(parts, key=lambda part: len(part.engines))
    most = [
        _most([row.scores[index] for row in memories if index < len(row.scores)])
        for index in range(len(widest.engines))
    ]
    own = most[0].median
    ratios = [s.median / own if own and s.median and index else None for index, s in enumerate(most)]
    scores = [msgspec.structs.replace(s, ratio=ratio) for s, ratio in zip(most, ratios, strict=True)]
    return msgspec.structs.replace(
        widest,
        rows=[*rows, msgspec.structs.replace(memories[0], scores=scores)],
        read_bytes_per_second=[value for part in parts for value in part.read_bytes_per_second],
        int8_ops_per_second=[value for part in parts for value in part.int8_ops_per_second],
    )


def _most(scores: list[Score]) -> Score:
    return max(scores, key=lambda score: score.median or 0.0)


def _section(whole: Comparison) -> str:
    notes = list(dict.fromkeys(score.note for row in whole.rows for score in row.scores if score.note))
    lines = ["| | " + " | ".join(whole.engines) + " |", "|---|" + "---|" * len(whole.engines)]
    for row in whole.rows:
        written = [_cell(row, score, notes) for score in row.scores]
        cells = " | ".join(written + ["not measured"] * (len(whole.engines) - len(written)))
        lines.append(f"| {row.title}, {amount_unit(row.unit)} | {cells} |")
    lines += ["", *(f"<sup>{number}</sup> {note[0].upper()}{note[1:]}.\n" for number, note in enumerate(notes, 1))]
    lines += [f"{line}\n" for line in _failures(whole)]
    lines.append(
        f"Read bandwidth around the turns: {_spread(whole.read_bytes_per_second)} GB/s; 8-bit multiplications: "
        f"{_spread(whole.int8_ops_per_second)} GOPS."
    )
    return "\n".join(lines)


def _cell(row: Row, score: Score, notes: list[str]) -> str:
    if score.median is None or score.low is None or score.high is None:
        return "failed" if score.error else "-"
    text = f"**{amount(score.median, row.unit)}**"
    if score.note:
        text += f"<sup>{notes.index(score.note) + 1}</sup>"
    if len(score.runs) > 1:
        text += f" ({amount(score.low, row.unit)} to {amount(score.high, row.unit)})"
    text += f", x {score.ratio:.2f}" if score.ratio is not None else ""
    return text + (f", {score.fraction:.0%}" if score.fraction is not None else "")


def _failures(whole: Comparison) -> Iterator[str]:
    for row in whole.rows:
        for score in row.scores:
            if score.error:
                yield f"{score.engine} failed at {row.title}: {score.error.splitlines()[-1]}"


def _spread(values: list[float]) -> str:
    if not values:
        return "not measured"
    return f"{median(values) / 1e9:,.1f} ({min(values) / 1e9:,.1f} to {max(values) / 1e9:,.1f})"


if __name__ == "__main__":
    main()
