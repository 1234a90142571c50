"""A toy corpus and tokenizer, made once for all tests of training."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))

from toy import toy_run, write_stdlib

from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus, build_corpus
from deepwell.train.run import train
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


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> TrainConfig:
    """A toy run that nothing interrupted, with its model folder: to look at, not to change."""
    with pytest.MonkeyPatch.context() as patch:
        config = toy_run(tmp_path_factory.mktemp("whole"), corpus, patch)
        assert train(config).finished
    return config


@pytest.fixture
def toy_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> TrainConfig:
    return toy_run(tmp_path, corpus, monkeypatch)
