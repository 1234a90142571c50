"""The decoder on the torch backend gives transformers' logits, whole and through a paged cache."""

from pathlib import Path

import numpy as np
import pytest
import seeded
import torch

from deepwell.model import Decoder
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.ops.torch_ops import PagedTorchOps, TorchOps
from deepwell.weights.checkpoint import Checkpoint

BOUND = 1e-4


def decoder(folder: Path) -> Decoder:
    checkpoint = Checkpoint(folder)
    return Decoder(checkpoint.config, {p.key: torch.from_numpy(checkpoint.whole(p)) for p in checkpoint.params})


@pytest.mark.parametrize("name", seeded.CONFIGS)
def test_whole_sequences(name: str, tmp_path: Path) -> None:
    reference = seeded.save(name, tmp_path)
    tokens_BS = torch.from_numpy(np.random.default_rng(1).integers(0, 320, (2, 150)))
    ops, model = TorchOps(tokens_BS), decoder(tmp_path)
    with torch.no_grad():
        logits = model.logits(ops, model.hidden(ops)).view(2, 150, -1)
        wanted = reference(tokens_BS).logits
    assert wanted.std() > 1, "the reference's logits must vary for the comparison to mean anything"
    assert (logits - wanted).abs().max() < BOUND


@pytest.mark.parametrize("name", ["llama-gqa-linear", "v2-lite", "v3", "v32"])
def test_paged_chunks_of_two_sequences(name: str, tmp_path: Path) -> None:
    """Two prompts prefilled in uneven chunks through shuffled pages give the rows of the whole forward pass."""
    reference, model = seeded.save(name, tmp_path), decoder(tmp_path)
    rng = np.random.default_rng(2)
    tokens_BS = rng.integers(0, 320, (2, 150))
    table_SP = rng.permutation(8).astype(np.int32)[:6].reshape(2, 3)
    cache = [torch.zeros(8 * BLOCK_TOKENS, width) for width in model.config.cache_widths()]
    got = np.zeros((2, 150, 320), np.float32)
    for start, stop in ((0, 1), (1, 70), (70, 128), (128, 150)):
        n = stop - start
        batch = Batch(
            tokens_T=tokens_BS[:, start:stop].reshape(-1).astype(np.int32),
            positions_T=np.tile(np.arange(start, stop, dtype=np.int32), 2),
            sequence_T=np.repeat(np.arange(2, dtype=np.int32), n),
            block_table_SP=table_SP,
            selected_L=np.arange(2 * n, dtype=np.int32),
        )
        ops = PagedTorchOps(batch, cache)
        with torch.no_grad():
            got[:, start:stop] = model.logits(ops, model.hidden(ops)).view(2, n, -1).numpy()
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens_BS)).logits.numpy()
    assert np.abs(got - wanted).max() < BOUND
