"""No byte of an answer or an error changes that was not meant to; golden.py says what is asked."""

from __future__ import annotations

import msgspec
import pytest
from golden import FAULTS, RECORD, recorded

Record = dict[str, dict[str, list[str]]]


@pytest.fixture(scope="module")
def both() -> tuple[Record, Record]:
    """What was recorded, and what is answered now."""
    return msgspec.json.decode(RECORD.read_bytes()), recorded()


def test_answers_are_those_recorded_byte_for_byte(both: tuple[Record, Record]) -> None:
    before, now = (side["answers"] for side in both)
    assert list(now) == list(before)
    for name, lines in now.items():
        assert lines == before[name], name


def test_faults_are_worded_as_recorded(both: tuple[Record, Record]) -> None:
    before, now = (side["faults"] for side in both)
    assert list(now) == list(before)
    for format, errors in now.items():
        for fields, error, wanted in zip(FAULTS, errors, before[format], strict=True):
            assert error == wanted, (format, fields)
