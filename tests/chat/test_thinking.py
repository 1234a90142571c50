"""Which tokens of an answer are thoughts."""

from __future__ import annotations

import pytest
from answers import Lacking, marked, read
from hypothesis import assume, given
from hypothesis import strategies as st

from deepwell.chat.reading import PlainReader
from deepwell.chat.reading.calls import CallReader
from deepwell.chat.reading.marks import ThoughtMeter
from fakes import tiny_tokenizer

T = tiny_tokenizer()
CALL_SPELLING = "<｜tool▁call▁begin｜>"
THINK, END, CALL = (T.special(mark) or 0 for mark in ("<think>", "</think>", CALL_SPELLING))
A, B, SPACE = (T.encode(letter)[0] for letter in "ab ")


@pytest.mark.parametrize(
    ("opened", "answer", "thoughts", "tokens"),
    [
        (True, [A, B, END, A], [True, True, True, False], 2),
        (True, [A, END, THINK, A], [True, True, False, False], 1),
        (False, [THINK, A, END, B], [True, True, True, False], 1),
        (False, [SPACE, THINK, A], [False, True, True], 1),
        (False, [A, THINK, B], [False, False, False], 0),
        (False, [END, THINK, B], [False, False, False], 0),
        (True, [A, CALL, B], [True, True, False], 1),
        (True, [END, END, B], [True, False, False], 0),
        (True, [A, B], [True, True], 2),
        (False, [], [], 0),
    ],
)
def test_thoughts_end_with_their_token(opened: bool, answer: list[int], thoughts: list[bool], tokens: int) -> None:
    where = CallReader(T, thinking=opened).thoughts
    at_once = ThoughtMeter(where, T)
    assert at_once.push(answer) == thoughts
    assert at_once.tokens == tokens
    one_by_one = ThoughtMeter(where, T)
    assert [thought for id in answer for thought in one_by_one.push([id])] == thoughts
    assert one_by_one.tokens == tokens


def test_where_nothing_thinks_no_token_is_a_thought() -> None:
    assert ThoughtMeter(PlainReader().thoughts, T).push([THINK, A, END]) == [False] * 3
    assert ThoughtMeter(CallReader(T, continues=True).thoughts, T).push([THINK, A, END]) == [False] * 3


TOKENS = st.sampled_from([THINK, END, CALL, A, B, SPACE, *T.encode("</think>"), *T.encode("<think>")])


@given(opened=st.booleans(), lacks=st.booleans(), ids=st.lists(TOKENS | st.just(-1) | st.just(-2), max_size=12))
def test_the_meter_agrees_with_the_reader(opened: bool, lacks: bool, ids: list[int]) -> None:
    """A token is a thought where the reader makes one of it, marks and white space aside."""
    tokenizer = Lacking(T, "<think>", "</think>") if lacks else T
    spelled = {-1: T.encode("<think>"), -2: T.encode("</think>")}
    ids = [one for id in ids for one in spelled.get(id, [id])]
    reader = CallReader(tokenizer, thinking=opened)
    meter = ThoughtMeter(reader.thoughts, tokenizer)
    assume(not lacks or not {THINK, END} & {*ids})
    thoughts = meter.push(ids)
    said = read(reader, [marked(ids, tokenizer)])[0]
    counted = tokenizer.decode(id for id, thought in zip(ids, thoughts, strict=True) if thought)
    for mark in ("<think>", "</think>", CALL_SPELLING):
        counted, said = counted.replace(mark, ""), said.replace(mark, "")
    assert "".join(counted.split()) == "".join(said.split())
