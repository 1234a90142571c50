"""Which tokens of an answer are thoughts."""

from __future__ import annotations

import pytest

from deepwell.chat.reading.marks import ThoughtMeter
from fakes import tiny_tokenizer

T = tiny_tokenizer()
THINK, END = T.special("<think>"), T.special("</think>")
A, B = T.encode("a")[0], T.encode("b")[0]


@pytest.mark.parametrize(
    ("prompt", "answer", "thoughts", "tokens"),
    [
        ([A, THINK], [A, B, END, A], [True, True, True, False], 2),
        ([A, THINK, A], [A, END], [True, True], 1),
        ([THINK, A, END, B], [A, END], [False, False], 0),
        ([A], [THINK, A, END, B], [True, True, True, False], 1),
        ([A], [A, THINK, B], [False, False, False], 0),
        ([A, THINK], [END, END, B], [True, False, False], 0),
        ([A, THINK], [A, B], [True, True], 2),
        ([], [], [], 0),
    ],
)
def test_thoughts_end_with_their_token(prompt: list[int], answer: list[int], thoughts: list[bool], tokens: int) -> None:
    at_once = ThoughtMeter(prompt, T)
    assert at_once.push(answer) == thoughts
    assert at_once.tokens == tokens
    one_by_one = ThoughtMeter(prompt, T)
    assert [thought for id in answer for thought in one_by_one.push([id])] == thoughts
    assert one_by_one.tokens == tokens
