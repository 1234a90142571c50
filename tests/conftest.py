"""Shared by all tests: two threads at most, and imports of the helper modules beside the tests."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for folder in ("", "model", "weights", "exactness", "ops"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# The same examples in every run, and no time limit on one: a busy machine is no failure.
settings.register_profile("deepwell", deadline=None, derandomize=True)
settings.load_profile("deepwell")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3-shaped checkpoint with a real tokenizer."""
    # Only here, because they import torch and transformers.
    from seeded import save

    from fakes import write_tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-v3"
    save("v3", folder)
    return write_tiny_tokenizer(folder)
