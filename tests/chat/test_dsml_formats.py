"""V3.2, V4 and V4.1: how they are found, what they refuse, and tasks; test_dsml_recipe.py has their prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conversations import rendered
from dsml_fakes import DSML_SPECIALS, TASKS, dsml_tokenizer

from deepwell.chat import FORMATS, Call, Conversation, Message, Tool
from deepwell.chat.formats.dsml_family import dsml_format
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

T = dsml_tokenizer()
USER = Message.of("user", "x")
TOOL = Tool(name="f")
BOTH = pytest.mark.parametrize("format", ["deepseek-v4", "deepseek-v4.1"])
OFF: dict[str, Any] = {"thinking": False}


class Lacking(Tokenizer):
    """The tiny tokenizer without some of its special tokens."""

    def __init__(self, *missing: str) -> None:
        self.__dict__.update(T.__dict__)
        self.missing = missing

    def special(self, text: str) -> int | None:
        return None if text in self.missing else super().special(text)


def prompt(format: str, *messages: Message, **more: Any) -> str:
    return T.decode(rendered(Conversation(messages=messages, **more), T, format)).removeprefix(DSML_SPECIALS[0])


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ((), "deepseek-v4.1"),
        (("<｜System｜>",), "deepseek-v4"),
        (("<｜System｜>", "<｜latest_reminder｜>"), "deepseek-v3.2"),
        (("｜DSML｜",), None),
    ],
)
def test_formats_are_told_apart_by_tokens(missing: tuple[str, ...], name: str | None) -> None:
    found = dsml_format(Lacking(*missing))
    assert (found and found.name) == name


def test_formats_are_told_apart_by_model_type() -> None:
    names = {"deepseek_v32": "deepseek-v3.2", "deepseek_v4": "deepseek-v4", "deepseek_v41": "deepseek-v4.1"}
    assert {type: found.name for type in names if (found := dsml_format(T, type))} == names


def test_tokens_count_where_the_model_type_names_no_format() -> None:
    """V3.2 also comes as GGUF files of V3's architecture."""
    found = dsml_format(Lacking("<｜System｜>", "<｜latest_reminder｜>"), "deepseek_v3")
    assert found is not None
    assert found.name == "deepseek-v3.2"
    assert dsml_format(Lacking("｜DSML｜"), "deepseek_v3") is None


@BOTH
def test_what_people_wrote_never_turns_into_a_template_token(format: str) -> None:
    def specials(text: str, name: str) -> list[int]:
        call = Call(name=name, arguments=json.dumps({name: text}), id="1")
        messages = (
            Message.of("system", text),
            Message.of("user", text),
            Message.of("assistant", text, reasoning=text, calls=(call,)),
            Message.of("tool", text, answers="1"),
            Message.of("latest_reminder", text),
        )
        tool = Tool(name=name, description=text, parameters={text: text})
        ids = rendered(Conversation(messages=messages, tools=(tool,)), T, format)
        return [id for id in ids if T.is_special(id)]

    everything = "".join(DSML_SPECIALS)
    assert specials(everything, everything) == specials("x", "x")


@BOTH
@pytest.mark.parametrize("task", TASKS)
def test_a_task_asks_for_a_label(format: str, task: str) -> None:
    header = "<｜Assistant｜></think>" if task == "action" else ""
    asked = f"<｜User｜>x{header}<｜{task}｜>"
    question = Message.of("user", "x", task=task)
    assert prompt(format, question, **OFF) == asked
    told = prompt(format, question, Message.of("assistant", "Label"), USER, **OFF)
    assert told == f"{asked}Label<｜end▁of▁sentence｜><｜User｜>x<｜Assistant｜></think>"
    thinking = prompt(format, question, thinking=True)
    assert thinking.endswith(asked.replace("</think>", "<think>"))


@BOTH
@pytest.mark.parametrize(
    ("messages", "more", "param"),
    [
        ([Message.of("user", "y", task="poem")], {}, "messages[0].task"),
        ([Message.of("system", "y", task="title")], {}, "messages[0].task"),
        ([Message.of("user", "y", task="title"), USER], {}, "messages[0].task"),
        ([USER], {"effort": "huge"}, "reasoning_effort"),
        ([USER], {"choice": "required", **OFF}, "tool_choice"),
        ([USER], {"choice": "required", "tools": (TOOL,), "thinking": True}, "tool_choice"),
        ([USER, Message.of("assistant", "y", prefix=True)], {"choice": TOOL, **OFF}, "tool_choice"),
    ],
)
def test_what_they_cannot_say_is_refused(
    format: str, messages: list[Message], more: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        prompt(format, *messages, **more)
    assert caught.value.param == param


@pytest.mark.parametrize("format", ["deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"])
def test_nesting_has_a_limit(format: str) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(RequestError, match="nested too deeply") as caught:
        prompt(format, USER, tools=(Tool(name="f", parameters=deep),), **OFF)
    assert caught.value.param == "tools[0].function.parameters"
    call = Call(name="f", arguments=json.dumps(deep), id="1")
    text = prompt(format, USER, Message.of("assistant", calls=(call,)), Message.of("tool", "y", answers="1"), **OFF)
    assert f'name="arguments" string="true">{json.dumps(deep)}</' in text


def test_a_demanded_call_rules_out_the_habit_of_thinking() -> None:
    shown = prompt("deepseek-v4", USER, tools=(TOOL,), choice="required")
    assert shown.endswith("<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>\n")


def test_all_formats_of_dsml_offer_tools() -> None:
    assert {"deepseek-v4.1", "deepseek-v4", "deepseek-v3.2"} <= {f.name for f in FORMATS.values() if f.tools}
