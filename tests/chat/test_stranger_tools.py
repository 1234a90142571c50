"""Tools in templates of strangers: rendered as transformers does, refused where no shape is known, texts stay texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from conversations import CALLED, TWICE, answer, call, rendered, result, system, user
from hypothesis import given
from hypothesis import strategies as st
from json_fakes import MARKS, TEMPLATES, stranger_tokenizer

from deepwell.chat import Conversation, Message, Tool, find_format
from deepwell.chat.formats.jinja import shape_of
from deepwell.chat.reading.json_calls import HERMES, LLAMA
from deepwell.errors import RequestError
from fakes import BOS, EOS

render_jinja_template = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
QWEN3 = "Qwen3-0.6B"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "où <b>?"}}, "required": ["city"]}
TOOLS = (Tool(name="weather", description="The weather.", parameters=SCHEMA), Tool(name="clock"))
NOTHING = {"type": "object", "properties": {}}
every_template = pytest.mark.parametrize("name", NAMES)


def told(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as transformers takes them."""
    found = []
    for message in messages:
        plain: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            plain["reasoning_content"] = message.reasoning
        if message.calls:
            functions = [(c.id, {"name": c.name, "arguments": json.loads(c.arguments)}) for c in message.calls]
            plain["tool_calls"] = [{"id": id, "type": "function", "function": function} for id, function in functions]
        if message.answers is not None:
            plain["tool_call_id"] = message.answers
        found.append(plain)
    return found


def listed(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    functions = [
        {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or NOTHING}
        for tool in tools
    ]
    return [{"type": "function", "function": function} for function in functions] or None


TALKS = {
    "a question": [user("Hi")],
    "a system text": [system("Be brief."), user(" Weather? \n")],
    "results": CALLED,
    "results of two calls": TWICE,
    "an answer after results": [system("Be brief."), *TWICE, answer("Grey.\n"), user("Thanks <b>")],
    "calls after results": [*CALLED, answer("Once more.", call("c")), result("blue", "c")],
    "a thought": [user("x"), Message.of("assistant", "y", reasoning="hm"), user("z")],
}


SEVERAL = [talk for talk, messages in TALKS.items() if any(len(message.calls) > 1 for message in messages)]


@pytest.mark.parametrize(
    ("name", "talk"),
    # one template refuses several calls in a turn; see below
    [(name, talk) for name in NAMES for talk in TALKS if not (name == "llama-like" and talk in SEVERAL)],
)
@pytest.mark.parametrize("tools", [TOOLS, ()])
@pytest.mark.parametrize("thinking", [None, False])
def test_tools_and_calls_are_rendered_as_transformers_does(
    name: str, talk: str, tools: Sequence[Tool], thinking: bool | None
) -> None:
    tokenizer, messages = stranger_tokenizer(name), TALKS[talk]
    wishes = {} if thinking is None or name != QWEN3 else {"enable_thinking": thinking}
    (wanted,), _ = render_jinja_template(
        conversations=[told(messages)],
        tools=listed(tools),
        chat_template=tokenizer.template,
        add_generation_prompt=True,
        bos_token=BOS,
        eos_token=EOS,
        **wishes,
    )
    asked = Conversation(messages=tuple(messages), tools=tuple(tools), thinking=thinking if wishes else None)
    ids = rendered(asked, tokenizer, "jinja")
    assert tokenizer.decode(ids) == wanted
    spelled = [mark for mark in MARKS if mark in wanted]
    assert [id for id in ids if tokenizer.is_special(id)][: len(spelled)]


def test_a_template_of_one_call_a_turn_gets_them_one_by_one() -> None:
    """Parallel calls are read, so they are history too."""
    tokenizer = stranger_tokenizer("llama-like")
    apart = [TWICE[0], answer("Let me look.", TWICE[1].calls[0]), TWICE[2], answer("", TWICE[1].calls[1]), TWICE[3]]
    told_apart, together = (
        rendered(Conversation(messages=tuple(talk), tools=TOOLS), tokenizer, "jinja") for talk in (apart, TWICE)
    )
    assert together == told_apart
    assert tokenizer.decode(together).count('"parameters": {"city"') == 1
    assert tokenizer.decode(together).count('"parameters": {}') == 1


@every_template
def test_arguments_that_are_no_object_are_rendered(name: str) -> None:
    tokenizer = stranger_tokenizer(name)
    for arguments in ('{"text": "cut', "[1]", "{'a': 1}", '{"a": 1e400}', '{"a":' * 2500 + "1" + "}" * 2500):
        messages = (user("x"), answer("", call("a", arguments=arguments)), result("no", "a"))
        text = tokenizer.decode(rendered(Conversation(messages=messages, tools=TOOLS), tokenizer, "jinja"))
        as_written = arguments if name == QWEN3 else json.dumps({"arguments": arguments}, ensure_ascii=False)
        assert as_written in text


TEXTS = st.lists(st.sampled_from([*MARKS, "<|", "|>", "<", ">", "im_start", "tool", "\n", "é"]), max_size=4).map(
    "".join
)


@every_template
@given(texts=st.lists(TEXTS.filter(bool), min_size=8, max_size=8))
def test_no_text_of_tools_calls_and_results_spells_a_template_token(name: str, texts: list[str]) -> None:
    tokenizer = stranger_tokenizer(name)

    def specials(a: str, b: str, c: str, d: str, e: str, f: str, g: str, h: str) -> list[int]:
        arguments = json.dumps({a: b, c: [d]})
        messages = (user(e), answer(f, call("1", a, arguments)), result(g, "1"), answer(h), user(e))
        tools = (Tool(name="f", description=b, parameters={"type": "object", c: [d, {e: f}]}),)
        ids = rendered(Conversation(messages=messages, tools=tools), tokenizer, "jinja")
        return [id for id in ids if tokenizer.is_special(id)]

    assert specials(*texts) == specials(*"abcdefgh")


@every_template
def test_words_of_schemas_and_roles_reach_the_template_unmarked(name: str) -> None:
    """Templates ask for them, though tokens are spelled with such words."""
    tokenizer = stranger_tokenizer(name)
    tokenizer = type(tokenizer)(tokenizer)
    assert tokenizer.template is not None
    tokenizer.template += "{{ tools[0].type == 'function' and tools[0].function.parameters.type == 'object' }}"
    tokenizer.template += "{{ messages[1].tool_calls[0].type == 'function' and messages[2].role == 'tool' }}"
    ids = rendered(Conversation(messages=tuple(CALLED), tools=TOOLS), tokenizer, "jinja")
    assert tokenizer.decode(ids).endswith("TrueTrue")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("choice", ["required", TOOLS[1]])
def test_a_call_that_must_come_is_opened_by_the_prompt(name: str, choice: Any) -> None:
    tokenizer = stranger_tokenizer(name)
    asked = Conversation(messages=(user("x"),), tools=TOOLS, choice=choice)
    text = tokenizer.decode(rendered(asked, tokenizer, "jinja"))
    shape = shape_of(tokenizer.template or "")
    assert shape is not None
    assert text.endswith(shape.opening(None if choice == "required" else "clock"))


def test_what_developers_say_is_a_system_text_but_for_a_template_that_knows_them() -> None:
    messages = (Message.of("developer", "Be brief."), user("x"))
    tokenizer = stranger_tokenizer(QWEN3)
    assert "<|im_start|>system\nBe brief." in tokenizer.decode(rendered(Conversation(messages=messages), tokenizer))
    knows = type(tokenizer)(tokenizer)
    knows.template = f"{tokenizer.template}{{# developer #}}".replace('== "user")', '== "developer")')
    assert "<|im_start|>developer\nBe brief." in knows.decode(rendered(Conversation(messages=messages), knows))


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        ('{{ tools }}<tool_call>{\\"name\\": n, \\"arguments\\": a}</tool_call>', HERMES),
        ('{{ tools }}<tool_call><function=f></tool_call>"arguments', None),
        ('{{ tools }}<tool_call>f<arg_key>k</arg_key></tool_call> "arguments', None),
        ('<tool_call>{"name": n, "arguments": a}</tool_call>', None),
        ('{{ tools }}{"name": function name, "parameters": dictionary}', LLAMA),
        ('{{ tools }}<|python_tag|>{"name": "x", "parameters": {}}', LLAMA),
        ('{{ tools }}[TOOL_CALLS][{"name": n, "arguments": a}]', None),
        ('{{ tools }}{"tool_name": "x", "parameters": {}}', None),
        ("{{ messages }}", None),
    ],
)
def test_the_shape_of_calls_is_seen_in_the_template(template: str, shape: Any) -> None:
    assert shape_of(template) is shape


def test_a_template_of_another_shape_takes_no_tools() -> None:
    tokenizer = stranger_tokenizer(QWEN3)
    other = type(tokenizer)(tokenizer)
    other.template = "{{ tools }}[TOOL_CALLS]{{ messages[0].content }}"
    assert not find_format("jinja", other).tools
    with pytest.raises(RequestError, match="has no tools; leave tools out"):
        rendered(Conversation(messages=(user("x"),), tools=TOOLS), other, "jinja")


def test_a_model_may_bring_a_template_of_its_own_for_tools() -> None:
    """Hermes and others do; it is used where tools are offered, as transformers does."""
    tokenizer = stranger_tokenizer(QWEN3)
    named = type(tokenizer)(tokenizer)
    named.template, named.tool_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}", tokenizer.template
    assert named.decode(rendered(Conversation(messages=(user("x"),)), named, "jinja")) == "[x]"
    asked = Conversation(messages=(user("x"),), tools=TOOLS)
    assert rendered(asked, named, "jinja") == rendered(asked, tokenizer, "jinja")
