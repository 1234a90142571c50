"""A tiny DeepSeek-V3-shaped checkpoint with a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from seeded import save

from fakes import write_tiny_tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-v3"
    save("v3", folder)
    return write_tiny_tokenizer(folder)
