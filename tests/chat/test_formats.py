"""Prompt formats: the exact token ids of each layout, and that user text never turns into a template token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from answers import Lacking, read, written
from conversations import rendered
from hypothesis import given
from hypothesis import strategies as st

from deepwell.chat import (
    FORMATS,
    Call,
    Conversation,
    Message,
    Tool,
    detect,
    fills_gaps,
    render_fim,
    render_text,
    trained_to_chat,
)
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

T = tiny_tokenizer()
BOS, EOS, USER, ASSISTANT = (
    T.special(s) for s in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
)


LLM = Lacking(T, "<｜User｜>", "<｜Assistant｜>")
PLAIN = Lacking(T, "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
PLAIN.bos = None


def ids(*parts: Any) -> tuple[int, ...]:
    return tuple(id for part in parts for id in (T.encode(part) if isinstance(part, str) else [part]))


def render(messages: Sequence[Message], tokenizer: Tokenizer, format: str | None = None) -> tuple[int, ...]:
    return rendered(Conversation(messages=tuple(messages)), tokenizer, format)


def user(text: str) -> Message:
    return Message.of("user", text)


def answer(text: str, prefix: bool = False) -> Message:
    return Message.of("assistant", text, prefix=prefix)


TALK = [
    Message.of("system", "Be brief."),
    user("Hi"),
    answer("Hello."),
    Message.of("system", "In verse."),
    user("Go on"),
]


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


def kin(template: str | None = None, ends: tuple[str, ...] = ()) -> Tokenizer:
    """The tiny tokenizer with a template, or with other tokens that end an answer."""
    state = T.state()
    eos = tuple(state.special[end] for end in ends) or state.eos
    return Tokenizer.restore(msgspec.structs.replace(state, template=template, eos=eos))


@pytest.mark.parametrize(
    ("tokenizer", "model_type", "chats"),
    [
        (T, None, False),
        (T, "deepseek_v3", False),
        (LLM, None, False),
        (PLAIN, None, False),
        (kin(template="{{ messages }}"), None, True),
        (kin(template="<｜User｜>{{ messages }}<｜Assistant｜>"), "deepseek_v3", True),
        (kin(template=" "), None, False),
        (kin(ends=("<|EOT|>",)), None, False),
        (T, "deepseek_v4", True),
    ],
)
def test_a_model_chats_if_it_brings_more_than_the_tokens(
    tokenizer: Tokenizer, model_type: str | None, chats: bool
) -> None:
    """A base model has the tokens of the chat models that are made of it."""
    assert trained_to_chat(detect(tokenizer, model_type), tokenizer) is chats


def test_coders_that_end_a_turn_chat() -> None:
    state = LLM.state()
    special = state.special | {"<|EOT|>": 1000}
    coder = Tokenizer.restore(msgspec.structs.replace(state, special=special, eos=(1000,)))
    assert detect(coder).name == "deepseek-coder"
    assert trained_to_chat(detect(coder), coder)


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


@pytest.mark.parametrize(
    "messages", [[answer("y", True), user("x")], [user("x"), Message.of("user", "y", prefix=True)]]
)
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


@given(st.lists(st.builds(Message.of, ROLES, TEXTS), min_size=1, max_size=5), st.sampled_from(OF_T))
def test_text_never_spells_a_template_token(messages: list[Message], format: str) -> None:
    """Special tokens come from the layout alone: their number does not depend on what the texts say."""
    blank = [Message.of(m.role, "x" if m.content else "") for m in messages]

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
        render_fim("a", "b", Lacking(T, "<｜fim▁hole｜>"))
    assert caught.value.param == "suffix"


def test_text_starts_with_bos_where_there_is_one() -> None:
    assert render_text("A deep well", T) == ids(BOS, "A deep well")
    assert render_text("A deep well", PLAIN) == ids("A deep well")


def renamed(*spellings: str) -> Tokenizer:
    """The tiny tokenizer with other spellings for its fill-in-the-middle tokens."""
    tokenizer = Lacking(T)
    for name, spelling in zip(("begin", "hole", "end"), spellings, strict=True):
        tokenizer._special[spelling] = tokenizer._special.pop(f"<｜fim▁{name}｜>")
    return tokenizer


@pytest.mark.parametrize(
    "spellings",
    [
        ("<｜fim_begin｜>", "<｜fim_hole｜>", "<｜fim_end｜>"),
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ],
)
def test_gaps_are_marked_as_the_vocabulary_spells_it(spellings: tuple[str, ...]) -> None:
    other = renamed(*spellings)
    assert fills_gaps(other)
    assert render_fim("a", "b", other) == render_fim("a", "b", T)
    assert not fills_gaps(Lacking(T, "<｜fim▁end｜>"))


def text(messages: Sequence[Message], format: str) -> str:
    return T.decode(render(messages, T, format))


CALLED = Message.of("assistant", calls=(Call(name="w", arguments="{}", id="1"),))
RESULT = Message.of("tool", "grey", answers="1")


@pytest.mark.parametrize("format", ["deepseek-v2.5", "deepseek-v3", "deepseek-r1", "deepseek-r1-0528"])
def test_a_single_call_is_closed_and_results_have_their_own_end(format: str) -> None:
    """R1's and V3's first templates forget the end of a single call, and a second begin of results."""
    said = text([user("x"), CALLED, RESULT, CALLED, RESULT, user("y")], format)
    call = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>w\n```json\n{}\n```<｜tool▁call▁end｜>"
    turn = f"{call}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    result = "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>grey<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    assert f"<｜User｜>x<｜Assistant｜>{turn}{result}{turn}{result}<｜User｜>y<｜Assistant｜>" in said


def test_r1_keeps_all_system_texts() -> None:
    """R1's first templates keep the last one alone."""
    assert text(TALK, "deepseek-r1").startswith("<｜begin▁of▁sentence｜>Be brief.\n\nIn verse.<｜User｜>")


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        ("deepseek-v3", "<｜Assistant｜>"),
        ("deepseek-r1", "<｜Assistant｜><think>\n"),
        ("deepseek-r1-0528", "<｜Assistant｜>"),
        ("deepseek-v3.1", "<｜Assistant｜></think>"),
    ],
)
def test_an_answer_is_asked_for_after_a_finished_one(format: str, ending: str) -> None:
    """V3.1's template asks for none there, after which the model would go on behind the end of a text."""
    assert text([user("x"), answer("y")], format).endswith(f"y<｜end▁of▁sentence｜>{ending}")


def test_v31_begins_every_turn_of_the_assistant() -> None:
    """V3.1's template runs a second answer on to the first, without a token between."""
    said = text([user("x"), answer("y"), answer("z"), user("!")], "deepseek-v3.1")
    assert "y<｜end▁of▁sentence｜><｜Assistant｜></think>z<｜end▁of▁sentence｜><｜User｜>!" in said


def test_two_user_messages_in_a_row_have_nothing_between() -> None:
    """The templates of V3-0324 and R1-0528 write the begin of an answer between them."""
    for format in ("deepseek-v3", "deepseek-r1-0528"):
        assert text([user("x"), user("y")], format) == ("<｜begin▁of▁sentence｜><｜User｜>x<｜User｜>y<｜Assistant｜>")


TOOLS = (
    Tool(name="w", description="Says it.", parameters={"type": "object", "properties": {"é": {"type": "string"}}}),
    Tool(name="clock"),
)
SCHEMA = '{"type": "object", "properties": {"é": {"type": "string"}}}'
LISTED = f"""

## Tools
You have access to the following tools:

### w
Description: Says it.

Parameters: {SCHEMA}

### clock
Description: 

Parameters: {{}}

IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>@<｜tool▁call▁end｜>{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them @
"""
"""The words of V3.1's card."""
V25_LISTED = """

## Tools

### Function

You have the following functions available:

- `clock`:
```json
{
    "name": "clock",
    "description": "",
    "parameters": {}
}
```
"""


def listed(tools: Sequence[Tool], format: str, **wishes: Any) -> str:
    """What stands between the system text and the first message."""
    messages = (Message.of("system", "Be brief."), user("x"))
    prompt = T.decode(rendered(Conversation(messages=messages, tools=tuple(tools), **wishes), T, format))
    return prompt.split("Be brief.")[1].split("<｜User｜>")[0]


def test_tools_are_listed_after_the_system_text() -> None:
    """No template of these models lists them."""
    old = ("function<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```", "with a newline as separator")
    new = ("tool_call_name<｜tool▁sep｜>tool_call_arguments", "directly without separators or spaces")
    for format, (call, chained) in {
        "deepseek-v3": old,
        "deepseek-r1": old,
        "deepseek-r1-0528": old,
        "deepseek-v3.1": new,
    }.items():
        assert listed(TOOLS, format) == LISTED.replace("@", call, 1).replace("@", chained)
        assert listed(TOOLS, format, choice="none") == listed((), format) == ""
    assert listed(TOOLS[1:], "deepseek-v2.5") == V25_LISTED


def test_distilled_models_write_tool_tokens_as_text() -> None:
    """Vocabularies of Qwen and Llama have the turns and the think tokens alone."""
    tool_tokens = [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")]
    distilled = Lacking(T, *tool_tokens)
    ids = render([user("x"), CALLED, user("y")], distilled, "deepseek-r1")
    assert T.decode(ids) == T.decode(render([user("x"), CALLED, user("y")], T, "deepseek-r1"))
    assert not any(T.special(token) in ids for token in tool_tokens)
    reader = FORMATS["deepseek-r1"].reader(Conversation(messages=(user("x"),), tools=TOOLS), distilled)
    sampled = ["hm", "</think>", tool_tokens[1], "w", tool_tokens[2], "{}", tool_tokens[3]]
    assert read(reader, [written(sampled, distilled)]) == ("hm", "", [("w", "{}")])
