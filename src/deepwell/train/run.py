"""`train`: every stage from raw text to a trained checkpoint, each recorded, the whole resumable."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable

import torch
from tokenizers import Tokenizer

from deepwell.files import locked, write_whole
from deepwell.model.config import ModelConfig
from deepwell.model.params import param_specs
from deepwell.model.presets import preset
from deepwell.train.cache import kept
from deepwell.train.checkpoint import load_state
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus, Document, build_corpus
from deepwell.train.dataset import RowStream
from deepwell.train.evaluate import bits_per_byte
from deepwell.train.finish import MANIFEST, finish
from deepwell.train.loop import Metrics, Outcome, Pretraining, check_same
from deepwell.train.stages import sha256_of, stage
from deepwell.train.tokenizer import SpecialIds, save_tokenizer, train_tokenizer
from deepwell.train.trainee import Trainee

QUICK_CHARACTERS = 6_000
LOCK = "run.lock"
"""In the folder of a run: whoever holds it writes there."""

OnStep = Callable[[int, Metrics | None], None]
"""Called after every optimiser step with the number of steps done, and with the log's line where one was written."""


def train(config: TrainConfig, on_step: OnStep = lambda step, metrics: None) -> Outcome:
    """Everything: from raw text to `config.out/model`, a folder that Deepwell and transformers load.

    Resumes what is in `config.out`. Saves and returns early, not finished, at the CPU limit, SIGTERM or SIGINT. Raises
    DeepwellError if another run is at work in that folder.
    """
    shape = preset(config.size)
    busy = f"{config.out}: another run is at work in this folder; wait until it ends, or name another --out"
    with locked(config.out / LOCK, busy):
        # What can fail at once is tried before the minute that the inputs take.
        config.cache.mkdir(parents=True, exist_ok=True)
        if (state := load_state(config.out)) is not None:
            check_same(config, state)
        corpus = prepare_corpus(config)
        tokenizer = prepare_tokenizer(config, shape, corpus)
        outcome = pretrain(config, shape, corpus, tokenizer, on_step)
        if outcome.finished:
            finish(config, corpus, tokenizer)
    return outcome


def pretrain(config: TrainConfig, shape: ModelConfig, corpus: Corpus, tokenizer: Tokenizer, on_step: OnStep) -> Outcome:
    """Tokens and weights: up to the checkpoint in `config.out`."""
    torch.set_num_threads(config.threads)
    rows = prepare_tokens(config, corpus, tokenizer)
    special = SpecialIds(tokenizer)
    inputs = {"corpus": corpus.sha256, "tokenizer": sha256_text(tokenizer.to_str()), "tokens": rows.key}
    quick = [Document(d.path, d.kind, d.text[:QUICK_CHARACTERS]) for d in corpus.held_out]
    with stage(config.out, "pretrain", inputs=inputs, config=config.identity()) as record:
        trainee = Trainee(shape, config.seed)
        loop = Pretraining(
            config,
            trainee,
            rows,
            (special.pad, special.bos),
            inputs,
            lambda model: bits_per_byte(model, tokenizer, quick, config.context),
        )
        outcome = loop.run(on_step)
        record.seconds, record.cpu_seconds = outcome.state.wall_seconds, outcome.state.cpu_seconds
        record.tokens = outcome.state.step * config.batch_tokens
        record.flops = training_flops(config, shape, outcome.state.step)
        record.outputs = {"checkpoint": sha256_of(config.out / "checkpoint.safetensors")}
        record.metrics = {"finished": outcome.finished, "step": outcome.state.step}
    return outcome


def prepare_corpus(config: TrainConfig) -> Corpus:
    """The corpus of the running interpreter, with its manifest written down."""
    with stage(config.out, "corpus") as record:
        corpus = build_corpus()
        record.metrics["python"] = platform.python_version()
        write_whole(config.out / MANIFEST, corpus.manifest_lines())
        record.outputs = {"corpus": corpus.sha256, MANIFEST: sha256_of(config.out / MANIFEST)}
        for kind in ("code", "tests", "reference", "dialogue"):
            texts = [d.text for d in corpus.train if d.kind == kind]
            record.metrics[kind] = {"documents": len(texts), "characters": sum(map(len, texts))}
        record.metrics["held_out"] = sorted(d.path for d in corpus.held_out)
    return corpus


def prepare_tokenizer(config: TrainConfig, shape: ModelConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer learnt from the library, the reference and the dialogues; kept in the cache by its inputs."""
    key = sha256_text(f"{corpus.sha256} {shape.vocab}")[:16]
    name = f"tokenizer-{key}.json"
    with stage(config.out, "tokenizer", inputs={"corpus": corpus.sha256}, config={"vocab": shape.vocab}) as record:
        texts = [d.text for d in corpus.train if d.kind != "tests"]
        (cached,) = kept(
            config.cache,
            f"tokenizer-{key}",
            (name,),
            lambda: {name: train_tokenizer(texts, shape.vocab).to_str().encode()},
        )
        tokenizer = Tokenizer.from_file(str(cached))
        save_tokenizer(tokenizer, config.out / "tokenizer", shape.context)
        record.outputs = {"tokenizer": sha256_text(tokenizer.to_str())}
    return tokenizer


def prepare_tokens(config: TrainConfig, corpus: Corpus, tokenizer: Tokenizer) -> RowStream:
    """All shards of tokens that the run will read."""
    rows = RowStream(
        corpus,
        tokenizer,
        context=config.context,
        fim_rate=config.fim_rate,
        test_share=config.test_share,
        seed=config.seed,
        cache=config.cache,
    )
    with stage(config.out, "tokens", inputs={"corpus": corpus.sha256}, config={"context": config.context}) as record:
        rows.rows(config.steps * config.batch_rows - 1, 1)
        record.outputs = {f"epoch {shard.epoch}": shard.sha256 for shard in rows.shards}
        record.tokens = sum(shard.text_tokens for shard in rows.shards)
        record.metrics = {"rows": [s.rows for s in rows.shards], "fim_pieces": [s.fim_pieces for s in rows.shards]}
    return rows


def training_flops(config: TrainConfig, shape: ModelConfig, steps: int) -> float:
    """FLOPs of `steps`: 6 per active matrix weight and token, and attention over half a row on average."""
    trainee_specs = _dot_weights(shape, mtp=False), _dot_weights(shape, mtp=True)
    assert shape.mla is not None
    per_key = 2 * shape.heads * (shape.mla.nope + shape.mla.rope + shape.mla.value)
    attention = 3 * per_key * config.context / 2
    plain = 6 * trainee_specs[0] + shape.layers * attention
    full = 6 * trainee_specs[1] + (shape.layers + shape.mtp_layers) * attention
    with_mtp = max(0, steps - round(config.mtp_from * config.steps))
    return config.batch_tokens * ((steps - with_mtp) * plain + with_mtp * full)


def _dot_weights(shape: ModelConfig, *, mtp: bool) -> float:
    dots = [p.size * p.active for p in param_specs(shape, mtp=mtp) if p.kind not in ("vector", "embedding")]
    head_again = shape.vocab * shape.hidden * shape.mtp_layers if mtp else 0
    return sum(dots) + head_again


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
