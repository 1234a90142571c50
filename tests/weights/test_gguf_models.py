"""Models read from GGUF files give transformers' logits, through the native backend and the decoder's torch form."""

from pathlib import Path

import gguf_files
import numpy as np
import pytest
import seeded
import torch

from deepwell.engine.load import NativeRunner
from deepwell.ops.base import Batch
from deepwell.weights.checkpoint import Checkpoint
from deepwell.weights.gguf_checkpoint import GgufCheckpoint

BOUND = 1e-4


def logits_of(checkpoint: GgufCheckpoint | Checkpoint, tokens: np.ndarray) -> np.ndarray:
    rows = np.arange(len(tokens), dtype=np.int32)
    pages = np.arange(-(-len(tokens) // 64), dtype=np.int32)[None]
    batch = Batch(tokens.astype(np.int32), rows, np.zeros_like(rows), pages, rows)
    return NativeRunner(checkpoint, "float32", blocks=8).run(batch)


@pytest.mark.parametrize("split_kv_b", [True, False])
@pytest.mark.parametrize("name", seeded.CONFIGS)
def test_logits(name: str, split_kv_b: bool, tmp_path: Path) -> None:
    if not split_kv_b and not name.startswith("v"):
        pytest.skip("has no kv_b")
    reference, file = gguf_files.save(name, tmp_path, split_kv_b=split_kv_b)
    tokens = np.random.default_rng(1).integers(0, 320, 150)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert wanted.std() > 1
    assert np.abs(logits_of(GgufCheckpoint(file), tokens) - wanted).max() < BOUND
