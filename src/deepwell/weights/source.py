"""Where weights come from: what a model folder and a GGUF file both can do, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.model.config import ModelConfig
from deepwell.model.params import Param
from deepwell.weights.advice import Advice
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.reader import is_gguf
from deepwell.weights.packed import PackedModel, is_packed
from deepwell.weights.tokenizer import Tokenizer


class Source(Protocol):
    """An opened, checked model whose tensors are read when asked for."""

    path: Path
    config: ModelConfig
    params: list[Param]
    mtp_params: list[Param]
    """Parameters of the multi-token prediction modules; empty if there are none."""
    notes: list[str]
    """Sentences about what its files do not say and was assumed, and what of them is not used."""
    is_blocks: bool
    """Whether matrices may be kept in the file's own quantised blocks."""

    @property
    def files(self) -> list[Path]:
        """What it is read from."""
        ...

    @property
    def stored(self) -> str:
        """How most weights are kept: float32, float16, bfloat16 or the name of a ggml type."""
        ...

    @property
    def sample(self) -> bytes:
        """16 bytes of a few values of every tensor: they find a copy again, and name nothing (loading/identity.py)."""
        ...

    @property
    def advice(self) -> Advice:
        """How its makers would have it sampled."""
        ...

    def tokenizer(self) -> Tokenizer: ...

    def pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a parameter seen as a matrix of rows, in order."""
        ...

    def whole(self, param: Param) -> NDArray[np.float32]:
        """All values of a parameter, in its shape."""
        ...

    def source_dtype(self, param: Param) -> str | None:
        """The one ggml type of a parameter's tensors; None if they differ, or in other files."""
        ...

    def block_pieces(self, param: Param) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Like `pieces`, the rows as stored; for parameters that have a `source_dtype`."""
        ...

    def kv_blocks(self, param: Param) -> tuple[tuple[str, NDArray[np.uint8]], tuple[str, NDArray[np.uint8]]] | None:
        """Type and rows as stored of the two halves of MLA's kv_b, where a file has them apart."""
        ...

    def packed(self, param: Param) -> Any:
        """The parameter as a handle of the native backend, where the file holds it so; None in other files."""
        ...

    def digests(self, param: Param) -> tuple[str, ...]:
        """Of what `packed` gives, the BLAKE3 of each part as its writer recorded it; empty in other files."""
        ...

    def release(self) -> None:
        """Let go of the memory that holds what was read; it is read again when asked for."""
        ...


def open_source(path: Path) -> Source:
    """The model at `path`: a folder in Hugging Face layout, a GGUF file, or the first shard of one, a packed file.

    Raises CheckpointError for files that are missing or broken, ConfigError for a config that is not supported.
    """
    if is_packed(path):
        return PackedModel(path)
    return GgufCheckpoint(path) if is_gguf(path) else Checkpoint(path)
