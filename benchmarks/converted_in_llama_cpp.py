"""Do the GGUF files that `deepwell convert` writes run in llama.cpp, and do they say there what they say here?

    python benchmarks/converted_in_llama_cpp.py LLAMA_CPP BUILD
    DEEPWELL_LLAMA_CPP=LLAMA_CPP DEEPWELL_LLAMA_CPP_BUILD=BUILD python benchmarks/converted_in_llama_cpp.py

LLAMA_CPP is a checkout of llama.cpp, BUILD its build folder with shared libraries. Seeded random checkpoints of every
architecture, with the embedded model's tokenizer, and the embedded model itself are converted to each type. llama.cpp
runs the file; Deepwell runs, in float32, the checkpoint of a file of floats, and the values of a quantised file. Needs
the `dev` extra.

Prints a Markdown table: differences of logits are in their standard deviations, "same first" is how often both prefer
one token, "greedy" how many of the 32 tokens that Deepwell writes greedily llama.cpp would write too, from the same
file; "text" says whether both make the same tokens of a text. llama.cpp keeps its KV cache in float16, and rounds
inputs to bfloat16 or 8 bits beside such weights; where a router is undecided, that sends tokens to other experts.
Exits with 1 if a float32 file does not agree. V2 is excused: llama.cpp scores its groups of experts as V3's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from against_llama_cpp import LlamaCpp, gguf_files

from deepwell.loading.convert import prepare
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights import embedded_path
from deepwell.weights.source import Source, open_source

seeded = gguf_files.seeded
TOKENS, WRITTEN = 192, 32
KINDS = ("float32", "bfloat16", "q8_0", "q6_k", "q4_k", "q4_0")
TEXT = "Hello World's 深度求索 12345+67\n\n  def f(a_b):\n\treturn [a, *b] # naïve — Größe, ελληνικά \U0001f433  end\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run what convert writes in llama.cpp.")
    here = os.environ.get
    parser.add_argument("llama_cpp", type=Path, nargs="?", default=here("DEEPWELL_LLAMA_CPP"))
    parser.add_argument("build", type=Path, nargs="?", default=here("DEEPWELL_LLAMA_CPP_BUILD"))
    args = parser.parse_args()
    if args.llama_cpp is None or args.build is None:
        parser.error("name a checkout of llama.cpp and its build folder")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        theirs = LlamaCpp(Path(args.llama_cpp), Path(args.build), scratch, threads=1)
        print("| model | type | max | mean | same first | greedy | text |\n|---|---|---|---|---|---|---|")
        return max([compare(folder, kind, theirs, scratch) for folder in folders(scratch) for kind in kinds(folder)])


def folders(scratch: Path) -> Iterator[Path]:
    """A checkpoint of each architecture, and the embedded model."""
    seeded._BASE["vocab_size"] = 4096
    for name in (*seeded.CONFIGS, *seeded.WIDE, "deepseek-moe"):
        folder = scratch / name
        if name == "deepseek-moe":
            seeded.make_deepseek_moe(folder)
        else:
            seeded.save(name, folder, dtype=torch.bfloat16)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(embedded_path() / file, folder)
        yield folder
        shutil.rmtree(folder)
    yield embedded_path()


def kinds(folder: Path) -> Iterator[str]:
    """Rows of fewer than 256 values take the place of the types of 256."""
    wide = folder.name.endswith("wide") or folder == embedded_path()
    return (kind for kind in KINDS if wide or not kind.endswith("_k"))


def compare(folder: Path, kind: str, llama_cpp: LlamaCpp, scratch: Path) -> int:
    """Print a row; 1 if a file of floats does not say what the folder says."""
    file = scratch / "converted.gguf"
    file.unlink(missing_ok=True)
    prepare(folder, "gguf", kind).write(file, lambda done, total: None)
    source, converted = open_source(folder), open_source(file)
    tokens = np.random.default_rng(0).integers(3, source.config.vocab, TOKENS).astype(np.int32)
    try:
        got, wanted = llama_cpp.logits(file, tokens), logits(source if "float" in kind else converted, tokens)
        said = greedy(converted, tokens[:16])
        theirs = llama_cpp.logits(file, said)[15:-1].argmax(1)
        text = llama_cpp.tokens(file, TEXT).tolist() == source.tokenizer().encode(TEXT)
    except Exception as error:
        print(f"| {folder.name} | {kind} | {error} |||||", flush=True)
        return 1
    apart = np.abs(got - wanted) / wanted.std()
    same, kept = (got.argmax(1) == wanted.argmax(1)).mean(), int((theirs == said[16:]).sum())
    numbers = (
        f"{apart.max():.1e} | {apart.mean():.1e} | {same:.1%} | {kept}/{WRITTEN} | {'same' if text else 'differs'}"
    )
    print(f"| {folder.name} | {kind} | {numbers} |", flush=True)
    return int(not text or (kind == "float32" and folder.name != "v2" and (apart.mean() > 0.01 or same < 0.95)))


def logits(source: Source, tokens_T: np.ndarray) -> np.ndarray:
    rows = np.arange(len(tokens_T), dtype=np.int32)
    pages = np.arange(-(-len(rows) // 64), dtype=np.int32)[None]
    runner = NativeRunner(source, "float32", blocks=pages.size)
    return runner.run(Batch(tokens_T, rows, np.zeros_like(rows), pages, rows)).astype(np.float64)


def greedy(source: Source, tokens_T: np.ndarray) -> np.ndarray:
    """The tokens with those that Deepwell prefers behind them, each by the file as it is."""
    runner = NativeRunner(source, "auto", cache_dtype="float32", blocks=1)
    said = tokens_T.tolist()
    at = 0
    while len(said) < len(tokens_T) + WRITTEN:
        new = np.array(said[at:], np.int32)
        rows = np.arange(len(new), dtype=np.int32)
        batch = Batch(new, rows + at, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows[-1:])
        at = len(said)
        said.append(int(runner.run(batch)[0].argmax()))
    return np.array(said, np.int32)


if __name__ == "__main__":
    sys.exit(main())
