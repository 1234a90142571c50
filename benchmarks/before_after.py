"""Two builds of Deepwell beside each other, in turns, on the same models: what a change did to speed.

    python benchmarks/before_after.py OLD/.venv/bin/deepwell NEW/.venv/bin/deepwell [MODEL ...] --rounds 5

OLD and NEW are of checkouts with an environment each (`make .venv/.core`). Without MODEL, the embedded one. Each round
runs `deepwell bench --json` once with each build, the order changing every round. Prints a Markdown table of medians,
and of the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

Runs = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("models", nargs="*", default=[""])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--measure", default="load,prefill,decode,streams", help="as deepwell bench has it")
    args = parser.parse_args()
    print("| model | measure | before | after | after / before |")
    print("|---|---|---|---|---|")
    for model in args.models:
        runs: Runs = {args.old: {}, args.new: {}}
        for number in range(args.rounds):
            for build in (args.old, args.new) if number % 2 == 0 else (args.new, args.old):
                note(runs[build], report(build, model, args.threads, args.streams, args.measure))
                print(f"{model or 'embedded'}: round {number + 1} of {args.rounds}, {build}", file=sys.stderr)
        for measure, before in runs[args.old].items():
            after = runs[args.new][measure]
            ratio = median(new / old for new, old in zip(after, before, strict=True))
            name = model.rpartition("/")[2] or "embedded"
            print(f"| {name} | {measure} | {median(before):,.4g} | {median(after):,.4g} | {ratio:.3f} |", flush=True)


def report(build: str, model: str, threads: int, streams: str, measure: str) -> dict[str, float]:
    """One run's figures by name."""
    command = [build, "bench", *([model] if model else []), "--json", "--no-limits", "--repeats", "3"]
    command += ["--threads", str(threads), "--streams", streams, "--measure", measure]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    found = json.loads(done.stdout)
    figures = {f"{r['measure']} {r['size']} ({r['unit']})": r["median"] for r in found["results"]}
    figures["resident memory (MB)"] = found["resident_bytes"] / 1e6
    return figures


def note(runs: dict[str, list[float]], figures: dict[str, float]) -> None:
    for name, value in figures.items():
        runs.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()
