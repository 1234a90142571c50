"""What the engine asks of a model: logits for one step plan."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.ops.base import Batch


class Runner(Protocol):
    """A model with its KV cache of `blocks` pages. Called from one thread; may release the GIL.

    `context` is the longest sequence in tokens, `vocab_size` the width of the logits, `fingerprint` names the model
    and cache layout (it salts the prefix hashes).
    """

    blocks: int
    context: int
    vocab_size: int
    fingerprint: bytes

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Compute a step, extend the KV cache, and return logits_LV for the selected rows."""
        ...
