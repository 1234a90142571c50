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

from deepwell.engine.scheduler import Segment, StepPlan
from deepwell.engine.speculation.draft_head import DraftHead
from deepwell.ops.base import Batch
from deepwell.ops.paging import CacheGroup, Page
from deepwell.ops.sampling import Ask, Chosen, SamplingRules

_log = logging.getLogger(__name__)

_LEAST_ROWS, _LEAST_COLUMNS = 8, 16


class Backend(Protocol):
    """A model with its KV cache. Called from one thread; may release the GIL. N rows of a step, D hidden width.

    `context` is the longest sequence in tokens, `vocab_size` the width of the logits, `hidden` that of the states,
    `fingerprint` names the model
    and cache layout (it salts the prefix hashes). `has_draft_head` says that `predict` works: a multi-token prediction
    module is there, with a cache layer of its own in the same pages.
    """

    context: int
    vocab_size: int
    hidden: int
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
        self.forget(plan.gone)
        self._tables.update(plan)
        head = self._draft_head
        wanting = [segment for segment in plan.segments if segment.wanted]
        states = head is not None and (follow or head.followed > 0)
        batch = self._tables.batch(plan.segments)
        chosen, x_ND = self.backend.step(batch, [asks[segment.id] for segment in wanting], states)
        found = {segment.id: what for segment, what in zip(wanting, chosen, strict=True)}
        if head is not None:
            try:
                head.observe(plan, found, x_ND, follow)
            except Exception:
                _log.exception("the draft head failed; the engine goes on without")
                self.stop_following()
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """These sequences hold nothing any more."""
        for id in ids:
            self._tables.forget(id)
            if self._draft_head is not None:
                self._draft_head.forget(id)

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


class BlockTables:
    """One table per cache group, table_SP in int32: a row per sequence, found by `rows`; places unused are 0."""

    def __init__(self, groups: int) -> None:
        self.tables = [np.zeros((_LEAST_ROWS, _LEAST_COLUMNS), np.int32) for _ in range(groups)]
        self.rows: dict[str, int] = {}
        self._lengths = np.zeros((_LEAST_ROWS, groups), np.int64)
        self._unused = list(reversed(range(_LEAST_ROWS)))

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says of the sequences it computes."""
        for segment in plan.segments:
            row = self._row(segment.id, segment.fresh)
            for group, blocks in enumerate(segment.blocks):
                if blocks:
                    self._append(group, row, blocks)

    def forget(self, id: str) -> None:
        """A sequence holds nothing any more."""
        if id in self.rows:
            self._unused.append(self.rows.pop(id))

    def blocks(self, id: str) -> NDArray[np.int32]:
        """The blocks of a sequence in the first group, in order."""
        row = self.rows[id]
        blocks: NDArray[np.int32] = self.tables[0][row, : self._lengths[row, 0]]
        return blocks

    def batch(self, segments: Sequence[Segment]) -> Batch:
        """Segments as arrays, over the block tables of their sequences."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        selected: list[int] = []
        for segment in segments:
            tokens += segment.tokens
            positions += range(segment.start, segment.end)
            rows += [self.rows[segment.id]] * len(segment.tokens)
            selected += range(len(tokens) - segment.wanted, len(tokens))
        return Batch(
            tokens_T=np.array(tokens, np.int32),
            positions_T=np.array(positions, np.int32),
            sequence_T=np.array(rows, np.int32),
            block_table_SP=self.tables[0],
            selected_L=np.array(selected, np.int32),
            more_tables=tuple(self.tables[1:]),
        )

    def _row(self, id: str, fresh: bool) -> int:
        row = self.rows.get(id)
        if row is None:
            if not self._unused:
                self._widen()
            row = self.rows[id] = self._unused.pop()
            fresh = True
        if fresh:
            self._lengths[row] = 0
        return row

    def _append(self, group: int, row: int, blocks: tuple[int, ...]) -> None:
        first = int(self._lengths[row, group])
        last = first + len(blocks)
        table = self.tables[group]
        if last > table.shape[1]:
            more = max(last, 2 * table.shape[1]) - table.shape[1]
            table = self.tables[group] = np.pad(table, ((0, 0), (0, more)))
        # what lay out of reach when the sequence began has no block, and is never looked at
        table[row, first:last] = np.maximum(blocks, 0)
        self._lengths[row, group] = last

    def _widen(self) -> None:
        """Twice the rows."""
        count = len(self._lengths)
        self.tables = [np.pad(table, ((0, count), (0, 0))) for table in self.tables]
        self._lengths = np.pad(self._lengths, ((0, count), (0, 0)))
        self._unused = list(reversed(range(count, 2 * count)))
