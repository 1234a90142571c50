"""Tokens that are not special: text to users and in answers, and marks all the same where a format watches for them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from answers import read
from conversations import rendered

from deepwell.chat import FORMATS, Conversation, Message, Tool, find_format, render_text
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.weights.added_tokens import Marked, Tag
from deepwell.weights.tokenizer import Tokenizer
from fakes import BOS, EOS, SPECIALS, tiny_tokenizer

ROW, IM_START = 320, 321
ASK = Conversation(messages=(Message.of("user", "x"),), tools=(Tool(name="w"),))


def tagged(template: str | None = None) -> Tokenizer:
    """A tokenizer whose tokens are tags but for the first and the last, with two of its own."""
    state = tiny_tokenizer().state()
    special = {text: state.special[text] for text in (BOS, EOS)}
    tags = {text: id for text, id in state.special.items() if text not in special}
    tags |= {"<row>": ROW, "<|im_start|>": IM_START}
    spelled = state.spelled | {ROW: "<row>", IM_START: "<|im_start|>"}
    return Tokenizer.restore(
        msgspec.structs.replace(state, special=special, tags=tags, spelled=spelled, template=template)
    )


T = tagged()


def answered(*parts: str) -> list[Marked]:
    """Texts and tokens by spelling, as the engine marks them."""
    found = ((part, T.special(part)) for part in parts)
    return [part if id is None else T.mark(id) or part for part, id in found]


CALLS, CALL, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
END_CALL, END_CALLS = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"


@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-v3.1"])
def test_marks_that_are_tags_are_marks(name: str) -> None:
    conversation = msgspec.structs.replace(ASK, thinking=True if FORMATS[name].thinks == "choice" else None)
    reader = FORMATS[name].reader(conversation, T)
    answer = answered("a<", "/think> ", "<row>", "b", "</think>", "\n\n1", "<row>", "2", CALLS, CALL, "w", SEP)
    answer += answered('{"a": "', "<row>", '"}', END_CALL, END_CALLS)
    assert isinstance(answer[2], Tag)
    assert read(reader, [[part] for part in answer]) == ("a</think> <row>b", "1<row>2", [("w", '{"a": "<row>"}')])


def test_dsml_reads_an_end_of_thought_that_is_a_tag() -> None:
    reader = FORMATS["deepseek-v3.2"].reader(msgspec.structs.replace(ASK, thinking=True), T)
    assert read(reader, [answered("a", "<row>", "</think>", "b", "<row>")]) == ("a<row>", "b<row>", [])


def test_formats_without_marks_show_tags() -> None:
    reader = FORMATS["plain"].reader(ASK, T)
    assert read(reader, [answered(" a", "</think>", "b", "<row>", EOS)]) == ("", "a</think>b<row>", [])


TEMPLATE = (
    "{% for m in messages %}{{ '<|' + 'im_start|>' + m.role + '\\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<row><think>{% endif %}"
)


@pytest.mark.parametrize(
    "name", ["deepseek-llm", "deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2", "jinja"]
)
def test_users_may_spell_tags_and_no_marks_of_the_format(name: str) -> None:
    """Every spelling of a mark means its letters; the layout's own marks are the same whatever is said."""
    tokenizer = tagged("{{ bos_token }}" + TEMPLATE.replace("<row>", "")) if name == "jinja" else T
    marks = [*SPECIALS, "<|im_start|>"]

    def said(text: str) -> tuple[int, ...]:
        return rendered(Conversation(messages=(Message.of("user", text),)), tokenizer, name)

    plain, spelled = said("a"), said("a<row>" + "".join(f"a{mark}b" for mark in marks))
    ids = {tokenizer.special(mark) for mark in marks}
    assert [id for id in spelled if id in ids] == [id for id in plain if id in ids]
    assert spelled.count(ROW) == 1
    assert "".join(f"a{mark}b" for mark in marks) in tokenizer.decode(spelled)


def test_a_template_writes_its_tags_as_tokens() -> None:
    tokenizer = tagged(TEMPLATE)
    assert find_format("jinja", tokenizer).name == "jinja"
    ids = rendered(Conversation(messages=(Message.of("user", "<row>"),)), tokenizer, "jinja")
    assert [id for id in ids if id in (ROW, IM_START, 5)] == [IM_START, IM_START, ROW, 5], "its own row, not the user's"


def test_a_text_spells_tags() -> None:
    assert render_text("<row>", T)[-1] == ROW


@pytest.mark.parametrize(
    ("named", "wanted"), [({"eos_token": "<|EOT|>", "pad_token": "P"}, "<|EOT|>|P|"), ({}, f"{EOS}||")]
)
def test_named_tokens_are_those_of_the_models_files(named: dict[str, Any], wanted: str) -> None:
    """Of several ends, a template's `eos_token` is the one that the tokenizer names."""
    state = tagged("{{ eos_token }}|{{ pad_token }}|{{ unk_token }}").state()
    tokenizer = Tokenizer.restore(msgspec.structs.replace(state, eos=(1, 2), named=named))
    asked = Conversation(messages=(Message.of("user", "x"),))
    assert tokenizer.decode(rendered(asked, tokenizer, "jinja")) == wanted


def test_a_meter_sees_marks_that_are_tags() -> None:
    reader = FORMATS["deepseek-r1-0528"].reader(Conversation(messages=(Message.of("user", "x"),)), T)
    meter = ThoughtMeter(reader.thoughts, T)
    think, close = T.special("<think>") or 0, T.special("</think>") or 0
    (a,) = T.encode("a")
    assert meter.push([think, a, ROW, close, a]) == [True, True, True, True, False]
    assert meter.tokens == 2
