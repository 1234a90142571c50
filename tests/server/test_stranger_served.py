"""Models with a stranger's template as clients meet them: tools, thoughts and history in Qwen's words, streamed and
whole."""

from __future__ import annotations

from typing import Any

import pytest
from json_fakes import HERMES_MARKS, THOUGHT_MARKS, stranger_tokenizer
from scripting import TOOLS, scripted
from serving import chat, client_of
from test_bad_input import error_of
from test_chat_completions import events

from deepwell.weights.tokenizer import Tokenizer
from fakes import EOS

CHAT = "/v1/chat/completions"
QWEN2, QWEN3 = "Qwen2.5-7B-Instruct", "Qwen3-0.6B"
TAGS = (*HERMES_MARKS, *THOUGHT_MARKS)
KINDS = {
    "tags": lambda name: stranger_tokenizer(name, tags=TAGS),
    "special": lambda name: stranger_tokenizer(name),
    "text": lambda name: stranger_tokenizer(name, *TAGS),
}
TWO_CALLS = (
    "I look.\n",
    "<tool_call>",
    '\n{"name": "weather", "arguments": { "city":"Köln" }}\n',
    "</tool_call>",
    "\n",
    "<tool_call>",
    '\n{"name": "clock", "arguments": {}}\n',
    "</tool_call>",
    EOS,
)
THINK, DO_NOT = ({"thinking": {"type": kind}} for kind in ("enabled", "disabled"))
CALLED = [("weather", '{ "city":"Köln" }'), ("clock", "{}")]


def ids(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """What a model samples to say `parts`."""
    found: list[int] = []
    for part in parts:
        id = tokenizer.special(part)
        found += tokenizer.encode(part) if id is None else [id]
    return found


def gathered(chunks: list[Any]) -> tuple[str, str, list[tuple[str, str]]]:
    """Thought, content and calls of a stream."""
    thought, content, calls = "", "", list[tuple[str, str]]()
    for chunk in chunks:
        for choice in chunk["choices"]:
            thought += choice["delta"].get("reasoning_content") or ""
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                function = call["function"]
                calls += [(function["name"], "")] if "name" in function else []
                calls[-1] = (calls[-1][0], calls[-1][1] + function["arguments"])
    return thought, content, calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_loop_in_qwens_words(kind: str, streamed: bool) -> None:
    tokenizer = KINDS[kind](QWEN2)
    service, script = scripted(
        ids(tokenizer, *TWO_CALLS), ids(tokenizer, "Grey.", EOS), format="jinja", tokenizer=tokenizer
    )
    with client_of(service) as client:
        response = client.post(CHAT, json=chat(tools=TOOLS, stream=streamed))
        assert response.status_code == 200, response.text
        if streamed:
            assert gathered(events(response.text)) == ("", "I look.\n", CALLED)
            made = [{"id": str(n), "function": {"name": f, "arguments": a}} for n, (f, a) in enumerate(CALLED)]
            message = {"role": "assistant", "content": "I look.\n", "tool_calls": made}
        else:
            (choice,) = response.json()["choices"]
            message = choice["message"]
            assert choice["finish_reason"] == "tool_calls"
            assert message["content"] == "I look.\n"
            assert [tuple(call["function"].values()) for call in message["tool_calls"]] == CALLED
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "so"} for call in message["tool_calls"]]
        messages = [*chat()["messages"], message, *results]
        again = client.post(CHAT, json=chat(tools=TOOLS) | {"messages": messages})
        assert again.json()["choices"][0]["message"]["content"] == "Grey.", again.text
    first, second = (tokenizer.decode(prompt) for prompt in script.prompts)
    assert '<tools>\n{"type": "function", "function": {"name": "weather", "description": "The weather in' in first
    assert "<tool_response>\nso\n</tool_response>\n<tool_response>\nso\n</tool_response><|im_end|>" in second
    if not streamed:
        assert second.startswith(first), "the turn stands in the prompt as it was sampled"
        assert script.prompts[1][len(script.prompts[0]) :][: len(ids(tokenizer, *TWO_CALLS)) - 1] == tuple(
            ids(tokenizer, *TWO_CALLS[:-1])
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wish", [{}, THINK, DO_NOT, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_a_thought_and_a_call_of_a_thinking_template(kind: str, wish: dict[str, Any]) -> None:
    tokenizer = KINDS[kind](QWEN3)
    thought = () if wish not in ({}, THINK) else ("<think>", "\nHm.\n", "</think>", "\n\n")
    answer = ids(tokenizer, *thought, *TWO_CALLS[1:4], EOS)
    service, script = scripted(answer, format="jinja", tokenizer=tokenizer)
    with client_of(service) as client:
        body = client.post(CHAT, json=chat(tools=TOOLS, **wish)).json()
    message = body["choices"][0]["message"]
    assert message.get("reasoning_content", "") == ("Hm." if thought else "")
    assert (message["content"], message["tool_calls"][0]["function"]["name"]) == ("", "weather")
    closed = tokenizer.decode(script.prompts[0]).endswith("<think>\n\n</think>\n\n")
    assert closed == (not thought)
    if thought and kind != "text":
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(ids(tokenizer, "\nHm.\n"))


def test_a_call_that_must_come() -> None:
    tokenizer = KINDS["tags"](QWEN3)
    service, script = scripted(ids(tokenizer, '{"a": 1}}\n', "</tool_call>", EOS), format="jinja", tokenizer=tokenizer)
    named = {"type": "function", "function": {"name": "clock"}}
    with client_of(service) as client:
        body = client.post(CHAT, json=chat(tools=TOOLS, tool_choice=named)).json()
    assert body["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": '{"a": 1}'}
    assert tokenizer.decode(script.prompts[0]).endswith('<tool_call>\n{"name": "clock", "arguments": ')


def test_a_cut_call_may_be_sent_back() -> None:
    tokenizer = KINDS["tags"](QWEN2)
    cut = ids(tokenizer, "<tool_call>", '\n{"name": "weather", "arguments": {"city": "Kö')
    service, _ = scripted([*cut, *cut], ids(tokenizer, "Again.", EOS), format="jinja", tokenizer=tokenizer)
    with client_of(service) as client:
        choice = client.post(CHAT, json=chat(tools=TOOLS, max_tokens=len(cut))).json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "")
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["arguments"] == '{"city": "Kö'
        result = {"role": "tool", "tool_call_id": call["id"], "content": "cut"}
        messages = [*chat()["messages"], choice["message"], result]
        again = client.post(CHAT, json=chat(tools=TOOLS) | {"messages": messages})
    assert again.json()["choices"][0]["message"]["content"] == "Again.", again.text


def test_a_template_of_no_known_shape_takes_no_tools() -> None:
    tokenizer = type(KINDS["tags"](QWEN2))(KINDS["tags"](QWEN2))
    tokenizer.template = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
    service, _ = scripted(format="jinja", tokenizer=tokenizer)
    with client_of(service) as client:
        assert error_of(client.post(CHAT, json=chat(tools=TOOLS)))["param"] == "tools"
