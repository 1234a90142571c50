"""A toy corpus and tokenizer, made once for all tests of training."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from toy import toy_shape, write_stdlib

from deepwell.model.presets import PRESETS
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus, build_corpus
from deepwell.train.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stdlib(tmp_path_factory.mktemp("stdlib"))


@pytest.fixture(scope="session")
def corpus(stdlib: Path) -> Corpus:
    return build_corpus(stdlib)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return train_tokenizer([d.text for d in corpus.train], 384)


@pytest.fixture
def toy_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> TrainConfig:
    """Twelve steps of the toy shape on the toy corpus; MTP starts half-way."""
    monkeypatch.setitem(PRESETS, "toy", toy_shape())
    monkeypatch.setitem(PRESETS, "toy-dense", toy_shape(moe=False))
    monkeypatch.setattr("deepwell.train.run.build_corpus", lambda: corpus)
    return TrainConfig(
        size="toy",
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        tokens=12 * 4 * 64,
        context=64,
        batch_rows=4,
        micro_rows=2,
        warmup=3,
        mtp_from=0.5,
        log_steps=3,
        eval_steps=6,
    )
