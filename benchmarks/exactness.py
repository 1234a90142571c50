"""How exact: logits against transformers, greedy continuations, and bits that change with the way of serving.

    python benchmarks/exactness.py            # needs the `dev` extra; about two minutes

Seeded random checkpoints of the true architectures at small width, made by transformers. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

ROOT = Path(__file__).parent.parent
for folder in ("tests", "tests/model", "tests/exactness"):
    sys.path.insert(0, str(ROOT / folder))

import cases  # noqa: E402
import seeded  # noqa: E402

from deepwell.engine.core import EngineCore  # noqa: E402
from deepwell.engine.types import Request, SamplingParams  # noqa: E402
from deepwell.loading.load import NativeRunner  # noqa: E402
from deepwell.ops.base import Batch  # noqa: E402
from deepwell.weights.checkpoint import Checkpoint  # noqa: E402
from fakes import tiny_tokenizer  # noqa: E402

PROMPT, CONTINUATION = 150, 200
LENGTHS = (1, 5, 63, 64, 65, 130, 200)


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| model | max abs logit difference | largest logit | greedy tokens equal | differing bits |")
    print("|---|---|---|---|---|")
    for name in seeded.CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            reference = seeded.save(name, Path(folder))
            checkpoint = Checkpoint(Path(folder))
            difference, largest = logit_difference(reference, checkpoint)
            equal = greedy_equal(reference, checkpoint)
            bits, answers = serving_bits(checkpoint)
            greedy, serving = f"{equal} of {CONTINUATION}", f"{bits} in {answers} answers"
            print(f"| {name} | {difference:.1e} | {largest:.1f} | {greedy} | {serving} |")


def logit_difference(reference: torch.nn.Module, checkpoint: Checkpoint) -> tuple[float, float]:
    tokens = np.random.default_rng(0).integers(0, 320, PROMPT).astype(np.int32)
    rows = np.arange(PROMPT, dtype=np.int32)
    batch = Batch(tokens, rows, np.zeros_like(rows), np.arange(3, dtype=np.int32)[None], rows)
    ours = NativeRunner(checkpoint, "float32", blocks=8).run(batch)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def greedy_equal(reference: torch.nn.Module, checkpoint: Checkpoint) -> int:
    """Tokens before the first difference."""
    prompt = np.random.default_rng(3).integers(0, 320, 40)
    core = EngineCore(NativeRunner(checkpoint, "float32", blocks=8), tiny_tokenizer())
    sampling = SamplingParams(max_tokens=CONTINUATION, temperature=0.0, ignore_eos=True)
    request = Request(id="greedy", prompt=tuple(int(t) for t in prompt), sampling=sampling)
    ours = [token for delta in core.generate(request) for token in delta.token_ids]
    ids = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        out = reference.generate(
            ids, max_new_tokens=CONTINUATION, min_new_tokens=CONTINUATION, do_sample=False, eos_token_id=None
        )
    theirs = out[0, len(prompt) :].tolist()
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), CONTINUATION)


def serving_bits(checkpoint: Checkpoint) -> tuple[int, int]:
    """(bits that differ from each request served alone, answers compared)."""
    tokenizer, targets = tiny_tokenizer(), cases.requests(320, LENGTHS, 70)

    def build() -> NativeRunner:
        return NativeRunner(checkpoint, "float32", blocks=256)

    wanted = cases.alone(build, tokenizer, targets)
    ways = [cases.alone(build, tokenizer, targets, budget) for budget in (1, 7, 64)]
    ways.append(cases.among(build, tokenizer, targets, 64))
    ways.append(cases.after_prefix_hit(build, tokenizer, targets))
    ways.append(cases.after_preemption(build, tokenizer, targets))
    return sum(cases.differing_bits(way, wanted) for way in ways), len(ways) * len(targets)


if __name__ == "__main__":
    main()
