"""A stand-in for a multi-token prediction module: it knows the truth, tells it often, and watches its own cache."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from deepwell.ops.base import BLOCK_TOKENS, Batch
from fakes import FakeRunner


class FakeDraftHead:
    """The prediction module of a FakeRunner. The state of a row is (position, token).

    `predict` notes a violation in the runner where a row's state is not that of its position, or where the module's
    slots before it do not hold the pairs (token, next token) of the sequence. A block's last pair may be a foreign
    sequence's. The guess is the fake model's own greedy choice, or, by a hash of the context, another token.
    """

    def __init__(self, runner: FakeRunner, right: float = 0.7) -> None:
        self.runner, self.right = runner, right
        self.pairs = np.full((runner.blocks, BLOCK_TOKENS, 3), -1, np.int64)
        self.rows: list[int] = []
        runner.has_draft_head = True
        runner.predict = self.predict  # type: ignore[method-assign]

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self.rows.append(len(x_ND))
        pages_T = batch.block_table_SP[batch.sequence_T, batch.positions_T // BLOCK_TOKENS]
        slots = pages_T, batch.positions_T % BLOCK_TOKENS
        self.pairs[slots] = np.stack([batch.positions_T, x_ND[:, 1].astype(np.int64), batch.tokens_T], axis=1)
        if not again and (x_ND[:, 0] != batch.positions_T).any():
            self.runner.violations.append("a state is not that of its position")
        ends = np.flatnonzero(np.diff(batch.sequence_T, append=-1))
        for row in ends if not again else ():
            self._check(self._pairs(batch, row), self._known(batch, row), int(batch.tokens_T[row]))
        guesses = [self._guess(batch, int(row)) for row in batch.selected_L]
        x_ND = np.stack([batch.positions_T + 1, batch.tokens_T], axis=1).astype(np.float32)
        return np.array(guesses, np.int64), x_ND[batch.selected_L]

    def _pages(self, batch: Batch, row: int) -> NDArray[np.int32]:
        return batch.block_table_SP[batch.sequence_T[row], : batch.positions_T[row] // BLOCK_TOKENS + 1]

    def _pairs(self, batch: Batch, row: int) -> NDArray[np.int64]:
        return self.pairs[self._pages(batch, row)].reshape(-1, 3)[: batch.positions_T[row] + 1]

    def _known(self, batch: Batch, row: int) -> NDArray[np.int64]:
        return self.runner.slots[self._pages(batch, row)].reshape(-1, 2)[: batch.positions_T[row] + 1, 1]

    def _guess(self, batch: Batch, row: int) -> int:
        pairs = self._pairs(batch, row)
        context = (*pairs[:, 1].tolist(), int(batch.tokens_T[row]))
        digest = hashlib.blake2b(np.asarray(context, np.int64).tobytes(), digest_size=8, key=b"guess").digest()
        chance = int.from_bytes(digest, "little") / 2**64
        return int(self.runner.logits_of(context).argmax()) if chance < self.right else int(chance * 1000) % 300

    def _check(self, pairs: NDArray[np.int64], known: NDArray[np.int64], newest: int) -> None:
        following = np.append(known[1:], newest)
        own = np.arange(len(pairs)) % BLOCK_TOKENS != BLOCK_TOKENS - 1
        own[-1] = True
        if (pairs[:, 0] != np.arange(len(pairs))).any() or (pairs[:, 1] != known).any():
            self.runner.violations.append("a slot of the module holds another position or token")
        if (pairs[own, 2] != following[own]).any():
            self.runner.violations.append("a slot of the module holds another next token")
