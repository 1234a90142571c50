"""One step of a model: from a plan and the rules of its rows to tokens.

`Backend` is what a model must offer; `Runner` keeps what outlives a step beside it: block tables, and the states that
the multi-token prediction module guesses from. Logits and states never leave it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.engine.scheduler import StepPlan
from deepwell.engine.speculation.draft_head import DraftHead
from deepwell.engine.tables import BlockTables, batch_of
from deepwell.ops.base import Batch
from deepwell.ops.paging import CacheGroup, Page
from deepwell.ops.sampling import Ask, Chosen, SamplingRules

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """A model with its KV cache. Called from one thread; may release the GIL. N rows of a step, D hidden width.

    `context` is the longest sequence in tokens, `vocab_size` the width of the logits, `fingerprint` names the model
    and cache layout (it salts the prefix hashes). `has_draft_head` says that `predict` works: a multi-token prediction
    module is there, with a cache layer of its own in the same pages.
    """

    context: int
    vocab_size: int
    fingerprint: bytes

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        """The block tables that its layers share."""
        ...

    @property
    def has_draft_head(self) -> bool: ...

    def sampler(self, rules: SamplingRules, prompt: Sequence[int]) -> Any:
        """The sampling state of one answer."""
        ...

    def step(
        self, batch: Batch, asks: Sequence[Ask], states: bool
    ) -> tuple[Sequence[Chosen], NDArray[np.float32] | None]:
        """Compute the batch, extend the KV cache, and choose what is asked of the selected rows, in order. With
        `states`, also the states x_ND of all rows."""
        ...

    def predict(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The prediction module over rows whose tokens are those that follow; its guesses token_L and own states x_LD
        of the selected rows. `again` says that x_ND are the module's own states instead of the model's."""
        ...

    def read_page(self, block: int) -> Page:
        """The content of a block."""
        ...

    def write_page(self, block: int, page: Page) -> None:
        """Set the content of a block. Raises ConfigError for a page of another model or layout."""
        ...


class Runner:
    """Carries out plans over a backend."""

    def __init__(self, backend: Backend, token_budget: int) -> None:
        """`token_budget` bounds the rows of a step, the module's included."""
        self.backend = backend
        self._tables = BlockTables(len(backend.groups))
        self._draft_head: DraftHead | None = None
        if backend.has_draft_head:
            self._draft_head = DraftHead(backend.predict, self._tables, backend.groups[0].blocks, token_budget)

    def step(self, plan: StepPlan, asks: Mapping[str, Ask], follow: bool = False) -> dict[str, Chosen]:
        """Compute a plan and choose its tokens; `asks` has what is wanted of each segment that wants rows.

        With `follow`, the sequences that begin in it can be guessed for later by the prediction module.
        """
        self._tables.update(plan)
        head = self._draft_head
        if head is not None:
            for id in plan.gone:
                head.forget(id)
        wanting = [segment for segment in plan.segments if segment.wanted]
        states = head is not None and (follow or head.followed > 0)
        batch = batch_of(plan.segments, self._tables)
        chosen, x_ND = self.backend.step(batch, [asks[segment.id] for segment in wanting], states)
        found = {segment.id: what for segment, what in zip(wanting, chosen, strict=True)}
        if head is not None:
            try:
                head.observe(plan, found, x_ND, follow)
            except Exception:
                _log.exception("the draft head failed; the engine goes on without")
                self.stop_following()
        return found

    def followed(self, id: str) -> bool:
        """Whether the prediction module can guess for a sequence that lacks its newest token alone."""
        return self._draft_head is not None and self._draft_head.can_guess(id)

    def guesses(self, wanted: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Up to so many tokens that the prediction module guesses for each of these sequences."""
        return self._draft_head.guesses(wanted) if self._draft_head is not None else {}

    def catch_up(self) -> None:
        """Put states that wait through the prediction module if they have become many."""
        if self._draft_head is not None:
            self._draft_head.catch_up()

    def write_page(self, block: int, page: Page) -> None:
        """Set the content of a block. Raises ConfigError for a page of another model or layout."""
        self.backend.write_page(block, page)
        if self._draft_head is not None:
            self._draft_head.unknown(block)

    def stop_following(self) -> None:
        """Do without the prediction module from now on."""
        self._draft_head = None
