"""From plans to batches: block tables are kept between steps, and changed by what plans say has changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepwell.engine.scheduler import Segment, StepPlan
from deepwell.ops.base import Batch

_LEAST_ROWS, _LEAST_COLUMNS = 8, 16


class BlockTables:
    """One table per cache group, table_SP in int32: a row per sequence, found by `rows`; places unused are 0."""

    def __init__(self, groups: int) -> None:
        self.tables = [np.zeros((_LEAST_ROWS, _LEAST_COLUMNS), np.int32) for _ in range(groups)]
        self.rows: dict[str, int] = {}
        self._lengths = np.zeros((_LEAST_ROWS, groups), np.int64)
        self._unused = list(reversed(range(_LEAST_ROWS)))

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says."""
        for id in plan.gone:
            if id in self.rows:
                self._unused.append(self.rows.pop(id))
        for segment in plan.segments:
            row = self._row(segment.id, segment.fresh)
            for group, blocks in enumerate(segment.blocks):
                if blocks:
                    self._append(group, row, blocks)

    def blocks(self, id: str) -> NDArray[np.int32]:
        """The blocks of a sequence in the first group, in order."""
        row = self.rows[id]
        blocks: NDArray[np.int32] = self.tables[0][row, : self._lengths[row, 0]]
        return blocks

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


def batch_of(segments: Sequence[Segment], tables: BlockTables) -> Batch:
    """Segments as arrays, over the block tables that they have."""
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    selected: list[int] = []
    for segment in segments:
        tokens += segment.tokens
        positions += range(segment.start, segment.end)
        rows += [tables.rows[segment.id]] * len(segment.tokens)
        selected += range(len(tokens) - segment.wanted, len(tokens))
    return Batch(
        tokens_T=np.array(tokens, np.int32),
        positions_T=np.array(positions, np.int32),
        sequence_T=np.array(rows, np.int32),
        block_table_SP=tables.tables[0],
        selected_L=np.array(selected, np.int32),
        more_tables=tuple(tables.tables[1:]),
    )
