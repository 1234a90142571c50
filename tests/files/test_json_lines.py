"""JSON lines: whatever is torn off the end, what came before is read, and what comes after is a line of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import DeepwellError
from deepwell.json_lines import append_line, read_lines


class Line(msgspec.Struct, frozen=True):
    number: int
    text: str = ""


LAST = Line(7, 'é {"number": 1}\n')


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.jsonl"
    assert read_lines(path, Line) == []
    for number in range(3):
        append_line(path, Line(number))
    assert read_lines(path, Line) == [Line(0), Line(1), Line(2)]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("earlier", [[], [Line(1)], [Line(1), Line(2, "x" * 70_000)]])
def test_torn_at_every_byte(tmp_path: Path, earlier: list[Line]) -> None:
    """Only with all of its bytes but the line end the last record counts."""
    path = tmp_path / "log.jsonl"
    before = b"".join(msgspec.json.encode(line) + b"\n" for line in earlier)
    last = msgspec.json.encode(LAST) + b"\n"
    for length in range(len(last) + 1):
        path.write_bytes(before + last[:length])
        whole = earlier + ([LAST] if length >= len(last) - 1 else [])
        assert read_lines(path, Line) == whole, length
        append_line(path, Line(8))
        assert read_lines(path, Line) == [*whole, Line(8)], length
        assert path.read_bytes().count(b"\n") == len(whole) + 1


@settings(max_examples=100, deadline=None)
@given(tail=st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"") + b"\0"))
def test_no_tail_makes_a_log_unreadable(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    append_line(path, Line(1))
    with path.open("ab") as file:
        file.write(tail)
    assert read_lines(path, Line) == [Line(1)]
    append_line(path, Line(2))
    assert read_lines(path, Line) == [Line(1), Line(2)]


def test_a_tail_longer_than_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, Line(1))
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"\0" * 200_000)
    append_line(path, Line(2))
    assert read_lines(path, Line) == [Line(1), Line(2)]


@pytest.mark.parametrize("damage", [b'{"number": "one"}', b'{"numb', b"\xff", b"[" * 100_000, b"3"])
def test_damage_before_the_last_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 1}\n' + damage + b'\n{"number": 3}\n')
    with pytest.raises(DeepwellError, match=r"log\.jsonl: line 2 is damaged") as error:
        read_lines(path, Line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blank", [b"", b"\r", b"  \t"])
def test_blank_lines_are_skipped_and_counted(tmp_path: Path, blank: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 1}\n' + blank + b'\n{"number": 3}\n' + blank + b"\n")
    assert read_lines(path, Line) == [Line(1), Line(3)]
    append_line(path, Line(4))
    assert read_lines(path, Line) == [Line(1), Line(3), Line(4)]
    path.write_bytes(blank + b"\n{}\n")
    with pytest.raises(DeepwellError, match="line 2 is damaged"):
        read_lines(path, Line)


def test_what_cannot_be_read_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(DeepwellError, match="cannot be read"):
        read_lines(tmp_path, dict[str, Any])
