"""Tests of a real model, run by `make real`: SmolLM2-135M-Instruct as others publish it, fetched once (smollm.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from smollm import model_file
from starlette.testclient import TestClient

from deepwell.cli.serve import service_of
from deepwell.loading.load import LoadedModel, load_model
from deepwell.options import Dtype, ServeOptions
from deepwell.server import create_app
from deepwell.weights.tokenizer import Tokenizer

Loader = Callable[[Dtype], LoadedModel]
CONTEXT = 4096


@pytest.fixture(scope="session")
def file() -> Path:
    """The model's GGUF file. Without it the tests fail."""
    return model_file()


@pytest.fixture(scope="session")
def load(file: Path) -> Loader:
    """The model by its dtype, each loaded once."""

    @cache
    def loaded(dtype: Dtype) -> LoadedModel:
        return load_model(file, dtype=dtype, context=CONTEXT, threads=2)

    return loaded


@pytest.fixture(scope="session")
def tokenizer(load: Loader) -> Tokenizer:
    return load("auto").tokenizer


@pytest.fixture(scope="session")
def serve(load: Loader) -> Iterator[Callable[[Dtype], TestClient]]:
    """A client of the server as `deepwell serve` makes it, by the model's dtype."""
    with ExitStack() as stack:

        @cache
        def client(dtype: Dtype) -> TestClient:
            return stack.enter_context(TestClient(create_app(service_of(load(dtype), ServeOptions(name=("smollm2",))))))

        yield client


@pytest.fixture
def client(serve: Callable[[Dtype], TestClient]) -> TestClient:
    """The model as its file has it."""
    return serve("auto")
