"""What quantisation costs on a real model, in Deepwell and in llama.cpp: perplexity, KL, same first tokens.

    python benchmarks/accuracy.py BUILD MODEL.gguf                                # English prose that comes with Python
    python benchmarks/accuracy.py BUILD MODEL.gguf --text code --windows 20       # sources of Python's library
    python benchmarks/accuracy.py BUILD MODEL.gguf --text FILE --work FOLDER      # goes on where it was stopped

BUILD is the build folder of a llama.cpp with llama-quantize, llama-imatrix and llama-perplexity. A float32 copy of
MODEL's weights is the reference, and what both engines' files are made of. The first table has the files of
llama-quantize in both engines, whose difference is the engines' arithmetic. The second has files of llama-quantize and
of `deepwell convert`, all run by Deepwell, whose difference is the quantisers'; then both with importances, which each
engine measured itself over one text (prose and code, other parts than those that are scored). Windows are llama.cpp's
(512 tokens, second halves). Nothing here depends on speed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.bench.perplexity import perplexity, windows_of
from deepwell.loading.load import load_model
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch

TYPES = ("q8_0", "q6_k", "q5_0", "q4_k", "q4_0")
"""Of `deepwell convert`; llama-quantize's mixes without a letter behind K are the pure ones closest to them."""
SEARCHED = TYPES[1:]
THEIRS = {"q4_k": "Q4_K_S"}
DTYPES = ("bfloat16", "int8", "int4")
CALIBRATED_TOKENS = 16384
WINDOW = 512


class Cost(msgspec.Struct, frozen=True):
    perplexity: float
    kl: float
    same: float


class Recorded:
    """The reference's logits, computed once and kept in a file: reading them is cheaper than the model."""

    def __init__(self, file: Path, model: Path, windows: int, threads: int) -> None:
        self.model, self.threads = load_model(model, dtype="float32", threads=threads, blocks=WINDOW // 64), threads
        self.vocab_size, self.context, self._at = self.model.runner.vocab_size, self.model.runner.context, 0
        shape = (windows, WINDOW // 2 - 1, self.vocab_size)
        self._count = file.with_suffix(".count")
        self._known = int(self._count.read_text()) if self._count.exists() else 0
        self._logits: NDArray[np.float32] = np.memmap(file, np.float32, "r+" if file.exists() else "w+", shape=shape)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """The logits of the next window, beginning anew after the last."""
        at, self._at = self._at, (self._at + 1) % len(self._logits)
        if at == self._known:
            self._logits[at] = self.model.runner.run(batch)
            self._known += 1
            self._count.write_text(str(self._known))
        return self._logits[at]


class Bench:
    """Files and figures in `work`, where `results.json` says what was measured already."""

    def __init__(self, build: Path, model: Path, text: Path, windows: int, work: Path, threads: int) -> None:
        self.build, self.model, self.text, self.windows, self.work = build, model, text, windows, work
        self.threads = threads
        self.reference = self._made(
            "reference.gguf",
            lambda out: self.tool("llama-quantize", "--allow-requantize", model, out, "F32", str(threads)),
        )
        recorded = Recorded(work / f"{text.stem}-{windows}.logits", self.reference, windows, self.threads)
        self.recorded = cast(NativeRunner, recorded)
        self.tokenizer = recorded.model.tokenizer
        self.cut = windows_of(self.tokenizer, text.read_text("utf-8"), WINDOW, windows)
        self._log = work / f"{text.stem}-{windows}.json"
        self.known: dict[str, Cost] = {}
        if self._log.exists():
            self.known = msgspec.json.decode(self._log.read_bytes(), type=dict[str, Cost])

    def tool(self, name: str, *args: str | Path) -> str:
        done = subprocess.run([self.build / "bin" / name, *map(str, args)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def deepwell(self, *args: str | Path) -> None:
        subprocess.run([sys.executable, "-m", "deepwell", *map(str, args)], check=True, capture_output=True)

    def quantised(self, kind: str, *, weighed: bool = False) -> Path:
        """llama-quantize's file."""
        options = ["--imatrix", self.imatrix()] if weighed else []
        wanted = THEIRS.get(kind, kind.upper())
        return self._made(
            f"llama-{kind}{'-weighed' * weighed}.gguf",
            lambda out: self.tool(
                "llama-quantize", "--allow-requantize", *options, self.reference, out, wanted, str(self.threads)
            ),
        )

    def converted(self, kind: str, *, weighed: bool = False) -> Path:
        """Deepwell's file."""
        options = ["--importance", self.importance()] if weighed else []
        return self._made(
            f"deepwell-{kind}{'-weighed' * weighed}.gguf",
            lambda out: self.deepwell("convert", self.reference, out, "--dtype", kind, *options),
        )

    def importance(self) -> Path:
        run = ("--text", self.calibration(), "--tokens", str(CALIBRATED_TOKENS))
        return self._made(
            "importance.safetensors", lambda out: self.deepwell("calibrate", self.reference, *run, "--out", out)
        )

    def imatrix(self) -> Path:
        run = ("-f", self.calibration(), "-c", str(WINDOW), "--chunks", str(CALIBRATED_TOKENS // WINDOW))
        run = (*run, "-t", str(self.threads), "-m", self.reference)
        return self._made("imatrix.gguf", lambda out: self.tool("llama-imatrix", *run, "-o", out))

    def calibration(self) -> Path:
        """Prose and code in turns, from the ends of texts whose beginnings are scored."""
        prose, code = english()[-40_000:], python()[-40_000:]
        step = 4_000
        parts = [text[at : at + step] for at in range(0, 40_000, step) for text in (prose, code)]
        return self._made("calibration.txt", lambda out: out.write_text("\n\n".join(parts), "utf-8"))

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file in `work`, made whole or not at all: several of these may run at once."""
        file = self.work / name
        if not file.exists():
            part = self.work / f"{os.getpid()}-{name}"
            make(part)
            part.rename(file)
        return file

    def ours(self, file: Path, dtype: str = "auto", importance: Path | None = None) -> Cost:
        return self._measured(
            f"deepwell {file.name} {dtype}{' weighed' * bool(importance)}", lambda: self._ours(file, dtype, importance)
        )

    def theirs(self, file: Path) -> Cost:
        return self._measured(f"llama.cpp {file.name}", lambda: self._theirs(file))

    def exact(self) -> float:
        """The reference's perplexity; its logits are recorded on the way."""
        return self.ours(self.reference, "float32").perplexity

    def _measured(self, what: str, measure: Any) -> Cost:
        if what not in self.known:
            self.known[what] = measure()
            self._log.write_bytes(msgspec.json.encode(self.known))
        return self.known[what]

    def _ours(self, file: Path, dtype: Any, importance: Path | None) -> Cost:
        options: dict[str, Any] = {"threads": self.threads, "blocks": WINDOW // 64, "importance": importance}
        loaded = load_model(file, dtype=dtype, **options)
        likeness = (found := perplexity(loaded.runner, self.cut, self.recorded)).likeness
        assert likeness is not None
        return Cost(found.perplexity, likeness.kl, likeness.same_first)

    def _theirs(self, file: Path) -> Cost:
        run = ("-f", self.text, "-c", str(WINDOW), "-b", str(WINDOW), "--chunks", str(self.windows))
        run = (*run, "-t", str(self.threads))
        base = self._made(
            f"{self.text.stem}-{self.windows}.kld",
            lambda out: self.tool("llama-perplexity", "-m", self.reference, *run, "--kl-divergence-base", out),
        )
        said = self.tool("llama-perplexity", "-m", file, *run, "--kl-divergence-base", base, "--kl-divergence")
        patterns = (r"Mean PPL\(Q\)\s+:", r"Mean\s+KLD:", r"Same top p:")
        found = [re.search(pattern + r"\s+(-?[\d.]+)", said) for pattern in patterns]
        perplexity, kl, same = (float(match[1]) for match in found if match)
        return Cost(perplexity, kl, same / 100)


def english() -> str:
    """The texts of Python's help."""
    return "\n\n".join(topics[key] for key in sorted(topics))


def python() -> str:
    """Sources of Python's library, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join(file.read_text("utf-8") for file in sorted(library.glob("*.py"))[:60])[:400_000]


TEXTS = {"english": english, "code": python}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", default="english", help="english, code, or a file")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="a folder to keep files and figures in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        text = Path(args.text)
        if args.text in TEXTS:
            text = work / f"{args.text}.txt"
            text.write_text(TEXTS[args.text](), "utf-8")
        bench = Bench(args.build, args.model, text, args.windows, work, args.threads)
        exact = bench.exact()
        scored = args.windows * (WINDOW // 2 - 1)
        print(f"{text.name}: {args.windows} windows, {scored} tokens scored; exact float32 {exact:.4f}\n", flush=True)
        engines(bench, exact)
        quantisers(bench, exact)


def row(title: str, costs: Sequence[Cost | None], exact: float) -> None:
    cells = [f"{100 * (c.perplexity / exact - 1):+.2f} %" if c else "" for c in costs]
    cells += [f"{c.kl:.5f}" if c else "" for c in costs] + [f"{100 * c.same:.1f} %" if c else "" for c in costs]
    print(f"| {title} | {' | '.join(cells)} |", flush=True)


def head(what: str, columns: Sequence[str]) -> None:
    print(
        f"| {what} |" + "".join(f" {name} |{' |' * (len(columns) - 1)}" for name in ("perplexity", "KL", "same first"))
    )
    print(f"|---|{'---|' * 3 * len(columns)}")
    print(f"| |{(' ' + ' | '.join(columns) + ' |') * 3}")


def engines(bench: Bench, exact: float) -> None:
    head("file", ("Deepwell", "llama.cpp"))
    files = {"as it is": bench.model} | {kind: bench.quantised(kind) for kind in TYPES}
    for title, file in files.items():
        row(title, (bench.ours(file), bench.theirs(file)), exact)
    for dtype in DTYPES:
        row(f"float32 with --dtype {dtype}", (bench.ours(bench.reference, dtype), None), exact)
    weighed = bench.ours(bench.reference, "int4", bench.importance())
    row("float32 with --dtype int4, --importance", (weighed, None), exact)


def quantisers(bench: Bench, exact: float) -> None:
    print()
    head("type", ("deepwell convert", "llama-quantize"))
    for kind in SEARCHED:  # files of q8_0 are the same
        row(kind, (bench.ours(bench.converted(kind)), bench.ours(bench.quantised(kind))), exact)
    for kind in SEARCHED:
        files = bench.converted(kind, weighed=True), bench.quantised(kind, weighed=True)
        row(f"{kind}, by importance", [bench.ours(file) for file in files], exact)


if __name__ == "__main__":
    main()
