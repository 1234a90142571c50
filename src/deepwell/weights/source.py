"""Where weights come from: what a model folder and a GGUF file both can do, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.model.config import ModelConfig
from deepwell.model.params import Param
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf import is_gguf
from deepwell.weights.gguf_checkpoint import GgufCheckpoint
from deepwell.weights.tokenizer import Tokenizer


class Source(Protocol):
    """An opened, checked model whose tensors are read when asked for."""

    config: ModelConfig
    params: list[Param]

    @property
    def stored(self) -> str:
        """How most weights are kept: float32, float16, bfloat16 or the name of a ggml type."""
        ...

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that differ between models."""
        ...

    def tokenizer(self) -> Tokenizer: ...

    def pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a parameter seen as a matrix of rows, in order."""
        ...

    def whole(self, param: Param) -> NDArray[np.float32]:
        """All values of a parameter, in its shape."""
        ...


def open_source(path: Path) -> Source:
    """The model at `path`: a folder in Hugging Face layout, a GGUF file, or the first shard of one.

    Raises CheckpointError for files that are missing or broken, ConfigError for a config that is not supported.
    """
    return GgufCheckpoint(path) if is_gguf(path) else Checkpoint(path)
