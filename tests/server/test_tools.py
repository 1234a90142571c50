"""Tools, thoughts and their history over HTTP: shapes, order of events, rules, and what the model sees."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scripting import CLOCK, TOOLS, WEATHER, scripted
from serving import MODEL, T, chat, client_of
from starlette.testclient import TestClient
from test_bad_input import error_of
from test_chat_completions import events

from toy_format import (
    ASSISTANT,
    BOS,
    CALL,
    END_CALL,
    END_RESULT,
    END_THINK,
    EOS,
    EOT,
    RESULT,
    SEP,
    THINK,
    USER,
    called,
    ids,
)

CHAT = "/v1/chat/completions"
ARGUMENTS = '{ "city":"Köln" }'
TWO_CALLS = ids("I look. ", *called("weather", ARGUMENTS), *called("clock", "{}"), EOS)
THINKING = {"thinking": {"type": "enabled"}}


def ask(answer: list[int], **fields: Any) -> dict[str, Any]:
    service, _ = scripted(answer)
    with client_of(service) as client:
        response = client.post(CHAT, json=chat(**fields))
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body


def stream(answer: list[int], **fields: Any) -> list[Any]:
    service, _ = scripted(answer)
    with client_of(service) as client:
        return events(client.post(CHAT, json=chat(stream=True, **fields)).text)


def deltas(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def seen(**body: Any) -> tuple[int, ...]:
    """The prompt that the model sees."""
    service, script = scripted(ids(EOS))
    with client_of(service) as client:
        response = client.post(CHAT, json={"model": MODEL, **body})
        assert response.status_code == 200, response.text
    return script.prompts[0]


def test_whole_answer_with_two_calls() -> None:
    choice = ask(TWO_CALLS, tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    first, second = message["tool_calls"]
    assert message["content"] == "I look. "
    assert "reasoning_content" not in message
    assert re.fullmatch(r"call_00_[a-zA-Z0-9]{24}", first.pop("id"))
    assert re.fullmatch(r"call_01_[a-zA-Z0-9]{24}", second.pop("id"))
    assert first == {"index": 0, "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
    assert second == {"index": 1, "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def test_content_is_empty_beside_calls_alone() -> None:
    assert ask(ids(*called("clock", "{}"), EOS), tools=TOOLS)["choices"][0]["message"]["content"] == ""


def test_streamed_calls_come_as_openai_sends_them() -> None:
    chunks = stream(TWO_CALLS, tools=TOOLS)
    first, *middle, last = deltas(chunks)
    assert first == {"role": "assistant", "content": ""}
    assert last == {"content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    said = [delta for delta in middle if "content" in delta]
    assert "".join(delta["content"] for delta in said) == "I look. "
    calls = [delta["tool_calls"] for delta in middle[len(said) :]]
    assert all(len(call) == 1 for call in calls)
    for index, (name, arguments) in enumerate([("weather", ARGUMENTS), ("clock", "{}")]):
        begin, *more = [call[0] for call in calls if call[0]["index"] == index]
        assert begin.pop("id").startswith(f"call_{index:02}_")
        assert begin == {"index": index, "type": "function", "function": {"name": name, "arguments": ""}}
        assert all(set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in more)
        assert "".join(piece["function"]["arguments"] for piece in more) == arguments
    assert [call[0]["index"] for call in calls] == sorted(call[0]["index"] for call in calls)


def test_thoughts_come_first_and_are_counted() -> None:
    thought = ids("Let me think 🐳")
    answer = [*thought, *ids(END_THINK, "Cold.", EOS)]
    body = ask(answer, **THINKING)
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Cold.",
        "reasoning_content": "Let me think 🐳",
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(thought)}
    chunks = stream(answer, **THINKING)
    first, *middle, last = deltas(chunks)
    assert first == {"role": "assistant", "content": None, "reasoning_content": ""}
    thoughts = [delta for delta in middle if delta["content"] is None]
    rest = middle[len(thoughts) :]
    assert "".join(delta["reasoning_content"] for delta in thoughts) == "Let me think 🐳"
    assert all(delta["reasoning_content"] is None for delta in rest)
    assert "".join(delta["content"] for delta in rest) == "Cold."
    assert last == {"content": "", "reasoning_content": None}
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(thought)}


def test_an_answer_that_does_not_think_has_no_word_of_it() -> None:
    for fields in ({}, {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}):
        body = ask(ids("Cold.", EOS), **fields)
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "Cold."}
        assert "completion_tokens_details" not in body["usage"]


def test_calls_after_a_thought() -> None:
    body = ask(ids("Hm.", END_THINK, *called("clock", "{}"), EOS), tools=TOOLS, **THINKING)
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "")
    assert message["tool_calls"][0]["function"]["name"] == "clock"


def test_a_cut_off_call_ends_with_length() -> None:
    answer = ids(*called("weather", '{"city": "a long name of a city"}'))
    cut = len(ids(CALL, "weather", SEP, '{"city": "a'))
    choice = ask(answer, tools=TOOLS, max_tokens=cut)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "a'


def test_a_broken_call_is_content_and_ends_with_stop() -> None:
    choice = ask(ids("Well: ", CALL, "wea", EOS), tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": f"Well: {CALL.spelling}wea"}


def test_the_formats_own_end_token_ends_an_answer() -> None:
    body = ask(ids("Done.", EOT))
    assert body["choices"][0]["message"]["content"] == "Done."
    assert body["usage"]["completion_tokens"] == len(ids("Done.", EOT))
    ignored = ask(ids("Done.", EOT, "More"), ignore_eos=True, max_tokens=len(ids("Done.", EOT, "More")))
    assert ignored["choices"][0]["message"]["content"] == "Done.More"


def test_stop_texts_work_on_what_is_said() -> None:
    choice = ask(ids("one two three", EOS), stop=["two"])["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
    thinking = ask(ids("no stop", END_THINK, "stop here", EOS), stop=["stop h"], **THINKING)["choices"][0]
    assert thinking["message"] == {"role": "assistant", "content": "", "reasoning_content": "no stop"}


@pytest.mark.parametrize("streamed", [False, True])
def test_parallel_tool_calls_false_shows_the_first_call_only(streamed: bool) -> None:
    fields = {"tools": TOOLS, "parallel_tool_calls": False}
    if streamed:
        calls = [delta["tool_calls"][0] for delta in deltas(stream(TWO_CALLS, **fields)) if "tool_calls" in delta]
        assert {call["index"] for call in calls} == {0}
    else:
        calls = ask(TWO_CALLS, **fields)["choices"][0]["message"]["tool_calls"]
        assert [call["function"]["name"] for call in calls] == ["weather"]


def test_a_call_can_be_asked_for() -> None:
    required = ask(ids("clock", SEP, "{}", END_CALL, EOS), tools=TOOLS, tool_choice="required")["choices"][0]
    assert required["finish_reason"] == "tool_calls"
    assert required["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    named = {"type": "function", "function": {"name": "weather"}}
    answer = ids(ARGUMENTS, END_CALL, EOS)
    choice = ask(answer, tools=TOOLS, tool_choice=named)["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    begin = next(delta for delta in deltas(stream(answer, tools=TOOLS, tool_choice=named)) if "tool_calls" in delta)
    assert begin["tool_calls"][0]["function"] == {"name": "weather", "arguments": ""}


def test_logprobs_tell_thoughts_from_the_answer() -> None:
    thought, spoken = ids("Hm, hm", END_THINK), ids("Hi ", *called("clock", "{}"), EOS)
    fields = {"tools": TOOLS, "logprobs": True, "top_logprobs": 1, **THINKING}
    whole = ask([*thought, *spoken], **fields)["choices"][0]["logprobs"]
    assert [bytes(token["bytes"]) for token in whole["reasoning_content"]] == [T.token_bytes(id) for id in thought]
    assert [bytes(token["bytes"]) for token in whole["content"]] == [T.token_bytes(id) for id in spoken]
    pieces = [c["choices"][0]["logprobs"] for c in stream([*thought, *spoken], **fields)]
    for kind in ("reasoning_content", "content"):
        assert [token["token"] for piece in pieces if piece for token in piece.get(kind, ())] == [
            token["token"] for token in whole[kind]
        ]
    plain = ask(ids("Hi", EOS), logprobs=True)["choices"][0]["logprobs"]
    assert set(plain) == {"content"}


def call(id: str, name: str = "clock", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*of: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(of), **fields}


def result(id: str, content: Any = "noon") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


USER_TURN = {"role": "user", "content": "Hi"}


def test_history_reaches_the_model_with_results_in_call_order() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        USER_TURN,
        calls(call("a", "weather", ARGUMENTS), call("b"), reasoning_content="Hm."),
        result("b", [{"type": "text", "text": "noon"}, {"type": "text", "text": "sharp"}]),
        result("a", "cold"),
    ]
    expected = ids(BOS, "Be brief.", USER, "Hi", ASSISTANT, THINK, "Hm.", END_THINK)
    expected += ids(*called("weather", ARGUMENTS), *called("clock", "{}"), EOS)
    expected += ids(RESULT, "cold", END_RESULT, RESULT, "noon\n\nsharp", END_RESULT, ASSISTANT, END_THINK)
    assert list(seen(messages=messages)) == expected


def test_offered_tools_and_their_absence_reach_the_model() -> None:
    offered = T.decode(seen(messages=[USER_TURN], tools=TOOLS))
    assert 'weather: {"type":"object","properties":{"city":{"type":"string"}}}\nclock: ' in offered
    assert seen(messages=[USER_TURN], tools=TOOLS, tool_choice="none") == seen(messages=[USER_TURN])


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ({"content": "It is "}, (END_THINK, "It is ")),
        ({"content": None, "reasoning_content": "First, "}, (THINK, "First, ")),
        ({"content": "It is ", "reasoning_content": "Hm."}, (THINK, "Hm.", END_THINK, "It is ")),
    ],
)
def test_a_prefix_is_continued_in_the_thought_or_the_answer(message: dict[str, Any], end: Any) -> None:
    prefix = {"role": "assistant", "prefix": True, **message}
    assert list(seen(messages=[USER_TURN, prefix])) == ids(BOS, USER, "Hi", ASSISTANT, *end)


def test_a_continued_thought_gives_the_rest_alone() -> None:
    prefix = {"role": "assistant", "prefix": True, "content": "", "reasoning_content": "First, "}
    service, _ = scripted(ids("second.", END_THINK, "Done.", EOS))
    with client_of(service) as client:
        body = client.post(CHAT, json={"model": MODEL, "messages": [USER_TURN, prefix]}).json()
    assert body["choices"][0]["message"]["reasoning_content"] == "second."
    assert body["choices"][0]["message"]["content"] == "Done."


@pytest.fixture(scope="module")
def client() -> Any:
    service, _ = scripted()
    with client_of(service) as client:
        yield client


def offered(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function}]


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": {}}, "tools", "128 functions"),
        ({"tools": [WEATHER] * 129}, "tools", "128"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
        ({"tools": [{"type": "web_search", "function": {"name": "a"}}]}, "tools[0].type", "allowed: function"),
        ({"tools": offered()}, "tools[0].function.name", "missing"),
        ({"tools": offered(name="a b")}, "tools[0].function.name", "letters, digits, _ and -"),
        ({"tools": offered(name="x" * 65)}, "tools[0].function.name", "1 to 64"),
        ({"tools": offered(name="")}, "tools[0].function.name", "1 to 64"),
        ({"tools": offered(name="a\n")}, "tools[0].function.name", "1 to 64"),
        ({"tools": offered(name="a", parameters=[])}, "tools[0].function.parameters", "object"),
        ({"tools": offered(name="a", parameters=nested(80))}, "tools[0].function.parameters", "64 levels"),
        ({"tools": offered(name="a", strict="yes")}, "tools[0].function.strict", "bool"),
        ({"tools": [CLOCK, WEATHER, CLOCK]}, "tools[2].function.name", "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice", "offers none"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "none, auto, required"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", "missing"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "date"}}},
            "tool_choice",
            "weather, clock",
        ),
        ({"tools": TOOLS, "tool_choice": "required", **THINKING}, "tool_choice", "thinks"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"thinking": {"type": "maybe"}}, "thinking.type", "enabled, disabled, adaptive"),
        ({"thinking": True}, "thinking", "object"),
        ({"reasoning_effort": "much"}, "reasoning_effort", "low, medium, high"),
    ],
)
def test_a_bad_field_about_tools_and_thinking_is_named(
    client: TestClient, fields: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(client.post(CHAT, json=chat() | fields))
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([{"role": "assistant"}], "messages[1].content", "content or tool_calls is missing"),
        ([result("a")], "messages[1].tool_call_id", "must follow an assistant message"),
        ([{"role": "tool", "content": "x"}], "messages[1].tool_call_id", "which call it answers"),
        ([{"role": "tool", "content": "x", "tool_call_id": ""}], "messages[1].tool_call_id", ">= 1"),
        ([calls(call("a"), call("a"))], "messages[1].tool_calls[1].id", "another call"),
        ([calls(call("a"))], "messages", "missing: 'a'"),
        ([calls(call("a"), call("b")), result("b"), USER_TURN], "messages[3]", "missing: 'a'"),
        ([calls(call("a")), USER_TURN], "messages[2]", "missing: 'a'"),
        ([calls(call("a")), result("c")], "messages[2].tool_call_id", "its calls: 'a'"),
        ([calls(call("a")), result("a"), result("a")], "messages[3].tool_call_id", "answered already"),
        ([calls(call("a")), result("a"), USER_TURN, result("a")], "messages[4].tool_call_id", "must follow"),
        ([calls(call("a")), {**result("a"), "content": None}], "messages[2].content", "missing"),
        ([calls({"id": "a", "function": {"name": "x"}})], "messages[1].tool_calls[0].function.arguments", "missing"),
        ([calls({"id": "a", "function": {"name": "x", "arguments": {}}})], "messages", "expected `str`"),
        ([calls({**call("a"), "type": "custom"})], "messages[1].tool_calls[0].type", "allowed: function"),
        ([calls(call("a", name=""))], "messages[1].tool_calls[0].function.name", "empty"),
        ([calls({"function": {"name": "x", "arguments": "{}"}})], "messages[1].tool_calls[0].id", "missing"),
        ([calls(call("a"), prefix=True)], "messages[1].prefix", "tool_calls"),
        ([{**USER_TURN, "tool_calls": [call("a")]}], "messages[1].tool_calls", "role assistant"),
        ([{**USER_TURN, "reasoning_content": "x"}], "messages[1].reasoning_content", "role assistant"),
        ([{**USER_TURN, "tool_call_id": "a"}], "messages[1].tool_call_id", "role tool"),
        ([{"role": "function", "content": "x"}], "messages[1].role", "developer"),
    ],
)
def test_a_broken_history_is_named(client: TestClient, messages: list[dict[str, Any]], param: str, words: str) -> None:
    error = error_of(client.post(CHAT, json={"model": MODEL, "messages": [USER_TURN, *messages]}))
    assert error["param"].startswith(param)
    assert words in error["message"]
    assert len(error["message"]) < 500


def test_the_model_list_says_what_the_format_can() -> None:
    service, _ = scripted()
    with client_of(service) as client:
        card = client.get("/v1/models").json()["data"][0]
    assert card["capabilities"] == ["completion", "chat", "tools", "thinking", "fim", "embedding"]
    service, _ = scripted(format="deepseek-llm")
    with client_of(service) as client:
        card = client.get("/v1/models").json()["data"][0]
    assert card["capabilities"] == ["completion", "chat", "fim", "embedding"]


def test_no_arguments_at_all_are_an_empty_object() -> None:
    messages = [USER_TURN, calls(call("a", arguments="")), result("a")]
    assert T.decode(ids(*called("clock", "{}"))) in T.decode(seen(messages=messages))


@pytest.mark.parametrize(
    "arguments",
    ["{", '{"text": "cut', "[1]", "null", "{'a': 1}", json.dumps(nested(70)), '{"a":' * 100_000 + "1" + "}" * 100_000],
)
@pytest.mark.parametrize("format", ["deepseek-v3", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4"])
def test_calls_whose_arguments_are_no_object_are_history_too(arguments: str, format: str) -> None:
    """As they were written, in the one parameter that DeepSeek's encoder makes of them in DSML: models write such."""
    service, script = scripted(ids(EOS), format=format)
    messages = [USER_TURN, calls(call("a", arguments=arguments)), result("a")]
    with client_of(service) as client:
        response = client.post(CHAT, json={"model": MODEL, "messages": messages, "max_tokens": 1})
    if len(arguments) > 1000:
        assert "maximum context" in error_of(response)["message"] or error_of(response)["param"] == "messages"
        return
    assert response.status_code == 200, response.text
    inside = arguments if "{}" not in arguments else '{"a": {"a": {}}}'
    assert inside in T.decode(script.prompts[0])


def test_no_number_of_calls_is_too_much() -> None:
    """A model may write more of them than tools can be offered."""
    made = [call(str(n)) for n in range(200)]
    messages = [USER_TURN, calls(*made), *(result(str(n)) for n in range(200))]
    assert T.decode(seen(messages=messages)).count("clock") == 200


def test_a_format_without_tools_and_thoughts_says_so() -> None:
    service, _ = scripted(format="deepseek-llm")
    with client_of(service) as client:
        history = {"messages": [USER_TURN, calls(call("a")), result("a")]}
        thought = {"role": "assistant", "content": None, "reasoning_content": "x", "prefix": True}
        for fields, param in (
            ({"tools": TOOLS}, "tools"),
            (THINKING, "thinking.type"),
            (history, "messages[1]"),
            ({"messages": [USER_TURN, thought]}, "messages[1].reasoning_content"),
        ):
            error = error_of(client.post(CHAT, json=chat() | fields))
            assert error["param"] == param
        assert client.post(CHAT, json=chat(tools=TOOLS, tool_choice="none", max_tokens=1)).status_code == 200


def test_many_long_tools_are_refused_by_the_context_or_the_body_limit() -> None:
    service, _ = scripted(context=512)
    with client_of(service) as client:
        long = offered(name="a", description="word " * 20_000)
        assert "context length is 512 tokens" in error_of(client.post(CHAT, json=chat(tools=long)))["message"]
        huge = offered(name="a", description="x" * (9 << 20))
        error_of(client.post(CHAT, json=chat(tools=huge)), 413)
