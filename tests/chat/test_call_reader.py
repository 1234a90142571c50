"""The reader of V2.5 to V3.1: thoughts, calls in both ways of writing them, and what becomes of broken ones."""

from __future__ import annotations

import pytest
from answers import Lacking, cut_at, length, read, written
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepwell.chat.reading import CallArguments, CallBegin, Content, Reasoning
from deepwell.chat.reading.calls import HOPELESS, CallReader
from fakes import tiny_tokenizer

T = tiny_tokenizer()
THINK, END_THINK = "<think>", "</think>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
NONE = Lacking(T, THINK, END_THINK, CALLS, END_CALLS, CALL, SEP, END_CALL)
OLD = [CALL, "function", SEP, 'w\n```json\n{"a": 1}\n```', END_CALL]
NEW = [CALL, "w", SEP, '{"a": 1}', END_CALL]
LONG = '{"text": "' + "x" * 300 + '"}'


def reads(*parts: str, thinking: bool = False, tokenizer: object = T) -> object:
    assert isinstance(tokenizer, type(T))
    return read(CallReader(tokenizer, thinking=thinking), [written(parts, tokenizer)])


@pytest.mark.parametrize("tokenizer", [T, NONE])
@pytest.mark.parametrize("call", [OLD, NEW])
def test_thought_content_and_calls(call: list[str], tokenizer: object) -> None:
    parts = ["\nhm\n\n", END_THINK, "\n\nI look.\n", CALLS, *call, "\n", *call, END_CALLS, "\n"]
    expected = ("hm", "I look.\n", [("w", '{"a": 1}')] * 2)
    assert reads(*parts, thinking=True, tokenizer=tokenizer) == expected


def test_a_model_may_open_its_thought_itself() -> None:
    assert reads(THINK, "\nhm", END_THINK, "Yes.") == ("hm", "Yes.", [])


def test_a_call_ends_a_thought() -> None:
    assert reads("hm", *NEW, thinking=True) == ("hm", "", [("w", '{"a": 1}')])


def test_an_open_thought_keeps_its_last_white_space_only_if_it_was_cut_off() -> None:
    assert reads("hm\n", thinking=True) == ("hm\n", "", [])
    assert reads("hm\n", END_THINK, thinking=True) == ("hm", "", [])


def test_white_space_of_an_answer_without_thought_is_its_own() -> None:
    assert reads("\n a \n") == ("", "\n a \n", [])


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        ([CALL, "w", SEP, "{}"], [("w", "{}")]),
        ([CALL, "w", SEP, "{}", CALL, "v", SEP, "{}"], [("w", "{}"), ("v", "{}")]),
        ([CALL, "w", SEP, "{}", END_CALLS], [("w", "{}")]),
        ([CALL, "w", SEP, "```json\n{}\n```", END_CALL], [("w", "{}")]),
        ([CALL, "function", SEP, "w\n{}", END_CALL], [("w", "{}")]),
        ([CALL, "function", SEP, "w\n```\n{}```", END_CALL], [("w", "{}")]),
        ([CALL, " w\n", SEP, "\n{}\n", END_CALL], [("w", "{}")]),
    ],
)
def test_calls_written_carelessly_still_count(parts: list[str], calls: object) -> None:
    assert reads(*parts) == ("", "", calls)


@pytest.mark.parametrize("tokenizer", [T, NONE])
@pytest.mark.parametrize("call", [OLD, NEW])
def test_a_second_thought_is_content(call: list[str], tokenizer: object) -> None:
    """Only the first thought is one, and only where nothing was said before it."""
    parts = ["plan", END_THINK, "Write ", THINK, " before", END_THINK, " it.", *call, THINK, "?"]
    expected = ("plan", "Write <think> before it.<think>?", [("w", '{"a": 1}')])
    assert reads(*parts, thinking=True, tokenizer=tokenizer) == expected
    assert reads("Yes", THINK, "hm", tokenizer=tokenizer) == ("", "Yes<think>hm", [])
    assert reads(" \n", THINK, "hm", tokenizer=tokenizer) == ("hm", " \n", [])


RAW = '{"a": "x\ny\t\x01", "b": "\\\\", "c": "\\\n"}'
SOUND = r'{"a": "x\ny\t\u0001", "b": "\\", "c": "\n"}'


@pytest.mark.parametrize(
    ("call", "name", "arguments"),
    [
        ([CALL, "w", SEP, END_CALL], "w", "{}"),
        ([CALL, "w", SEP, " \n", END_CALL], "w", "{}"),
        ([CALL, "w", SEP, CALL, "v", SEP, END_CALLS], "w", "{}"),
        ([CALL, "function", SEP, "w\n```json\n\n```", END_CALL], "w", "{}"),
        ([CALL, "function", SEP, "w", END_CALL], "w", "{}"),
        ([CALL, "w", SEP, RAW, END_CALL], "w", SOUND),
        ([CALL, "function", SEP, f"w\n```json\n{RAW}\n```", END_CALL], "w", SOUND),
        ([CALL, "w", SEP, '{"a": 1e400, "b": "\\ud800"}', END_CALL], "w", '{"a": 1e400, "b": "\\ud800"}'),
        ([CALL, "w", SEP, '{"a": [{"b": "}"}]}', END_CALL], "w", '{"a": [{"b": "}"}]}'),
        ([CALL, "w", SEP, '{"a": "', THINK, '"}', END_CALL], "w", '{"a": "<think>"}'),
        ([CALL, "w", SEP, '{"a": ', END_CALL], "w", '{"a": '),
        ([CALL, "w", SEP, '{"a": "'], "w", '{"a": "'),
        ([CALL, "w", SEP, "{'a': 1}", END_CALL], "w", "{'a': 1}"),
        ([CALL, "w", SEP, "{"], "w", "{"),
        ([CALL, "w", SEP], "w", ""),
        ([CALL, "function", SEP, "w\n```json\n"], "w", ""),
    ],
)
@pytest.mark.parametrize("tokenizer", [T, NONE])
@pytest.mark.parametrize("more", ["", "x" * 300])
def test_what_models_write_for_arguments_is_a_call(
    call: list[str], name: str, arguments: str, tokenizer: object, more: str
) -> None:
    """One rule, whatever the length: sound where it can be made so, and else as it was written."""
    call, arguments = [part.replace('"a"', f'"a{more}"') for part in call], arguments.replace('"a"', f'"a{more}"')
    *_, calls = read(CallReader(tokenizer), [written(["So: ", *call], tokenizer)])  # type: ignore[arg-type]
    assert calls[0] == (name, arguments)
    for cut in (1, 3):
        pushes = cut_at(written(["So: ", *call], tokenizer), range(0, 2000, cut))  # type: ignore[arg-type]
        assert read(CallReader(tokenizer), pushes) == ("", "So: ", calls)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "content"),
    [
        ([CALL, "w", SEP, '{"a": 1} and more', END_CALL], "and more"),
        ([CALL, "w", SEP, "{}```", SEP, THINK, "!", END_CALL], "!"),
    ],
)
@pytest.mark.parametrize("tokenizer", [T, NONE])
def test_what_follows_the_arguments_is_content(call: list[str], content: str, tokenizer: object) -> None:
    reasoning, said, calls = reads(*call, tokenizer=tokenizer)  # type: ignore[misc]
    assert (reasoning, said, len(calls)) == ("", content, 1)


@pytest.mark.parametrize(
    "call",
    [
        [CALL, "w", SEP, "[1]", END_CALL],
        [CALL, "", SEP, "{}", END_CALL],
        [CALL, "two words", SEP, "{}", END_CALL],
        [CALL, "two words", SEP, END_CALL],
        [CALL, "w", '{"a": 1}', END_CALL],
        [CALL, "function", SEP, END_CALL],
        [CALL, END_CALL],
        [CALL, "w", END_CALL],
        [CALL, "w", SEP, "[1]"],
        [CALL, "two words"],
    ],
)
@pytest.mark.parametrize("tokenizer", [T, NONE])
def test_the_texts_of_what_is_no_call_are_content(call: list[str], tokenizer: object) -> None:
    """Its tokens do not show."""
    said = "".join(part for part in call if part not in (CALL, SEP, END_CALL))
    assert reads("So: ", *call, tokenizer=tokenizer) == ("", "So: " + said, [])
    if call[-1] == END_CALL:
        assert reads(*NEW, *call, *NEW, tokenizer=tokenizer) == ("", said, [("w", '{"a": 1}')] * 2)


@pytest.mark.parametrize("cut", [[CALL], [CALL, "we"], [CALL, "function", SEP], [CALL, "function", SEP, "we"]])
@pytest.mark.parametrize("tokenizer", [T, NONE])
def test_half_a_name_does_not_show(cut: list[str], tokenizer: object) -> None:
    assert reads("So: ", *cut, tokenizer=tokenizer) == ("", "So: ", [])


def test_long_arguments_are_given_as_they_come() -> None:
    reader = CallReader(T)
    assert list(reader.push(written([CALL, "w", SEP, '{"text'], T))) == [CallBegin("w"), CallArguments('{"text')]
    assert list(reader.push(['": "', '"', "}\n``", "`"])) == [CallArguments(text) for text in ('": "', '"', "}")]
    assert list(reader.push(written([END_CALL, "Done."], T))) == [Content("Done.")]


def test_what_was_given_of_a_long_call_stays_when_it_breaks() -> None:
    broken = LONG[:-1]
    assert reads(CALL, "w", SEP, broken, END_CALL, "!") == ("", "!", [("w", broken)])
    assert reads(CALL, "w", SEP, broken) == ("", "", [("w", broken)])


@pytest.mark.parametrize("begin", [[CALL, "x" * (HOPELESS + 1)], [CALL, "w", SEP, "x" * (HOPELESS + 1)]])
def test_a_call_that_never_begins_is_passed_on(begin: list[str]) -> None:
    reader = CallReader(T)
    given = list(reader.push(written(begin, T)))
    said = "".join(part for part in begin if part not in (CALL, SEP))
    assert "".join(piece.text for piece in given if isinstance(piece, Content)) == said
    assert list(reader.push(["y"])) == [Content("y")]
    assert list(reader.push(written([END_CALL, " z"], T))) == [Content("z")]


def test_a_spelled_token_is_text_where_the_tokenizer_has_it() -> None:
    spelled = [part for token in (THINK, "a", END_THINK, *NEW) for part in token]
    assert reads(*spelled) == ("", "".join((THINK, "a", END_THINK, *NEW)), [])


def test_text_that_only_looks_like_a_token_is_given_back() -> None:
    reader = CallReader(NONE)
    assert list(reader.push(["a <th"])) == [Content("a ")]
    assert list(reader.push(["ese"])) == [Content("<these")]
    assert list(reader.push(["<th"])) == []
    assert list(reader.finish()) == [Content("<th")]


HALVES = [mark[:at] for mark in (CALLS, END_CALLS, CALL, END_CALL, SEP, END_THINK) for at in (5, 6)]
HALVES += [mark[at:] for mark in (CALLS, END_CALLS, CALL, END_CALL, SEP, END_THINK) for at in (5, 6)]
PARTS = [CALLS, END_CALLS, CALL, SEP, END_CALL, THINK, END_THINK, "w", "{}", "{", "\n", " ", "x", "<"]


@settings(max_examples=600)
@given(
    st.lists(st.sampled_from(PARTS) | st.sampled_from(HALVES), max_size=14),
    st.booleans(),
    st.lists(st.integers(0, 90), max_size=6),
)
@example(["<｜tool", "<｜tool", END_CALLS, "▁calls▁begin｜>", "▁calls▁begin｜>", "x"], False, [])
def test_no_mark_shows_whatever_is_written_and_wherever_it_is_cut(
    parts: list[str], thinking: bool, borders: list[int]
) -> None:
    answer = written(parts, NONE)
    whole = read(CallReader(NONE, thinking=thinking), [answer])
    assert read(CallReader(NONE, thinking=thinking), cut_at(answer, borders)) == whole
    assert read(CallReader(NONE, thinking=thinking), cut_at(answer, range(length(answer)))) == whole
    assert not any(mark in whole[1] for mark in (CALLS, END_CALLS, CALL, SEP, END_CALL, END_THINK))


def test_other_special_tokens_do_not_show() -> None:
    assert reads("a", "<｜tool▁outputs▁begin｜>", "b", "<｜User｜>", "c") == ("", "abc", [])


def test_models_without_thoughts_may_speak_of_them() -> None:
    lacking = Lacking(T, THINK, END_THINK)
    assert read(CallReader(lacking, thinks=False), [["<think>"]]) == ("", "<think>", [])


def test_thoughts_come_as_they_are_thought() -> None:
    reader = CallReader(T, thinking=True)
    assert list(reader.push([" \n", "so ", "it"])) == [Reasoning("so"), Reasoning(" it")]
