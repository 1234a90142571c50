"""The end of a run: measure what was trained, and write it as a model folder that others can load.

The folder holds the Hugging Face checkpoint in bfloat16, the tokenizer, a card, the log, the loss picture, the
measurements, and the list of all training files with Python's licence.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from deepwell.files import replacing_folder, write_whole
from deepwell.model.config import ModelConfig
from deepwell.model.presets import preset
from deepwell.train.card import write_card
from deepwell.train.checkpoint import NAME as CHECKPOINT
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus, Document
from deepwell.train.evaluate import Evaluation, bits_per_byte, compressors, continuation, document_bits
from deepwell.train.fim import psm
from deepwell.train.loop import LOG
from deepwell.train.picture import draw_run
from deepwell.train.stages import check_recorded, sha256_of, stage
from deepwell.train.tokenizer import SpecialIds, prompt_ids
from deepwell.train.trainee import Trainee
from deepwell.weights.export import export

EVALUATION = "evaluation.json"
MANIFEST = "MANIFEST.jsonl"
_SAMPLE_DOCUMENTS = 24
_SAMPLE_CHARACTERS = 12_000
_PROMPTS = (
    ("text", "# shapes.py\nimport math\n\nclass Circle:\n    def __init__(self, radius):\n        self.radius =", ""),
    ("text", "def read_lines(path):\n    with open(path) as f:\n", ""),
    ("fim", "def area(width, height):\n    return ", "\n\n\nclass Box:\n"),
    ("fim", "try:\n    import json\nexcept ", ":\n    json = None\n"),
    ("chat", "What does textwrap.dedent do?", ""),
    ("chat", "What is queue.Queue?", ""),
)


def finish(config: TrainConfig, corpus: Corpus, tokenizer: Tokenizer) -> Path:
    """Measure the checkpoint of `config.out` and write `config.out/model`; gives that folder."""
    torch.set_num_threads(config.threads)
    shape = preset(config.size)
    exact, shipped = load_trainee(config, shape), load_trainee(config, shape, rounded=True)
    checkpoint = {"checkpoint": sha256_of(config.out / CHECKPOINT)}
    with stage(config.out, "evaluate", inputs={**checkpoint, "corpus": corpus.sha256}) as record:
        evaluation = evaluate(config, exact, shipped, corpus, tokenizer)
        write_whole(config.out / EVALUATION, msgspec.json.format(msgspec.json.encode(evaluation)) + b"\n")
        record.outputs = {EVALUATION: sha256_of(config.out / EVALUATION)}
        record.metrics = {"held_out_bpb": evaluation.held_out_bpb}
    with stage(config.out, "export", inputs=checkpoint) as record:
        folder = write_model(config, shape, exact, tokenizer)
        record.outputs = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
        record.metrics = {"bytes": sum(file.stat().st_size for file in folder.iterdir())}
    return folder


def load_trainee(config: TrainConfig, shape: ModelConfig, *, rounded: bool = False) -> Trainee:
    """The trained model; `rounded` with its matrices as the bfloat16 values that are written."""
    trainee = Trainee(shape, config.seed)
    with safe_open(config.out / CHECKPOINT, "pt") as file, torch.no_grad():
        for key, weight in trainee.weights.items():
            value = file.get_tensor(f"weight.{key}")
            weight.copy_(value.bfloat16() if rounded and trainee.specs[key].kind != "vector" else value)
    return trainee


def evaluate(config: TrainConfig, exact: Trainee, shipped: Trainee, corpus: Corpus, tokenizer: Tokenizer) -> Evaluation:
    """Everything the card reports, for the weights as trained and as shipped."""
    files = {
        d.path: document_bits(shipped, tokenizer, d.text, config.context) / len(d.text.encode())
        for d in corpus.held_out
    }
    sizes = {d.path: len(d.text.encode()) for d in corpus.held_out}
    total = sum(sizes.values())
    code = [d for d in corpus.train if d.kind == "code"]
    every = max(1, len(code) // _SAMPLE_DOCUMENTS)
    sample = [Document(d.path, d.kind, d.text[:_SAMPLE_CHARACTERS]) for d in code[::every]]
    return Evaluation(
        held_out_bytes=total,
        held_out_bpb=sum(files[path] * sizes[path] for path in files) / total,
        held_out_bpb_float32=bits_per_byte(exact, tokenizer, corpus.held_out, config.context),
        held_out_files=files,
        training_sample_bpb=bits_per_byte(shipped, tokenizer, sample, config.context),
        compressors=compressors(corpus),
        samples=[_sample(shipped, tokenizer, *prompt) for prompt in _PROMPTS],
    )


def write_model(config: TrainConfig, shape: ModelConfig, trainee: Trainee, tokenizer: Tokenizer) -> Path:
    """Make `config.out/model`, whole or not at all. Needs the evaluation on disk."""
    with replacing_folder(config.out / "model") as folder:
        _fill_model(folder, config, shape, trainee, tokenizer)
    return config.out / "model"


def _fill_model(folder: Path, config: TrainConfig, shape: ModelConfig, trainee: Trainee, tokenizer: Tokenizer) -> None:
    special = SpecialIds(tokenizer)
    export(shape, trainee.weights, folder, bos=special.bos, eos=special.eos)
    for file in (config.out / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    shutil.copy(config.out / EVALUATION, folder / EVALUATION)
    shutil.copy(config.out / MANIFEST, folder / MANIFEST)
    shutil.copy(config.out / LOG, folder / LOG)
    licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if licence.is_file():
        shutil.copy(licence, folder / "PYTHON-LICENSE.txt")
    draw_run(config.out / LOG, folder / "loss.svg")
    write_card(config, shape, folder, read_evaluation(config.compare))


def read_evaluation(folder: Path | None) -> Evaluation | None:
    """The measurements of another run, None if it has none yet. CheckpointError if they are damaged."""
    if folder is None or not (folder / EVALUATION).is_file():
        return None
    check_recorded(folder, EVALUATION)
    return msgspec.json.decode((folder / EVALUATION).read_bytes(), type=Evaluation)


def _sample(trainee: Trainee, tokenizer: Tokenizer, kind: str, prompt: str, suffix: str) -> dict[str, Any]:
    special = SpecialIds(tokenizer)
    before, after = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, suffix))
    tokens = {
        "text": [special.bos, *before],
        "fim": [special.bos, *psm(before, [], after, special.fim_begin, special.fim_hole, special.fim_end)],
        "chat": prompt_ids(prompt, tokenizer),
    }[kind]
    made = continuation(trainee, tokens, {special.eos}, 48)
    return {"kind": kind, "prompt": prompt, "suffix": suffix, "answer": tokenizer.decode(made)}
