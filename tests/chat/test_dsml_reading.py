"""Answers in DSML: the same at every border, calls as they come, and whatever is no call as it was written."""

from __future__ import annotations

import json
import re

import pytest
from answers import sent_back
from dsml_fakes import Read, dsml_tokenizer, half_marked, marked, read, reader_of
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.chat import FORMATS, Conversation, Message, Tool
from deepwell.chat.reading import CallArguments, CallBegin, Content, Reasoning
from deepwell.chat.reading.dsml import DsmlReader, Start
from deepwell.weights.tokenizer import Tokenizer

T = dsml_tokenizer()
V32 = """Let me see.

<｜DSML｜function_calls>
<｜DSML｜invoke name="get_weather">
<｜DSML｜parameter name="city" string="true">Köln "am" Rhein</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="now">
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
V4 = V32.replace("function_calls", "tool_calls")
V41 = V4.replace("tool_calls", " calls").replace("invoke", " invoke").replace("parameter", " parameter")
CALLS = [("get_weather", r'{"city": "Köln \"am\" Rhein", "days": [1, 2]}'), ("now", "{}")]


def reader(start: Start = Start.CONTENT, offers: bool = True) -> DsmlReader:
    return DsmlReader(T, start, offers)


def whole(text: str, start: Start = Start.CONTENT, offers: bool = True) -> Read:
    return read(reader(start, offers), marked(text), [])


@pytest.mark.parametrize("text", [V32, V4, V41])
@pytest.mark.parametrize("thought", [None, "I wonder."])
def test_all_spellings_are_read_the_same_at_every_border(text: str, thought: str | None) -> None:
    start = Start.CONTENT if thought is None else Start.THOUGHT
    said = text if thought is None else f"\n{thought}\n</think>\n\n{text}"
    expected = (thought or "", "Let me see.", CALLS)
    for answer in (marked(said), half_marked(said)):
        for at in range(len(answer) + 1):
            assert read(reader(start), answer, [at]) == expected
        assert read(reader(start), answer) == expected


def test_text_is_given_as_it_comes_and_what_may_be_markup_is_not() -> None:
    reading = reader(Start.THOUGHT)

    def push(part: str | int) -> list[object]:
        return list(reading.push([part]))

    assert push("\n") == []
    assert push("So") == [Reasoning("So")]
    assert push("\n") == []
    assert push("\nthen <too") == [Reasoning("\n\nthen ")]
    assert push("th") == [Reasoning("<tooth")]
    assert push("\n") == []
    assert push(T.special("</think>") or 0) == []
    assert push("\nDone <tool") == [Content("Done ")]
    assert push("s>") == [Content("<tools>")]


def test_what_spells_the_end_of_a_thought_ends_none_but_for_a_model_without_the_token() -> None:
    text = "It writes </think>, I think.</"
    assert read(reader(Start.THOUGHT), text) == (text, "", [])
    lacking = LackingThought(T)
    assert read(DsmlReader(lacking, Start.THOUGHT, True), text) == ("It writes ", ", I think.</", [])


class LackingThought(Tokenizer):
    """A tokenizer that writes thoughts between texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.__dict__.update(tokenizer.__dict__)

    def special(self, text: str) -> int | None:
        return None if "think>" in text else super().special(text)


def test_arguments_stream() -> None:
    reading = reader()
    assert list(reading.push([V4[: V4.index("Köln") + 2]])) == [
        Content("Let me see."),
        CallBegin("get_weather"),
        CallArguments('{"city": "'),
        CallArguments("Kö"),
    ]
    assert list(reading.push(["ln </"])) == [CallArguments("ln ")]
    assert list(reading.push([T.special("｜DSML｜") or 0])) == [CallArguments('"')]


FRAGMENTS = [
    "<",
    "</",
    "｜DSML｜",
    "tool_calls>",
    " calls>",
    "function_calls>",
    "invoke",
    " invoke",
    ' name="',
    "f",
    '">',
]
FRAGMENTS += [
    " parameter",
    "parameter",
    '" string="',
    'true">',
    'false">',
    "\n",
    "\n\n",
    "{",
    "}",
    '{"a": 1}',
    "</think>",
]
FRAGMENTS += ['<｜DSML｜invoke name="f">', "</｜DSML｜invoke>", "</｜DSML｜parameter>", "<tool_calls>", "é🐳", "text "]
FRAGMENTS += [
    '<｜DSML｜parameter name="p" string="true">',
    '<｜DSML｜parameter name="n" string="false">',
    "<｜DSML｜tool_calls>",
]
FRAGMENTS += [
    "</｜DSML｜tool_calls>",
    '<invoke name="g">',
    '<parameter name="q" string="true">',
    "</parameter>",
    "</invoke>",
]


@settings(max_examples=600)
@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    st.sampled_from(list(Start)),
    st.booleans(),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_anything_is_read_the_same_at_every_border_and_may_be_sent_back(
    fragments: list[str], start: Start, offers: bool, borders: list[int]
) -> None:
    text = "".join(fragments)
    expected = whole(text, start, offers)
    asked = Conversation(messages=(ASKED,), tools=(TOOL,))
    for name in ("deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"):
        sent_back(expected, asked, FORMATS[name], T)
    for answer in (marked(text), half_marked(text)):
        assert read(reader(start, offers), answer) == expected
        assert read(reader(start, offers), answer, [border % (len(answer) + 1) for border in borders]) == expected


@settings(max_examples=400)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14), st.sampled_from([Start.MID_THOUGHT, Start.MID_CONTENT]))
def test_what_never_becomes_a_call_comes_back_as_written(fragments: list[str], start: Start) -> None:
    """In content without its marked tags, and what begins one at the end of an answer."""
    text = "".join(fragments)
    reasoning, content, calls = whole(text, start)
    assert not re.search("</?｜DSML｜", content)
    if not calls and "｜DSML｜" not in text:
        assert (reasoning + content).replace("\n", "") == text.replace("</think>", "").replace("\n", "")


@pytest.mark.parametrize("at", range(len(V4)))
def test_an_answer_may_be_cut_off_anywhere(at: int) -> None:
    """A call that had no name yet does not show; one that had keeps the part of its arguments that came."""
    _, content, calls = whole(V4[:at])
    begun = len(calls)
    if begun == 0:
        assert content == (V4[:at] if "<｜" not in V4[:at] else "Let me see.")
        assert 'weather"' not in V4[:at]
    elif begun == 1 and len(calls[0][1]) < len(CALLS[0][1]):
        assert content == "Let me see."
        assert CALLS[0][1].startswith(calls[0][1])
    else:
        assert content == "Let me see."
        assert [name for name, _ in calls] == [name for name, _ in CALLS[:begun]]
        assert all(CALLS[n][1].startswith(arguments) for n, (_, arguments) in enumerate(calls))


def block(*calls: str) -> str:
    return "\n\n<｜DSML｜tool_calls>\n" + "".join(calls) + "</｜DSML｜tool_calls>"


def invoke(inside: str, mark: str = "｜DSML｜") -> str:
    return f'<{mark}invoke name="f">\n{inside}</{mark}invoke>\n'


def parameter(value: str, kind: str = "true", mark: str = "｜DSML｜") -> str:
    return f'<{mark}parameter name="p" string="{kind}">{value}</{mark}parameter>\n'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        pytest.param(block(invoke('{"a": [1], "b": "</invoke>"}\n')), '{"a": [1], "b": "</invoke>"}', id="JSON body"),
        pytest.param(
            "<tool_calls>" + invoke(parameter("x", mark=""), "") + "</tool_calls>", '{"p": "x"}', id="no marks"
        ),
        pytest.param(block(invoke(parameter("x", mark=""), "")), '{"p": "x"}', id="marks of the block alone"),
        pytest.param(invoke(parameter("x")), '{"p": "x"}', id="no block"),
        pytest.param(
            block(invoke(parameter("a</parameter></invoke>"))), '{"p": "a</parameter></invoke>"}', id="tags in text"
        ),
        pytest.param(block(invoke(parameter('\t\\"\n\x01é'))), r'{"p": "\t\\\"\n\u0001é"}', id="escapes"),
        pytest.param(block(invoke(parameter("Ulm", "false"))), '{"p": "Ulm"}', id="text said to be none"),
        pytest.param(block(invoke(parameter("NaN", "false"))), '{"p": "NaN"}', id="a number that JSON lacks"),
        pytest.param(block(invoke(parameter("", "false"))), '{"p": ""}', id="no value"),
        pytest.param(
            block(invoke(parameter(' {"k" : 1.50} ', "false"))), '{"p":  {"k" : 1.50} }', id="JSON as written"
        ),
        pytest.param(block(invoke("\n")), "{}", id="no arguments"),
        pytest.param(block(invoke('{"a": "1\n2"}')), r'{"a": "1\n2"}', id="a line break in JSON"),
        pytest.param(block(invoke(parameter("1e400", "false"))), '{"p": 1e400}', id="a number beyond all"),
        pytest.param(invoke(parameter("x"))[:-1] + "\n\n", '{"p": "x"}', id="a block that never ends"),
    ],
)
def test_lenient_calls(text: str, arguments: str) -> None:
    assert whole(text) == ("", "", [("f", arguments)])
    assert read(reader(), marked(text)) == ("", "", [("f", arguments)])
    assert read(reader(), half_marked(text)) == ("", "", [("f", arguments)])
    json.loads(arguments)


@pytest.mark.parametrize(
    "text",
    [
        "<｜DSML｜tool_calls>\nnothing\n",
        "<｜DSML｜tool_calls></｜DSML｜tool_calls>",
        "<tool_calls> are blocks",
        '<invoke name="f">',
        "<｜DSML｜",
        '<｜DSML｜invoke name="">\n</｜DSML｜invoke>',
        '<｜DSML｜invoke name="f">\nwords</｜DSML｜invoke>',
        '<｜DSML｜invoke name="f">\n[1]</｜DSML｜invoke>',
        '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="p">1</｜DSML｜parameter>',
        '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="p" string="yes">',
        "</｜DSML｜tool_calls>",
    ],
)
def test_broken_calls_come_back_as_written_without_marked_tags(text: str) -> None:
    said = f"So:\n\n{text}"
    content = re.sub(r"\s*</?｜DSML｜[^<>\n]*>?", "", said)
    assert whole(said) == ("", content, [])
    assert read(reader(), marked(said)) == ("", content, [])
    assert read(reader(), half_marked(said)) == ("", content, [])


def test_a_call_that_breaks_after_it_began_is_never_complete() -> None:
    text = block(invoke(parameter("x") + "oops\n" + parameter("y")), invoke(""))
    assert whole(text) == ("", "oopsy", [("f", '{"p": "x"'), ("f", "{}")])
    assert read(reader(), marked(text)) == whole(text)
    assert read(reader(), half_marked(text)) == whole(text)


def test_calls_out_of_a_thought() -> None:
    assert whole("Hm." + block(invoke("")), Start.THOUGHT) == ("Hm.", "", [("f", "{}")])
    quoting = "It writes <｜DSML｜tool_calls> first.</think>Yes."
    assert whole(quoting, Start.THOUGHT) == ("It writes <｜DSML｜tool_calls> first.", "Yes.", [])


def test_text_after_calls_is_not_lost() -> None:
    assert whole(block(invoke("")) + "\n\nDone." + block(invoke(""))) == ("", "Done.", [("f", "{}")] * 2)


def test_without_tools_calls_are_text() -> None:
    text = "Look:" + block(invoke(parameter("x")))
    assert whole(text, offers=False) == ("", text, [])
    assert read(reader(offers=False), marked(text)) == ("", text, [])
    assert read(reader(offers=False), half_marked(text)) == ("", text, [])


def test_other_special_tokens_do_not_show() -> None:
    user = T.special("<｜User｜>")
    assert user is not None
    assert read(reader(), ["a", user, "b"]) == ("", "ab", [])


def test_thoughts_that_end_again_show_no_mark() -> None:
    assert whole("a</think>b</think>\nc", Start.THOUGHT) == ("a", "b\nc", [])


ASKED = Message.of("user", "x")
TOOL = Tool(name="f")


@pytest.mark.parametrize(
    ("format", "conversation", "expected"),
    [
        ("deepseek-v4", Conversation(messages=(ASKED,)), ("a", "b", [])),
        ("deepseek-v4", Conversation(messages=(ASKED,), thinking=False), ("", "ab", [])),
        ("deepseek-v4.1", Conversation(messages=(ASKED,), effort="none"), ("", "ab", [])),
        ("deepseek-v3.2", Conversation(messages=(ASKED,)), ("", "ab", [])),
        ("deepseek-v3.2", Conversation(messages=(ASKED,), thinking=True), ("a", "b", [])),
        ("deepseek-v4", Conversation(messages=(Message.of("user", "x", task="title"),)), ("", "ab", [])),
        ("deepseek-v4", Conversation(messages=(Message.of("assistant", "x", prefix=True),)), ("", "ab", [])),
    ],
)
def test_a_reader_begins_where_the_prompt_ended(format: str, conversation: Conversation, expected: Read) -> None:
    assert read(reader_of(format, conversation), marked("a</think>b")) == expected


@pytest.mark.parametrize("format", ["deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"])
@pytest.mark.parametrize("choice", ["auto", "none", "required", TOOL])
def test_calls_are_read_where_tools_are_offered(format: str, choice: str | Tool) -> None:
    conversation = Conversation(messages=(ASKED,), tools=(TOOL,), choice=choice, thinking=False)  # type: ignore[arg-type]
    text = block(invoke(""))
    inside = text.partition("tool_calls>\n")[2] if choice not in ("auto", "none") else text
    calls = [] if choice == "none" else [("f", "{}")]
    assert read(reader_of(format, conversation), [inside])[2] == calls
