"""Random but valid blocks of every ggml format, for tests that need weights no quantiser made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepwell.weights.gguf.ggml_types import GgmlType

Blocks = NDArray[np.uint8]


def random_blocks(t: GgmlType, rows: int, columns: int, seed: int, spread: float = 1.0) -> Blocks:
    """Rows of random bytes, so that all codes and small scales occur, with float scales of about `spread`."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * columns // t.width, t.layout.itemsize), dtype=np.uint8)
    blocks = raw.reshape(-1).view(t.layout)
    for field in ("d", "dmin", "m", "x"):
        if field in (t.layout.names or ()) and t.layout[field].kind == "f":
            blocks[field] = rng.standard_normal(len(blocks)) * spread
    if "e" in (t.layout.names or ()):
        blocks["e"] = np.clip(np.round(127 + np.log2(spread) + rng.integers(-3, 2, len(blocks))), 0, 252)
    return raw.reshape(rows, -1)


def random_weights(t: GgmlType, rows: int, columns: int, seed: int) -> Blocks:
    """Such rows scaled to weights of a model: their values have a spread of about columns ** -0.5."""
    spread = float(t.float32(random_blocks(t, 8, 256, seed)).std()) * columns**0.5
    return random_blocks(t, rows, columns, seed, 1 / spread)
