"""What quantisation costs on a real model, in Deepwell and in llama.cpp: perplexity, KL, same first tokens.

    python benchmarks/accuracy.py BUILD MODEL.gguf                     # English prose that comes with Python
    python benchmarks/accuracy.py BUILD MODEL.gguf TEXT --windows 40

BUILD is the build folder of a llama.cpp with llama-quantize and llama-perplexity. A float32 copy of MODEL's weights is
the reference, and what both engines' files are made of. Two Markdown tables are printed: the same files in both
engines, whose difference is the engines' arithmetic; and the files of llama-quantize and of `deepwell convert` of one
type, both in float32 arithmetic, whose difference is the quantisers'. Windows are llama.cpp's (512 tokens, second
halves). Engines run one after the other, with as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

TYPES = ("q8_0", "q6_k", "q5_0", "q4_k", "q4_0")
"""Of `deepwell convert`; llama-quantize's mixes without a letter behind K are the pure ones closest to them."""
THEIRS = {"q4_k": "Q4_K_S"}
DTYPES = ("bfloat16", "int8", "int4")


class Cost(NamedTuple):
    perplexity: float
    kl: float
    same: float


class Bench:
    def __init__(self, build: Path, text: Path, windows: int, folder: Path, reference: Path) -> None:
        self.build, self.text, self.windows, self.folder, self.reference = build, text, windows, folder, reference
        self.threads = str(len(os.sched_getaffinity(0)))
        self.base = folder / "reference.kld"

    def tool(self, name: str, *args: str | Path) -> str:
        done = subprocess.run([self.build / "bin" / name, *map(str, args)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def deepwell(self, *args: str | Path) -> str:
        command = [sys.executable, "-m", "deepwell", *map(str, args)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def quantised(self, kind: str) -> Path:
        file = self.folder / f"llama-{kind}.gguf"
        self.tool("llama-quantize", "--allow-requantize", self.reference, file, THEIRS.get(kind, kind.upper()), "2")
        return file

    def converted(self, kind: str) -> Path:
        file = self.folder / f"deepwell-{kind}.gguf"
        self.deepwell("convert", self.reference, file, "--dtype", kind)
        return file

    def ours(self, model: Path, *options: str) -> Cost:
        printed = self.deepwell(
            *("perplexity", model, self.text, "--windows", str(self.windows), "--reference", self.reference),
            *("--threads", self.threads, "--pack-cache", "0", "--json", *options),
        )
        result = json.loads(printed)["result"]
        return Cost(result["perplexity"], result["likeness"]["kl"], result["likeness"]["same_first"])

    def theirs(self, model: Path) -> Cost:
        run = ("-f", self.text, "-c", "512", "-b", "512", "--chunks", str(self.windows), "-t", self.threads)
        if not self.base.exists():
            self.tool("llama-perplexity", "-m", self.reference, *run, "--kl-divergence-base", self.base)
        said = self.tool("llama-perplexity", "-m", model, *run, "--kl-divergence-base", self.base, "--kl-divergence")
        patterns = (r"Mean PPL\(Q\)\s+:", r"Mean\s+KLD:", r"Same top p:")
        found = [re.search(pattern + r"\s+(-?[\d.]+)", said) for pattern in patterns]
        perplexity, kl, same = (float(match[1]) for match in found if match)
        return Cost(perplexity, kl, same / 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--windows", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = args.text or folder / "prose.txt"
        if args.text is None:
            text.write_text("\n\n".join(topics[key] for key in sorted(topics)), encoding="utf-8")
        reference = folder / "reference.gguf"
        bench = Bench(args.build, text, args.windows, folder, reference)
        bench.tool("llama-quantize", "--allow-requantize", args.model, reference, "F32", "2")
        exact = bench.ours(reference, "--dtype", "float32").perplexity
        print(f"Perplexity in float32: {exact:.4f}\n")
        engines(bench, args.model, exact)
        quantisers(bench, exact)


def engines(bench: Bench, model: Path, exact: float) -> None:
    print("| file | perplexity | | KL | | same first token | |")
    print(f"|---|{'---|' * 6}")
    print(f"| |{' Deepwell | llama.cpp |' * 3}")
    files = {f"{model.stem}, as it is": model} | {kind: bench.quantised(kind) for kind in TYPES}
    for title, file in files.items():
        costs = bench.ours(file), bench.theirs(file)
        cells = [f"{100 * (c.perplexity / exact - 1):+.2f} %" for c in costs]
        cells += [f"{c.kl:.5f}" for c in costs] + [f"{100 * c.same:.1f} %" for c in costs]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    for dtype in DTYPES:
        c = bench.ours(bench.reference, "--dtype", dtype)
        row = f"{100 * (c.perplexity / exact - 1):+.2f} % | | {c.kl:.5f} | | {100 * c.same:.1f} % |"
        print(f"| float32 with --dtype {dtype} | {row} |", flush=True)


def quantisers(bench: Bench, exact: float) -> None:
    print("\n| type, in float32 arithmetic | perplexity | | KL | | size, MB | |")
    print(f"|---|{'---|' * 6}")
    print(f"| |{' deepwell convert | llama-quantize |' * 3}")
    for kind in TYPES:
        files = bench.converted(kind), bench.folder / f"llama-{kind}.gguf"
        costs = [bench.ours(file, "--dtype", "float32") for file in files]
        cells = [f"{100 * (c.perplexity / exact - 1):+.2f} %" for c in costs]
        cells += [f"{c.kl:.5f}" for c in costs] + [f"{file.stat().st_size / 1e6:.1f}" for file in files]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
