"""V3.2 against what DeepSeek's own encoder said (capture_v32.py), and the few things that it cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conversations import rendered
from dsml_fakes import DSML_SPECIALS, dsml_tokenizer, marked, read, reader_of

from deepwell.chat import Call, Conversation, Message, Tool
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer
from fakes import tiny_tokenizer

T = dsml_tokenizer()
CAPTURED = json.loads((Path(__file__).parent / "dsml_v32.json").read_text(encoding="utf-8"))
USER = Message.of("user", "x")
TOOL = Tool(name="f", description="d", parameters={"type": "object"})


def conversation_of(case: dict[str, Any]) -> Conversation:
    return Conversation(
        messages=tuple(map(_message, case["messages"])),
        tools=tuple(Tool(**tool) for tool in case["tools"]),
        thinking=case["thinking"],
    )


def _message(said: dict[str, Any]) -> Message:
    return Message.of(
        said["role"],
        said["content"],
        reasoning=said.get("reasoning_content"),
        calls=tuple(Call(id=call["id"], **call["function"]) for call in said.get("tool_calls", [])),
        answers=said.get("tool_call_id"),
    )


def prompt(*messages: Message, tokenizer: Tokenizer = T, **more: Any) -> str:
    conversation = Conversation(messages=messages, **more)
    return tokenizer.decode(rendered(conversation, tokenizer, "deepseek-v3.2")).removeprefix("<｜begin▁of▁sentence｜>")


@pytest.mark.parametrize("case", CAPTURED["prompts"])
def test_prompt_is_that_of_deepseek(case: dict[str, Any]) -> None:
    assert T.decode(rendered(conversation_of(case), T, "deepseek-v3.2")) == case["prompt"]


@pytest.mark.parametrize("case", CAPTURED["prompts"][:10])
def test_results_are_put_into_call_order(case: dict[str, Any]) -> None:
    """Told in any order, results come as their calls did."""
    messages = case["messages"]
    shuffled = [m if m["role"] != "tool" else None for m in messages]
    for results in _runs_of_results(messages):
        for place, index in enumerate(results):
            shuffled[index] = messages[results[-1 - place]]
    told = case | {"messages": shuffled}
    assert T.decode(rendered(conversation_of(told), T, "deepseek-v3.2")) == case["prompt"]


def _runs_of_results(messages: list[dict[str, Any]]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if messages[index - 1]["role"] != "tool":
                runs.append([])
            runs[-1].append(index)
    return runs


@pytest.mark.parametrize("case", CAPTURED["answers"])
def test_answers_are_read_as_deepseek_reads_them(case: dict[str, Any]) -> None:
    reader = reader_of("deepseek-v3.2", Conversation(messages=(USER,), tools=(TOOL,), thinking=case["thinking"]))
    calls = [(name, arguments) for name, arguments in case["calls"]]
    assert read(reader, marked(case["text"])) == (case["reasoning"], case["content"], calls)


def test_what_people_wrote_never_turns_into_a_template_token() -> None:
    text = "".join(DSML_SPECIALS)
    said = [
        Message.of("system", text),
        Message.of("developer", text),
        Message.of("assistant", text, reasoning=text, calls=(Call(name=text, arguments=json.dumps({text: text})),)),
        Message.of("tool", text),
    ]
    plain = [
        Message.of("system", "x"),
        Message.of("developer", "x"),
        Message.of("assistant", "x", reasoning="x", calls=(Call(name="x", arguments='{"x": "x"}'),)),
        Message.of("tool", "x"),
    ]
    ids, expected = (
        [
            id
            for id in rendered(Conversation(messages=tuple(m), tools=(tool,), thinking=True), T, "deepseek-v3.2")
            if T.is_special(id)
        ]
        for m, tool in ((said, Tool(name=text, description=text)), (plain, Tool(name="x", description="x")))
    )
    assert ids == expected


def test_a_model_without_the_mark_gets_it_as_text() -> None:
    lacking = tiny_tokenizer()
    assert lacking.special("｜DSML｜") is None
    shown = prompt(USER, tokenizer=lacking, tools=(TOOL,))
    assert shown == prompt(USER, tools=(TOOL,))
    reader = reader_of("deepseek-v3.2", Conversation(messages=(USER,), tools=(TOOL,)))
    call = '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
    assert read(reader, call) == ("", "", [("f", "{}")])


def test_tools_come_first_without_a_system_message() -> None:
    assert prompt(USER, tools=(TOOL,)).startswith("\n\n## Tools\nYou have access")
    assert prompt(USER, tools=(TOOL,), choice="none") == "<｜User｜>x<｜Assistant｜></think>"


def test_a_demanded_call_is_opened() -> None:
    end = "<｜User｜>x<｜Assistant｜></think>\n\n<｜DSML｜function_calls>\n"
    assert prompt(USER, tools=(TOOL,), choice="required").endswith(end)


def test_prefixes_are_continued() -> None:
    begun = Message.of("assistant", "Well", reasoning="Hm", prefix=True)
    thought = Message.of("assistant", reasoning="Hm", prefix=True)
    assert prompt(USER, begun) == "<｜User｜>x<｜Assistant｜></think>Well"
    assert prompt(USER, begun, thinking=True) == "<｜User｜>x<｜Assistant｜><think>Hm</think>Well"
    assert prompt(USER, thought, thinking=True) == "<｜User｜>x<｜Assistant｜><think>Hm"
    assert prompt(USER, thought) == "<｜User｜>x<｜Assistant｜><think>Hm", "a thought to continue asks for thinking"
    reader = reader_of("deepseek-v3.2", Conversation(messages=(USER, thought)))
    assert read(reader, marked("m.</think>Well.")) == ("m.", "Well.", [])


def test_an_answer_that_follows_no_question_has_its_header_too() -> None:
    """A difference on purpose: the encoder writes the header behind a question only."""
    said = Message.of("assistant", "y")
    assert prompt(said, said, USER) == (
        "<｜Assistant｜></think>y<｜end▁of▁sentence｜>" * 2 + "<｜User｜>x<｜Assistant｜></think>"
    )
    assert prompt(USER, said).endswith("y<｜end▁of▁sentence｜><｜Assistant｜></think>")


REMINDER = Message.of("system", "Be brief.")
CALLED = (USER, Message.of("assistant", calls=(Call(id="a", name="f", arguments="{}"),)), Message.of("tool", "r"))


@pytest.mark.parametrize("thinking", [True, False])
def test_a_system_text_stands_before_what_opens_the_answer(thinking: bool) -> None:
    """A difference on purpose: the encoder writes it behind, into the answer. Coding agents remind so."""
    begin = "<think>" if thinking else "</think>"
    assert prompt(USER, REMINDER, thinking=thinking) == f"<｜User｜>x\n\nBe brief.<｜Assistant｜>{begin}"
    asked = prompt(*CALLED, thinking=thinking)
    results = "<function_results>\n<result>r</result>\n</function_results>\n\n"
    assert asked.endswith(f"{results}{begin}")
    for more in ((REMINDER,), (REMINDER, Message.of("system", ""))):
        assert prompt(*CALLED, *more, thinking=thinking) == asked.removesuffix(begin) + f"Be brief.\n\n{begin}"
    twice = prompt(USER, REMINDER, REMINDER, USER, Message.of("assistant", "y"), REMINDER, USER, thinking=False)
    assert twice == (
        "<｜User｜>x\n\nBe brief.\n\nBe brief.<｜Assistant｜></think><｜User｜>x<｜Assistant｜></think>y"
        "<｜end▁of▁sentence｜>Be brief.<｜User｜>x<｜Assistant｜></think>"
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([Message.of("latest_reminder", "y"), USER], "messages[0].role"),
        ([Message.of("user", "x", task="title")], "messages[0].task"),
    ],
)
def test_what_it_cannot_say_is_refused(messages: list[Message], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        prompt(*messages)
    assert caught.value.param == param
