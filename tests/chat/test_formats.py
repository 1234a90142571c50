"""Prompt formats: the exact token ids of each layout, and that user text never turns into a template token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.chat import FORMATS, Conversation, Message, detect, render_chat, render_fim, render_text
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

T = tiny_tokenizer()
BOS, EOS, USER, ASSISTANT = (
    T.special(s) for s in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
)


class Lacking(Tokenizer):
    """The tiny tokenizer without some of its special tokens."""

    def __init__(self, *missing: str, bos: int | None = T.bos) -> None:
        self.__dict__.update(T.__dict__)
        self.missing, self.bos = missing, bos

    def special(self, text: str) -> int | None:
        return None if text in self.missing else super().special(text)


LLM = Lacking("<｜User｜>", "<｜Assistant｜>")
PLAIN = Lacking("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", bos=None)


def ids(*parts: Any) -> tuple[int, ...]:
    return tuple(id for part in parts for id in (T.encode(part) if isinstance(part, str) else [part]))


def render(messages: Sequence[Message], tokenizer: Tokenizer, format: str | None = None) -> tuple[int, ...]:
    return render_chat(Conversation(messages=tuple(messages)), tokenizer, format)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, prefix: bool = False) -> Message:
    return Message("assistant", text, prefix=prefix)


TALK = [Message("system", "Be brief."), user("Hi"), answer("Hello."), Message("system", "In verse."), user("Go on")]


def test_v3_layout() -> None:
    expected = ids(BOS, "Be brief.\n\nIn verse.", USER, "Hi", ASSISTANT, "Hello.", EOS, USER, "Go on", ASSISTANT)
    assert render(TALK, T) == expected


def test_v3_without_system_text_has_nothing_between_bos_and_user() -> None:
    assert render([user("x")], T) == ids(BOS, USER, "x", ASSISTANT)


def test_v3_answers_again_after_a_finished_assistant_turn() -> None:
    assert render([user("x"), answer("y")], T) == ids(BOS, USER, "x", ASSISTANT, "y", EOS, ASSISTANT)


def test_v3_prefix_is_continued() -> None:
    assert render([user("x"), answer("y", True)], T) == ids(BOS, USER, "x", ASSISTANT, "y")


def test_llm_layout_encodes_text_between_template_tokens_at_once() -> None:
    expected = ids(
        BOS,
        "Be brief.\n\nUser: Hi\n\nAssistant: Hello.",
        EOS,
        "In verse.\n\nUser: Go on\n\nAssistant:",
    )
    assert render(TALK, LLM) == expected


def test_llm_prefix_is_continued() -> None:
    assert render([user("x"), answer("y", True)], LLM) == ids(BOS, "User: x\n\nAssistant: y")


def test_plain_layout_needs_no_special_token() -> None:
    assert render([user("x"), answer("y"), user("z")], PLAIN) == ids("User: x\n\nAssistant: y\n\nUser: z\n\nAssistant:")


@pytest.mark.parametrize(("tokenizer", "name"), [(T, "deepseek-v3"), (LLM, "deepseek-llm"), (PLAIN, "plain")])
def test_format_is_seen_from_the_tokenizer(tokenizer: Tokenizer, name: str) -> None:
    assert detect(tokenizer).name == name


def test_format_can_be_chosen() -> None:
    assert render([user("x")], T, "plain") == ids(BOS, "User: x\n\nAssistant:")


def test_unknown_format_lists_the_supported_ones() -> None:
    with pytest.raises(RequestError, match=", ".join(FORMATS)):
        render([user("x")], T, "chatml")


def test_format_whose_tokens_are_missing_is_refused() -> None:
    with pytest.raises(RequestError, match="<｜User｜>"):
        render([user("x")], LLM, "deepseek-v3")


def test_empty_conversation_is_refused() -> None:
    with pytest.raises(RequestError, match="at least one") as caught:
        render([], T)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", [[answer("y", True), user("x")], [user("x"), Message("user", "y", prefix=True)]])
def test_prefix_belongs_to_a_last_assistant_message(messages: list[Message]) -> None:
    with pytest.raises(RequestError, match="last message of role assistant") as caught:
        render(messages, T)
    assert caught.value.param in ("messages[0].prefix", "messages[1].prefix")


SPELLINGS = st.sampled_from(
    ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "</think>", "<｜fim▁hole｜>", "|", "｜>"]
)
TEXTS = st.lists(SPELLINGS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6).map("".join)
ROLES = st.sampled_from(["system", "user", "assistant"])


OF_T = sorted(f.name for f in FORMATS.values() if all(T.special(mark.spelling) is not None for mark in f.marks))


@given(st.lists(st.builds(Message, ROLES, TEXTS), min_size=1, max_size=5), st.sampled_from(OF_T))
def test_text_never_spells_a_template_token(messages: list[Message], format: str) -> None:
    """Special tokens come from the layout alone: their number does not depend on what the texts say."""
    blank = [Message(m.role, "x" if m.content else "") for m in messages]

    def specials(of: list[Message]) -> list[int]:
        return [id for id in render(of, T, format) if T.is_special(id)]

    assert specials(messages) == specials(blank)


@given(TEXTS, TEXTS)
def test_fim_text_never_spells_a_template_token(prefix: str, suffix: str) -> None:
    begin, hole, end = (T.special(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end"))
    rendered = render_fim(prefix, suffix, T)
    assert rendered == ids(BOS, begin, prefix, hole, suffix, end)
    assert [id for id in rendered if T.is_special(id)] == [BOS, begin, hole, end]


def test_fim_needs_its_tokens() -> None:
    with pytest.raises(RequestError, match="fill-in-the-middle") as caught:
        render_fim("a", "b", Lacking("<｜fim▁hole｜>"))
    assert caught.value.param == "suffix"


def test_text_starts_with_bos_where_there_is_one() -> None:
    assert render_text("A deep well", T) == ids(BOS, "A deep well")
    assert render_text("A deep well", PLAIN) == ids("A deep well")
