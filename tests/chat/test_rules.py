"""Messages and their parts: what formats read of them, and the rules about them, in the words of any protocol."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from conversations import answer, call, result, user
from dsml_fakes import dsml_tokenizer
from test_format_contract import STRANGER

from deepwell.chat import FORMATS, Conversation, Message, Result, Text, Thought, Tool, find_format, render_chat
from deepwell.chat.rules import Fields, check, settle
from deepwell.errors import RequestError

V3 = FORMATS["deepseek-v3"]
TOOLS = (Tool(name="weather"), Tool(name="clock"))


class Image(msgspec.Struct, frozen=True):
    """A kind of part that no format knows."""

    url: str = "x"


class Flat(Fields):
    """A protocol whose messages are lists of parts of every kind, the results in messages of users."""

    choice = "tool_choice.type"
    call_name = "name"

    def kind(self, index: int, message: Message, kind: type) -> str:
        places = [at for at, part in enumerate(message.parts) if type(part) is kind]
        return f"{self.message(index)}.content" + (f"[{places[0]}]" if places else "")

    def part(self, index: int, message: Message, at: int) -> str:
        return f"{self.message(index)}.content[{at}]"


def test_parts_of_one_kind_are_read_together_in_their_order() -> None:
    calls = (call("a"), call("b", "clock", "{}"))
    parts = (Thought("Hm."), Text("One"), calls[0], Text(""), Thought("Ah."), Text("two"), calls[1])
    message = Message("assistant", parts)
    assert (message.reasoning, message.content, message.calls) == ("Hm.\n\nAh.", "One\n\n\n\ntwo", calls)
    told = Message("tool", (Result("a", (Text("grey"), Text("and cold"))),))
    assert (told.answers, told.content, told.reasoning, told.calls) == ("a", "grey\n\nand cold", None, ())
    assert Message.of("assistant", "x", reasoning="", calls=calls).parts == (Thought(""), Text("x"), *calls)
    assert (Message.of("user").parts, Message.of("tool", "x", answers="a").parts) == ((), (Result("a", (Text("x"),)),))


@pytest.mark.parametrize("name", [*FORMATS, "jinja"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_kind_of_part_that_a_format_does_not_know_is_refused(name: str, inside: bool) -> None:
    tokenizer = STRANGER if name == "jinja" else dsml_tokenizer()
    format = find_format(name, tokenizer)
    parts: Any = (Text("See:"), Image(), Text("?"))
    message = Message("tool", (Result("a", parts),)) if inside else Message("user", parts)
    with pytest.raises(RequestError, match=f"{name} of this model takes no image; allowed: text") as caught:
        render_chat(Conversation(messages=(user("x"), message)), tokenizer, format)
    assert caught.value.param == "messages[1].content[1]"
    seeing = msgspec.structs.replace(format, parts=(*format.parts, Image), tools=True)
    check(Conversation(messages=(user("x"), message)), seeing)


FAULTS: list[tuple[Message, str, str, str]] = [
    (answer("I look.", call("a", name="")), "is empty", "tool_calls[0].function.name", "content[1].name"),
    (answer("", call("a"), call("a")), "another call", "tool_calls[1].id", "content[1].id"),
    (Message("user", (Text("x"), Thought("y"))), "role assistant", "reasoning_content", "content[1]"),
    (Message("user", (Text("x"), call("a"))), "role assistant", "tool_calls", "content[1]"),
    (Message("user", (Text("x"), Result("a"))), "role tool", "tool_call_id", "content[1]"),
    (Message("tool", (Result("a"), Result("b"))), "several calls", "tool_call_id", "content[0]"),
    (Message("tool", (Text("x"),)), "is missing", "tool_call_id", "content"),
    (Message("tool", (Result("a", (Text("x"),)),)), "must follow", "tool_call_id", "content[0]"),
    (Message("user"), "is missing", "content", "content"),
    (Message("assistant", (Thought("x"),)), "is missing", "content", "content"),
    (Message.of("assistant", "x", reasoning="y", prefix=True), "no thought", "reasoning_content", "content[0]"),
    (Message.of("assistant", calls=(call("a"),), prefix=True), "not allowed together", "prefix", "prefix"),
]


@pytest.mark.parametrize(("message", "words", "ours", "theirs"), FAULTS)
def test_a_fault_is_named_by_the_field_that_the_protocol_has_for_it(
    message: Message, words: str, ours: str, theirs: str
) -> None:
    for fields, where in ((Fields(), ours), (Flat(), theirs)):
        with pytest.raises(RequestError, match=words) as caught:
            settle(Conversation(messages=(user("x"), message)), V3, fields)
        assert caught.value.param == f"messages[1].{where}"


def test_results_are_settled_into_the_order_of_their_calls() -> None:
    asked = (user("x"), answer("", call("a"), call("b")))
    settled = settle(Conversation(messages=(*asked, result("2", "b"), result("1", "a"), user("y"))), V3)
    assert settled.messages == (*asked, result("1", "a"), result("2", "b"), user("y"))


with_tools = pytest.mark.parametrize("format", [format for format in FORMATS.values() if format.tools])


@with_tools
@pytest.mark.parametrize(
    ("last", "tools"),
    [
        (Message.of("assistant", "x", prefix=True), TOOLS),
        (Message.of("user", "x", task="title"), TOOLS),
        (user("x"), ()),
    ],
)
@pytest.mark.parametrize("choice", ["required", TOOLS[0]])
def test_a_call_cannot_be_asked_for_where_none_can_come(format: Any, last: Message, tools: Any, choice: Any) -> None:
    conversation = Conversation(messages=(last,), tools=tools, choice=choice)
    with pytest.raises(RequestError, match="ask") as caught:
        check(conversation, format, Flat())
    assert caught.value.param == "tool_choice.type"


@with_tools
def test_a_call_cannot_be_asked_for_while_the_model_thinks(format: Any) -> None:
    conversation = Conversation(messages=(user("x"),), tools=TOOLS, choice="required")
    if format.thinks == "always":
        with pytest.raises(RequestError, match="while the model thinks"):
            check(conversation, format)
        return
    check(conversation, format)
    thinker = msgspec.structs.replace(format, thinks="choice")
    with pytest.raises(RequestError, match="while the model thinks"):
        check(msgspec.structs.replace(conversation, thinking=True), thinker)


def test_ids_of_calls_are_unique_within_a_message_only() -> None:
    once = (answer("", call("a")), result("1", "a"))
    told = Conversation(messages=(user("x"), *once, *once))
    assert settle(told, V3) == told
