"""The model card: what the model read, how it was trained, what was measured, what it can and cannot do."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from textwrap import fill

import msgspec

from deepwell.json_lines import read_lines
from deepwell.model.accounting import account
from deepwell.model.config import ModelConfig
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import ManifestEntry
from deepwell.train.evaluate import Evaluation
from deepwell.train.picture import read_log
from deepwell.train.stages import Stage, read_stages

_METADATA = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [deepseek_v3, mla, moe, mtp, python, fill-in-the-middle]
---
"""
_LIMITS = """\
## What it can and cannot do
It writes text that looks like Python's standard library: definitions, imports, docstrings, calls on names it has just
seen. It fills short gaps, and answers questions of the form "What does textwrap.dedent do?" in the style of a
docstring. The answers are often wrong. It has no world knowledge, holds no conversation, follows no instructions,
does not reason, and knows little besides English and Python. It can repeat sentences of its training files word for
word. It is a small, complete example of its architecture, for tests, for learning and for a first light; use it for
nothing that matters.
"""
_LICENCE = """\
## Data and licence
All training text is part of CPython {version} (Python Software Foundation License 2, in `PYTHON-LICENSE.txt`;
copyright © 2001 onwards Python Software Foundation, all rights reserved), read from an installed interpreter.
`MANIFEST.jsonl` lists every file with its hash, size and licence, and why it was kept, held out or dropped. Changes to
the text: files were selected, cut into pieces, reordered for fill-in-the-middle, and docstrings were put into a
question-and-answer form. The weights are published under the MIT licence of this project; where they reproduce
passages of the library, Python's licence holds.
"""


def write_card(config: TrainConfig, shape: ModelConfig, folder: Path, twin: Evaluation | None) -> None:
    """Write README.md into the model folder, from the files already in it and the stages of the run."""
    evaluation = msgspec.json.decode((folder / "evaluation.json").read_bytes(), type=Evaluation)
    stages = read_stages(config.out)
    version = next(stage.metrics.get("python", "3") for stage in reversed(stages) if stage.stage == "corpus")
    sections = [
        _head(config, shape),
        _measured(evaluation, twin, config),
        _samples(evaluation),
        _LIMITS,
        _training(config, stages, folder),
        _corpus(folder),
        _LICENCE.format(version=version),
    ]
    (folder / "README.md").write_text("\n".join(sections), "utf-8")


def _head(config: TrainConfig, shape: ModelConfig) -> str:
    cost = account(shape)
    routed = "dense feed-forward layers"
    if shape.moe is not None:
        r = shape.moe.routing
        routed = (
            f"{shape.moe.first_dense} dense layer, then {r.experts} routed experts (top {r.top_k}, sigmoid scores, "
            f"bias balancing) and {shape.moe.shared} shared expert of width {shape.moe.inter}"
        )
    text = (
        "A very small language model of DeepSeek-V3's architecture, trained from nothing on one processor core with "
        f"`deepwell train`. {cost.total_params / 1e6:.2f} M parameters, {cost.active_params / 1e6:.2f} M of them "
        f"active per token, and {cost.mtp_params / 1e6:.2f} M in the multi-token prediction module. {shape.layers} "
        f"layers of width {shape.hidden}, latent attention (MLA) with {shape.heads} heads, {routed}. "
        f"Vocabulary {shape.vocab:,}, context {shape.context:,} tokens."
    )
    return f"{_METADATA}# Deepwell {config.size}\n{fill(text, 120)}\n"


def _measured(evaluation: Evaluation, twin: Evaluation | None, config: TrainConfig) -> str:
    rows = [(f"**{config.size}, as shipped (bfloat16)**", evaluation.held_out_bpb)]
    rows.append((f"{config.size}, as trained (float32)", evaluation.held_out_bpb_float32))
    if twin is not None:
        rows.append((f"{_name(config.compare)}, same data, steps and active FLOPs", twin.held_out_bpb))
    rows += [(name, value) for name, value in evaluation.compressors.items()]
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in rows)
    files = ", ".join(f"{path} {bits:.3f}" for path, bits in sorted(evaluation.held_out_files.items()))
    text = (
        '"xz primed" has read the whole training text first: a model above it has learnt less than a compressor with a '
        f"good memory. Per file: {files}. On a sample of its training files the model needs "
        f"{evaluation.training_sample_bpb:.3f}. Method: windows of {config.context} tokens moving by half, each opened "
        "by BOS; every byte of text counts, the end marker included (`deepwell/train/evaluate.py`)."
    )
    return f"""## Bits per byte on held-out text
{evaluation.held_out_bytes:,} bytes of library modules that were never trained on, chosen by a hash of their names.

| | bits per byte |
|---|---|
{table}

{fill(text, 120)}
"""


def _samples(evaluation: Evaluation) -> str:
    shown = []
    for sample in evaluation.samples:
        hole = "▁" * 4 if sample["suffix"] else ""
        shown.append(f"{sample['kind']}:\n{sample['prompt']}{hole}{sample['suffix']}\n→ {sample['answer']!r}\n")
    return "## Samples\nGreedy, first 48 tokens, not selected.\n```text\n" + "\n".join(shown) + "```\n"


def _training(config: TrainConfig, stages: list[Stage], folder: Path) -> str:
    last = read_log(folder / "metrics.jsonl")[-1]
    pretrain = [stage for stage in stages if stage.stage == "pretrain"][-1]
    memory = max(stage.peak_rss for stage in stages if stage.stage == "pretrain")
    options = "\n".join(f"- {name}: {value}" for name, value in config.identity().items())
    speed = pretrain.flops / pretrain.cpu_seconds / 1e9
    text = (
        f"{pretrain.tokens:,} tokens in {pretrain.metrics['step']:,} steps: {pretrain.cpu_seconds / 60:.1f} minutes of "
        f"CPU time, threads: {config.threads}, {pretrain.flops:.2e} FLOPs, {speed:.0f} GFLOP/s, largest memory "
        f"{memory / 2**20:,.0f} MiB. Last loss {last.loss:.3f} nats per token; busiest expert "
        f"{last.max_violation + 1:.2f} times its share, {last.dead_experts} dead experts. The log is `metrics.jsonl`."
    )
    named = ", ".join(f"{name} {digest[:16]}" for name, digest in (pretrain.inputs | pretrain.outputs).items())
    return f"""## Training
![loss](loss.svg)

{fill(text, 120)}

{options}

SHA-256, first digits: {named}.
"""


def _corpus(folder: Path) -> str:
    count: Counter[str] = Counter()
    size: dict[str, int] = defaultdict(int)
    for entry in read_lines(folder / "MANIFEST.jsonl", ManifestEntry):
        count[entry.use] += 1
        size[entry.use] += entry.bytes
    table = "\n".join(f"| {use} | {count[use]:,} | {size[use]:,} |" for use in ("kept", "held-out", "dropped"))
    return f"""## Corpus
| | files and topics | bytes |
|---|---|---|
{table}
"""


def _name(folder: Path | None) -> str:
    return folder.name if folder else ""
