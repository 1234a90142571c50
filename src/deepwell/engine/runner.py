"""What the engine asks of a model: logits for one step plan."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.ops.base import Batch


class Further(Protocol):
    """A model's multi-token prediction module, with a KV cache of its own in the same pages.

    From a token's state and the token that follows it, it predicts the one after. N rows of a step, D hidden width.
    """

    def run(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What `Runner.run` does; returns logits_LV and the states x_ND of all rows."""
        ...

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The module over rows whose tokens are those that follow; returns logits_LV and the module's own states x_LD.

        `again` says that x_ND are the module's own states instead of the model's.
        """
        ...


class Runner(Protocol):
    """A model with its KV cache of `blocks` pages. Called from one thread; may release the GIL.

    `context` is the longest sequence in tokens, `vocab_size` the width of the logits, `fingerprint` names the model
    and cache layout (it salts the prefix hashes), `further` is its multi-token prediction module, None without one.
    """

    blocks: int
    context: int
    vocab_size: int
    fingerprint: bytes

    @property
    def further(self) -> Further | None: ...

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Compute a step, extend the KV cache, and return logits_LV for the selected rows."""
        ...
