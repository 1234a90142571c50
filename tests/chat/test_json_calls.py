"""Strangers' calls, in Hermes' tags and as Llama's bare objects: read the same at every border, and sent back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import Read, cut_at, length, read, sent_back, written
from conversations import user
from hypothesis import given, settings
from hypothesis import strategies as st
from json_fakes import HERMES_MARKS, THOUGHT_MARKS, stranger_tokenizer

from deepwell.chat import Conversation, Tool, find_format
from deepwell.chat.reading import CallArguments, CallBegin, Content, json_calls
from deepwell.chat.reading.json_calls import HERMES, LLAMA, JsonCallReader, Shape

T = stranger_tokenizer("Qwen3-0.6B")
AS_TEXT = stranger_tokenizer("Qwen3-0.6B", *HERMES_MARKS, *THOUGHT_MARKS, "<|python_tag|>")
OPEN, CLOSE = HERMES_MARKS
TAG = "<|python_tag|>"
AS_TAGS = stranger_tokenizer("Qwen3-0.6B", tags=(*HERMES_MARKS, *THOUGHT_MARKS))
each = pytest.mark.parametrize("tokenizer", [T, AS_TEXT, AS_TAGS])
"""Marks as special tokens, as text of any letters, and as text that is one token, which is how Qwen has them."""


def reads(parts: list[str], shape: Shape = HERMES, tokenizer: Any = T, **how: Any) -> Read:
    """What an answer says, whole and in every way of cutting it."""
    answer = written(parts, tokenizer)
    readers = [JsonCallReader(tokenizer, shape, how.pop("names", ["f", "g"]), **how) for _ in range(1)]
    whole = read(readers[0], [answer])
    for step in (1, 2, 5):
        again = JsonCallReader(tokenizer, shape, ["f", "g"], **how)
        assert read(again, cut_at(answer, range(0, length(answer), step))) == whole
    return whole


CALL = '\n{"name": "f", "arguments": {"a": [1, {"b": "}"}], "c": "é"}}\n'
ARGUMENTS = '{"a": [1, {"b": "}"}], "c": "é"}'


@each
def test_thought_content_and_parallel_calls(tokenizer: Any) -> None:
    parts = ["<think>", "\nhm\n", "</think>", "\n\nI look.\n", OPEN, CALL, CLOSE, "\n", OPEN, CALL, CLOSE, "\nDone."]
    said = ("hm", "I look.\nDone.", [("f", ARGUMENTS)] * 2)
    assert reads(parts, tokenizer=tokenizer) == said
    assert reads(parts[1:], tokenizer=tokenizer, thinking=True) == said


@each
@pytest.mark.parametrize(
    ("inside", "calls"),
    [
        ('{"name": "f"}', [("f", "{}")]),
        ('{"name": "f", "arguments": {}}', [("f", "{}")]),
        ('{"name": "f", "arguments": null}', [("f", "{}")]),
        ('{"name": "f", "arguments": ""}', [("f", "{}")]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', [("f", '{"a": 1}')]),
        ('{"arguments": {"a": 1}, "name": "f"}', [("f", '{"a": 1}')]),
        ('{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": {"a": 1}, "id": 7}', [("f", '{"a": 1}')]),
        ('{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": {}},\n{"name": "other"}]', [("f", "{}"), ("other", "{}")]),
        ('{"name": "f", "arguments": {}}\n{"name": "g"}', [("f", "{}"), ("g", "{}")]),
        ('{"name": "f", "arguments": {"a": "x\ny\t"}}', [("f", '{"a": "x\\ny\\t"}')]),
        ('{"name": "f", "arguments": {"a": 1e400, "b": "\\ud800"}}', [("f", '{"a": 1e400, "b": "\\ud800"}')]),
        ('{"name": "f", "arguments": {"a": 1}', [("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": {"a":', [("f", '{"a":')]),
        ('{"name": "f", "arguments": {\'a\': 1}}', [("f", "{'a': 1}")]),
        ('{"name": "f", "arguments": {"a": "' + "x" * 5000 + '"}}', [("f", '{"a": "' + "x" * 5000 + '"}')]),
        ('{"arguments": {"a": "' + "x" * 5000 + '"}, "name": "f"}', [("f", '{"a": "' + "x" * 5000 + '"}')]),
        ('{"name": "f", "arguments": ' + '{"a":' * 2500 + "1" + "}" * 2501, [("f", '{"a":' * 2500 + "1" + "}" * 2500)]),
    ],
)
def test_what_stands_between_tags(inside: str, calls: list[tuple[str, str]], tokenizer: Any) -> None:
    for blank in ("", "\n"):
        parts = [OPEN, blank + inside + blank, CLOSE]
        whole = read(JsonCallReader(tokenizer, HERMES, ["f"]), [written(parts, tokenizer)])
        assert whole[:2] == ("", "")
        assert [(name, arguments.rstrip("\n")) for name, arguments in whole[2]] == calls
        if len(inside) < 1000:
            assert reads(parts, tokenizer=tokenizer) == whole


@each
@pytest.mark.parametrize(
    ("inside", "content"),
    [("f(1)", "f(1)"), ("{a: 1}", "{a: 1}"), ('{"a": 1}', '{"a": 1}'), ('{"name": ""}', '{"name": ""}'), ("", "")],
)
def test_what_is_no_call_is_content_without_tags(inside: str, content: str, tokenizer: Any) -> None:
    assert reads(["So: ", OPEN, inside, CLOSE, " ok"], tokenizer=tokenizer) == ("", f"So: {content}ok", [])


@each
@pytest.mark.parametrize("at", range(len(CALL)))
def test_a_cut_call_never_shows_as_content(at: int, tokenizer: Any) -> None:
    _, content, calls = reads(["So: ", OPEN, CALL[:at]], tokenizer=tokenizer)
    assert content == "So: "
    assert not calls or (calls[0][0] == "f" and ARGUMENTS.startswith(calls[0][1]))
    assert bool(calls) == ('"f"' in CALL[:at])


def test_arguments_come_as_they_are_written() -> None:
    reader = JsonCallReader(T, HERMES, ["f"])
    assert list(reader.push(written(["Hi", OPEN, '\n{"name": "f", "arguments": {"a'], T))) == [
        Content("Hi"),
        CallBegin("f"),
        CallArguments('{"a'),
    ]
    assert list(reader.push(['": 1', "}}\n"])) == [CallArguments('": 1'), CallArguments("}")]


def test_a_tag_in_the_middle_of_a_text_is_text() -> None:
    said = '{"name": "f", "arguments": {"a": "'
    for tokenizer in (T, AS_TEXT, AS_TAGS):
        parts = [OPEN, said, CLOSE, '"}}', CLOSE, "ok"]
        assert reads(parts, tokenizer=tokenizer) == ("", "ok", [("f", '{"a": "</tool_call>"}')])


def test_without_tools_tags_are_what_they_are_elsewhere() -> None:
    parts = ["So ", OPEN, CALL, CLOSE]
    for tokenizer in (AS_TEXT, AS_TAGS):
        shown = read(JsonCallReader(tokenizer, HERMES, []), [written(parts, tokenizer)])
        assert shown == ("", "".join(parts), [])
    assert read(JsonCallReader(T, HERMES, []), [written(parts, T)]) == ("", f"So {CALL}", [])


BARE = '{"name": "f", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([BARE], ("", [("f", '{"a": 1}')])),
        ([f"\n{BARE}\n"], ("", [("f", '{"a": 1}')])),
        ([BARE + "; " + BARE.replace("f", "g", 1)], ("", [("f", '{"a": 1}'), ("g", '{"a": 1}')])),
        (['{"type": "function", "function": "f", "parameters": {}}'], ("", [("f", "{}")])),
        ([TAG, BARE.replace("f", "other")], ("", [("other", '{"a": 1}')])),
        ([TAG, "print(1)"], ("print(1)", [])),
        (["Yes: " + BARE], ("Yes: " + BARE, [])),
        ([BARE.replace("f", "Bob")], (BARE.replace("f", "Bob"), [])),
        (['\n{"sky": {"name": "f"}}'], ('\n{"sky": {"name": "f"}}', [])),
        (["{ 1"], ("{ 1", [])),
        (['{"na'], ('{"na', [])),
        (["  "], ("  ", [])),
        ([BARE + " and more"], ("and more", [("f", '{"a": 1}')])),
        (['{"name": "f", "parameters": {"a"'], ("", [("f", '{"a"')])),
    ],
)
@each
def test_llamas_shape(parts: list[str], said: tuple[str, list[tuple[str, str]]], tokenizer: Any) -> None:
    assert reads(parts, LLAMA, tokenizer, thinks=False) == ("", *said)


@pytest.mark.parametrize("shape", [HERMES, LLAMA])
@pytest.mark.parametrize("name", [None, "f"])
def test_a_call_that_the_prompt_opened(shape: Shape, name: str | None) -> None:
    opened = shape.opening(name)
    rest = "" if name else f'f", "{shape.arguments}": '
    parts = [rest + '{"a": 1}}', *([CLOSE] if shape is HERMES else [])]
    assert reads(parts, shape, called=opened) == ("", "", [("f", '{"a": 1}')])
    assert reads(["no"], shape, called=opened)[1] == "" if name is None else "no"


PARTS = [OPEN, CLOSE, TAG, "<think>", "</think>", '{"name": "f", "arguments": ', '{"name": "g", "parameters": ']
PARTS += [
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ",",
    ";",
    ":",
    "\n",
    " ",
    "x",
    '"a": 1',
    '{"a": "b"}',
    '"name": "f"',
    "é",
    "<tool",
    "_call>",
    "</tool_",
    "call>",
    "<|python",
    "_tag|>",
    "1",
]
ANSWERS = st.lists(st.sampled_from(PARTS), max_size=14)


@settings(max_examples=400)
@given(
    parts=ANSWERS,
    template=st.sampled_from(["Qwen2.5-7B-Instruct", "Qwen3-0.6B", "llama-like"]),
    kind=st.sampled_from(["special", "text", "tag"]),
    borders=st.lists(st.integers(0, 60), max_size=6),
)
def test_anything_is_read_the_same_at_every_border_and_may_be_sent_back(
    parts: list[str], template: str, kind: str, borders: list[int]
) -> None:
    marks = (*HERMES_MARKS, *THOUGHT_MARKS, TAG)
    lacks, tags = marks if kind == "text" else (), marks if kind == "tag" else ()
    tokenizer = stranger_tokenizer(template, *lacks, tags=tags)
    format = find_format("jinja", tokenizer)
    asked = Conversation(messages=(user("x"),), tools=(Tool(name="f"), Tool(name="g")))
    answer = written(parts, tokenizer)
    whole = read(format.reader(asked, tokenizer), [answer])
    assert read(format.reader(asked, tokenizer), cut_at(answer, borders)) == whole
    assert read(format.reader(asked, tokenizer), cut_at(answer, range(length(answer)))) == whole
    if kind == "text":
        shown = [TAG] if template == "llama-like" else [*HERMES_MARKS]
        assert not any(mark in whole[1] for mark in shown)
    sent_back(whole, asked, format, tokenizer)


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        (["a<tool", CLOSE, "_call>b"], "ab"),
        (["<tool<tool", CLOSE, "_call>", "_call>b"], "b"),
        (["<tool", OPEN, CALL, CLOSE, "_call>b"], "b"),
        (["<tool", CLOSE, "_cal"], "<tool_cal"),
        (["<<<<", CLOSE, "<tool_x"], "<<<<<tool_x"),
    ],
)
def test_texts_around_a_removed_mark_make_no_mark(parts: list[str], content: str) -> None:
    assert reads(parts, HERMES, AS_TEXT)[1] == content


@given(
    arguments=st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.lists(st.text(max_size=3)))
)
def test_sound_arguments_are_given_as_they_were_written(arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments, ensure_ascii=False)
    call = f'{{"name": "f", "arguments": {text}}}'
    assert read(JsonCallReader(T, HERMES, ["f"]), [written([OPEN, call, CLOSE], T)]) == ("", "", [("f", text)])


def test_a_long_object_is_looked_at_once_past_the_hopeless_length(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(json_calls, "_begun", lambda text: looked.append(len(text)))
    call = json_calls._Object(None)
    for piece in ['{"id": "', *["x" * (json_calls.HOPELESS // 2)] * 20]:
        list(call.text(piece))
    assert looked.count(json_calls.HOPELESS) == 1
