"""Block tables follow plans, however many sequences there are and however long they get."""

import random

import numpy as np

from deepwell.engine.runner import BlockTables
from deepwell.engine.scheduler import Segment, StepPlan


def test_tables_are_what_plans_said() -> None:
    source = random.Random(1)
    tables, known = BlockTables(2), dict[str, tuple[list[int], list[int]]]()
    for step in range(300):
        gone = [id for id in known if source.random() < 0.05]
        for id in gone:
            del known[id]
        segments = []
        for id in {str(source.randrange(60)) for _ in range(10)} | set(gone):
            fresh = id not in known
            more = tuple(tuple(source.randrange(1000) for _ in range(source.randrange(5))) for _ in range(2))
            known.setdefault(id, ([], []))
            for table, blocks in zip(known[id], more, strict=True):
                table += blocks
            segments.append(Segment(id=id, start=0, tokens=(1,), blocks=more, wanted=0, fresh=fresh))
        for id in gone:
            tables.forget(id)
        tables.update(StepPlan(tuple(segments), tuple(gone)))
        assert set(tables.rows) == set(known), step
        assert len(set(tables.rows.values())) == len(known)
        for id, groups in known.items():
            for group, blocks in enumerate(groups):
                row = tables.tables[group][tables.rows[id]]
                assert row[: len(blocks)].tolist() == blocks
            assert tables.blocks(id).tolist() == groups[0]
    assert {table.dtype for table in tables.tables} == {np.dtype(np.int32)}
