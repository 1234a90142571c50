"""What every prompt format keeps: its template's text and tokens, texts that stay text, readers that do not care where
an answer is cut."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from answers import Lacking, cut_at, length, marked, read, sent_back, written
from conversations import VECTORS, Vectors, answer, call, rendered, result, system, user
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.chat import FORMATS, Call, Conversation, Message, Tool
from deepwell.chat.formats import find_format
from deepwell.chat.formats.base import Format, Token
from deepwell.chat.reading import PlainReader
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer
from fakes import BOS, EOS, SPECIALS, tiny_tokenizer

T = tiny_tokenizer()
STRANGER = copy.copy(T)
STRANGER.template = (
    "{{ bos_token }}{% for m in messages %}{{ '<｜' + ('User' if m.role == 'user' else 'Assistant') + '｜>' }}"
    "{{ m.content | trim if m.role == 'user' else m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if enable_thinking else '' }}{% endif %}"
)
THINK, END_THINK = "<think>", "</think>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OURS = [
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v2.5",
    "deepseek-v3",
    "deepseek-r1",
    "deepseek-r1-0528",
    "deepseek-v3.1",
    "plain",
]
WEATHER = Tool(name="weather", description="The weather.", parameters={"type": "object", "properties": {}})
every_format = pytest.mark.parametrize("name", [*OURS, "jinja"])
with_tools = pytest.mark.parametrize("name", [name for name in OURS if FORMATS[name].tools])
thinkers = pytest.mark.parametrize("name", [name for name in OURS if FORMATS[name].thinks != "never"])


def format_of(name: str) -> tuple[Format, Tokenizer]:
    tokenizer = STRANGER if name == "jinja" else T
    return find_format(name, tokenizer), tokenizer


def text_of(format: Format, conversation: Conversation) -> str:
    parts = list(format.layout(conversation))
    return "".join(part.spelling if isinstance(part, Token) else str(part) for part in parts)


def encoded(text: str) -> list[int]:
    """The ids of a template's text, in which every spelled token is one."""
    parts = re.split(f"({'|'.join(map(re.escape, SPECIALS))})", text)
    return [
        id for part in parts for id in ([T.special(part)] if part in SPECIALS else T.encode(part)) if id is not None
    ]


def vectors(name: str) -> Vectors:
    return msgspec.json.decode((VECTORS / f"{name}.json").read_bytes(), type=Vectors)


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.json")))
def test_text_and_ids_are_those_of_the_checkpoints_template(name: str) -> None:
    cases = vectors(name).cases
    assert len(cases) >= 8
    for case in cases:
        assert text_of(FORMATS[name], case.conversation) == case.text
        said = "".join(m.content for m in case.conversation.messages)
        if not any(token in said for token in SPECIALS):
            assert list(rendered(case.conversation, T, name)) == encoded(case.text)


SPELLED = st.sampled_from([*SPECIALS, "<think", "｜>", "</ think>", "<｜User", "User", "\n```json\n", "```", "<", ">"])
TEXTS = st.lists(SPELLED | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5).map("".join)
TALKS = st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5)


@every_format
@given(roles=TALKS, texts=st.lists(TEXTS, min_size=5, max_size=5), thinking=st.sampled_from([None, True, False]))
def test_no_text_spells_a_template_token(name: str, roles: list[Any], texts: list[str], thinking: bool | None) -> None:
    """Special tokens come from the layout alone: they do not depend on what is said."""
    format, tokenizer = format_of(name)
    thinking = thinking if format.thinks == "choice" else None

    def specials(said: Sequence[str]) -> list[int]:
        messages = tuple(Message.of(role, text) for role, text in zip(roles, said, strict=False))
        ids = rendered(Conversation(messages=messages, thinking=thinking), tokenizer, name)
        return [id for id in ids if tokenizer.is_special(id)]

    assert specials(texts) == specials(["x" if text else "" for text in texts])


@with_tools
@given(texts=st.lists(TEXTS.filter(bool), min_size=8, max_size=8))
def test_no_text_of_tools_and_calls_spells_a_template_token(name: str, texts: list[str]) -> None:
    def specials(a: str, b: str, c: str, d: str, e: str, f: str, g: str, h: str) -> list[int]:
        calls = (Call(name=a, arguments=b, id="1"), Call(name=c, arguments=d, id="2"))
        messages = (user(e), Message.of("assistant", f, calls=calls), result(g, "1"), result(h, "2"))
        tools = (Tool(name=a, description=b, parameters={c: [d, {e: f}]}), Tool(name=g))
        return [id for id in rendered(Conversation(messages=messages, tools=tools), T, name) if T.is_special(id)]

    assert specials(*texts) == specials(*"abcdefgh")


def answers_of(format: Format, thinking: bool) -> st.SearchStrategy[list[str]]:
    """Answers of every kind, sound and broken, as texts and tokens by spelling."""
    part = TEXTS | st.sampled_from(
        [THINK, END_THINK, CALLS, END_CALLS, CALL, END_CALL, SEP, "function", '{"a": 1}', "w"]
    )
    sound = st.sampled_from(
        [
            [CALLS, CALL, "w", SEP, '{"a": "b"}', END_CALL, CALL, "w", SEP, "{}", END_CALL, END_CALLS],
            [CALLS, CALL, "function", SEP, 'w\n```json\n{"a": "`"}\n```', END_CALL, "\n", END_CALLS],
            [CALL, "long", SEP, '{"text": "' + "ab `\n " * 60 + '"}', END_CALL],
            [CALL, "long", SEP, "\n" * 5000, END_CALL, CALL, "x" * 5000],
        ]
    )
    return st.lists(st.lists(part, max_size=6) | sound, max_size=3).map(lambda lists: [s for one in lists for s in one])


@every_format
@settings(max_examples=150)
@given(data=st.data())
def test_answers_read_the_same_wherever_they_are_cut_and_may_be_sent_back(name: str, data: st.DataObject) -> None:
    format, tokenizer = format_of(name)
    thinking = data.draw(st.booleans()) if format.thinks == "choice" else None
    lacks = data.draw(st.lists(st.sampled_from([THINK, END_THINK, CALL, SEP, END_CALL, CALLS]), max_size=4))
    lacking = Lacking(tokenizer, *lacks)
    answer = written(data.draw(answers_of(format, bool(thinking))), lacking)
    tools = (WEATHER,) if format.tools and data.draw(st.booleans()) else ()
    conversation = Conversation(messages=(user("x"),), tools=tools, thinking=thinking)
    borders = data.draw(st.lists(st.integers(1, max(1, length(answer))), max_size=20))
    whole = read(format.reader(conversation, lacking), [answer])
    sent_back(whole, conversation, format, tokenizer)
    assert read(format.reader(conversation, lacking), cut_at(answer, borders)) == whole
    if length(answer) < 2000:
        assert read(format.reader(conversation, lacking), cut_at(answer, range(length(answer)))) == whole


@every_format
@given(parts=st.lists(TEXTS | st.sampled_from([*SPECIALS]), max_size=8))
def test_markup_never_shows(name: str, parts: list[str]) -> None:
    """Sound, broken or cut off, with tools and without; but what looks like another thought is said."""
    format, tokenizer = format_of(name)
    blunt = [part.replace("<", "").replace(">", "") if part not in SPECIALS else part for part in parts]
    for tools in ((), (WEATHER,)) if format.tools else ((),):
        asked = Conversation(messages=(user("x"),), tools=tools)
        found = read(format.reader(asked, tokenizer), [written(blunt, tokenizer)])
        assert not any(token in text for token in SPECIALS if token != THINK for text in found[:2])


@with_tools
@given(
    content=st.text("abc <`\n", max_size=8),
    calls=st.lists(
        st.tuples(st.sampled_from(["w", "get_time"]), st.dictionaries(TEXTS, TEXTS, max_size=3)), max_size=3
    ),
)
def test_a_rendered_turn_reads_as_what_it_says(name: str, content: str, calls: list[tuple[str, Any]]) -> None:
    """The reader undoes the layout, call by call, to the byte."""
    made = [(tool, msgspec.json.encode(arguments).decode()) for tool, arguments in calls]
    asked = Conversation(messages=(user("x"),), tools=(WEATHER,))
    turn = answer(content, *(call(str(n), tool, arguments) for n, (tool, arguments) in enumerate(made)))
    said = Conversation(messages=(*asked.messages, turn, user("y")), tools=asked.tools)
    prompt, more = rendered(asked, T, name), rendered(said, T, name)
    start = len(prompt) if FORMATS[name].thinks != "always" else more.index(T.special("<｜Assistant｜>")) + 1
    ids = more[start : more.index(T.eos[0], start)]
    reader = FORMATS[name].reader(msgspec.structs.replace(said, messages=(user("x"),)), T)
    if FORMATS[name].thinks == "always":
        ids = (*[id for id in [T.special(END_THINK)] if id is not None], *ids)
        content = content.lstrip() if name == "deepseek-r1" else content
    assert read(reader, [marked(ids, T)]) == ("", content, made)


@with_tools
@pytest.mark.parametrize("offer", [{}, {"tools": (WEATHER,), "choice": "none"}])
@pytest.mark.parametrize("arguments", ["{}", '{"text": "' + "ab " * 200 + '"}'])
def test_texts_of_calls_of_tools_that_were_not_offered_are_content(
    name: str, offer: dict[str, Any], arguments: str
) -> None:
    reader = FORMATS[name].reader(Conversation(messages=(user("x"),), **offer), T)
    call = (CALL, "w", SEP, arguments, END_CALL)
    before = (END_THINK,) if FORMATS[name].thinks == "always" else ()
    parts = written([*before, "I look.", CALLS, *call, END_CALLS], T)
    assert read(reader, cut_at(parts, range(0, length(parts), 7))) == ("", f"I look.w{arguments}", [])


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder", "plain"])
@given(content=TEXTS)
def test_what_stands_around_an_answer_in_words_is_not_part_of_it(name: str, content: str) -> None:
    """The blank after "Assistant:" and the line break before the end belong to the layout."""
    messages = (user("x"), Message.of("assistant", content), user("y"))
    prompt, more = (text_of(FORMATS[name], Conversation(messages=said)) for said in (messages[:1], messages))
    sampled = more[len(prompt) :].rpartition({"deepseek-coder": "<|EOT|>", "plain": "\n\nUser: "}.get(name, EOS))[0]
    reader = FORMATS[name].reader(Conversation(messages=messages[:1]), T)
    assert read(reader, cut_at([sampled], range(len(sampled)))) == ("", content, [])


@every_format
def test_a_turn_is_continued_where_it_ends(name: str) -> None:
    format, tokenizer = format_of(name)
    unfinished = Conversation(messages=(user("x"), Message.of("assistant", "It is", prefix=True)))
    finished = Conversation(messages=(user("x"), Message.of("assistant", "It is a", prefix=True)))
    ids = rendered(unfinished, tokenizer, name)
    assert tokenizer.decode(ids).endswith("It is")
    assert tokenizer.decode(rendered(finished, tokenizer, name)).endswith("It is a")
    assert read(format.reader(unfinished, tokenizer), [[" a dog"]]) == ("", " a dog", [])


@thinkers
def test_a_thought_is_continued_where_it_ends(name: str) -> None:
    format = FORMATS[name]
    last = Message.of("assistant", reasoning="First", prefix=True)
    conversation = Conversation(messages=(user("x"), last))
    assert text_of(format, conversation).endswith("First")
    assert THINK in text_of(format, conversation)
    going_on = written([" of all", END_THINK, "Yes."], T)
    assert read(format.reader(conversation, T), [going_on]) == (" of all", "Yes.", [])
    last = Message.of("assistant", "Yes", reasoning="First", prefix=True)
    conversation = Conversation(messages=(user("x"), last))
    assert re.search("First\n?</think>\n*Yes$", text_of(format, conversation))
    assert read(format.reader(conversation, T), [["."]]) == ("", ".", [])


@thinkers
def test_thoughts_of_earlier_turns_are_left_out(name: str) -> None:
    said = Message.of("assistant", "Yes.", reasoning="Hm, a secret")
    with_thought = Conversation(messages=(user("x"), said, user("y")))
    without = Conversation(messages=(user("x"), answer("Yes."), user("y")))
    assert rendered(with_thought, T, name) == rendered(without, T, name)


@with_tools
def test_results_stand_in_the_order_of_their_calls(name: str) -> None:
    asked = (user("x"), answer("", call("a"), call("b")))
    told = Conversation(messages=(*asked, result("two", "b"), result("one", "a")))
    ordered = Conversation(messages=(*asked, result("one", "a"), result("two", "b")))
    assert rendered(told, T, name) == rendered(ordered, T, name)


@with_tools
@pytest.mark.parametrize("choice", ["required", WEATHER])
def test_a_call_that_must_come_is_opened_by_the_prompt(name: str, choice: Any) -> None:
    format = FORMATS[name]
    conversation = Conversation(messages=(user("x"),), tools=(WEATHER,), choice=choice)
    if format.thinks == "always":
        with pytest.raises(RequestError, match="thinks") as caught:
            rendered(conversation, T, name)
        assert caught.value.param == "tool_choice"
        return
    prompt = rendered(conversation, T, name)
    assert CALL in T.decode(prompt)
    fenced = T.decode(prompt).count("```json")
    ending = "\n```" if fenced > 1 or name != "deepseek-v3.1" else ""
    start = [] if choice is WEATHER else ["weather", SEP] if name == "deepseek-v3.1" else ["weather\n```json\n"]
    sampled = written([*start, '{"city": "Rome"}', ending, END_CALL, END_CALLS], T)
    expected = ("", "", [("weather", '{"city": "Rome"}')])
    assert read(format.reader(conversation, T), [sampled]) == expected
    assert read(format.reader(conversation, T), cut_at(sampled, range(length(sampled)))) == expected


@pytest.mark.parametrize("name", [name for name in [*OURS, "jinja"] if name == "jinja" or not FORMATS[name].tools])
def test_formats_without_tools_say_so(name: str) -> None:
    _, tokenizer = format_of(name)
    fields = {
        "tools": Conversation(messages=(user("x"),), tools=(WEATHER,)),
        "messages[1].tool_calls": Conversation(messages=(user("x"), answer("", call("a")), user("y"))),
        "messages[1].role": Conversation(messages=(user("x"), result("y", "a"))),
    }
    for field, conversation in fields.items():
        with pytest.raises(RequestError, match=name) as caught:
            rendered(conversation, tokenizer, name)
        assert caught.value.param == field


@pytest.mark.parametrize("name", OURS)
def test_roles_of_later_formats_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="allowed: system, user, assistant") as caught:
        rendered(Conversation(messages=(user("x"), Message.of("latest_reminder", "y"))), T, name)
    assert caught.value.param == "messages[1].role"


@every_format
@pytest.mark.parametrize("place", range(3))
def test_what_developers_say_is_a_system_text(name: str, place: int) -> None:
    _, tokenizer = format_of(name)
    talk = [user("x"), answer("y"), user("z")]
    as_developer, as_system = (
        Conversation(messages=(*talk[:place], Message.of(role, "Be brief."), *talk[place:]))
        for role in ("developer", "system")
    )
    ids = rendered(as_developer, tokenizer, name)
    assert ids == rendered(as_system, tokenizer, name)
    assert "Be brief." in tokenizer.decode(ids)


@pytest.mark.parametrize("name", OURS)
def test_thinking_against_the_formats_habit_is_refused(name: str) -> None:
    habit = FORMATS[name].thinks
    if habit == "choice":
        prompts = {rendered(Conversation(messages=(user("x"),), thinking=on), T, name) for on in (True, False)}
        assert len(prompts) == 2
        return
    agrees = Conversation(messages=(user("x"),), thinking=habit == "always")
    assert rendered(agrees, T, name) == rendered(Conversation(messages=(user("x"),)), T, name)
    with pytest.raises(RequestError, match="thinking") as caught:
        rendered(Conversation(messages=(user("x"),), thinking=habit == "never"), T, name)
    assert caught.value.param == "thinking"


@pytest.mark.parametrize("name", OURS)
def test_formats_begin_with_the_begin_token(name: str) -> None:
    assert rendered(Conversation(messages=(system("s"), user("x"))), T, name)[0] == T.special(BOS)


def test_formats_that_only_speak_read_all_as_content() -> None:
    for name in ("deepseek-llm", "deepseek-coder", "plain"):
        assert isinstance(FORMATS[name].reader(Conversation(messages=(user("x"),)), T), PlainReader)
