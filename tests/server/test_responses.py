"""OpenAI's Responses API: its events, answers and errors, and what its clients send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripting import scripted
from serving import CONTEXT, MODEL, client_of, endless, make_service, says
from starlette.testclient import TestClient
from test_anthropic import _stop_soon as stop_soon

from deepwell.server import create_app
from deepwell.server.responses.custom_input import CustomInput
from fakes import FakeRunner
from toy_format import END_THINK, EOS, called, ids

PATH = "/v1/responses"
CLOCK: dict[str, Any] = {"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": False}
SPACE: dict[str, Any] = {"type": "namespace", "name": "wall", "tools": [CLOCK]}
THINKING: dict[str, Any] = {"reasoning": {"effort": "high"}}
ANSWER = ids("Hm, hm.", END_THINK, "I look. ", *called("clock", '{"at":"noon"}'), EOS)
USER: dict[str, Any] = {"role": "user", "content": "Hi"}


def body(input: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": input, **fields}


def events(text: str) -> list[dict[str, Any]]:
    """The data of all events, whose names are their types, and which are numbered."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def answered(client: TestClient, streamed: bool, **fields: Any) -> dict[str, Any]:
    """An answer, whole or out of the last event, which says again what those before said."""
    response = client.post(PATH, json=body() | {"stream": streamed} | fields)
    assert response.status_code == 200, response.text
    if not streamed:
        whole: dict[str, Any] = response.json()
        return whole
    found = events(response.text)
    last: dict[str, Any] = found[-1]["response"]
    assert [event["item"] for event in found if event["type"] == "response.output_item.done"] == last["output"]
    return last


@pytest.mark.parametrize("streamed", [True, False])
def test_a_thought_a_text_and_a_call(streamed: bool) -> None:
    service, _ = scripted(ANSWER)
    with client_of(service) as client:
        answer = answered(client, streamed, tools=[CLOCK], **THINKING)
    id = answer["id"].removeprefix("resp_")
    thought, text, call = answer["output"]
    assert thought == {
        "type": "reasoning",
        "id": f"rs_{id}_0",
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "Hm, hm."}],
        "summary": [],
    }
    assert (text["id"], text["phase"], text["content"][0]["text"]) == (f"msg_{id}_1", "commentary", "I look. ")
    assert (call["id"], call["name"], call["arguments"]) == (f"fc_{id}_2", "clock", '{"at":"noon"}')
    assert (answer["status"], answer["incomplete_details"], answer["error"]) == ("completed", None, None)
    usage = answer["usage"]
    assert usage["output_tokens"] == len(ANSWER)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 7}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_is_cut_off_is_incomplete(streamed: bool) -> None:
    service, _ = scripted(ids("one two three", EOS))
    with client_of(service) as client:
        answer = answered(client, streamed, max_output_tokens=4)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [(item["status"], item["content"][0]["text"]) for item in answer["output"]] == [("incomplete", "one ")]
    assert answer["max_output_tokens"] == 4


def test_what_was_asked_is_said_again() -> None:
    service, _ = scripted(ids("Yes", EOS))
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "tools": [CLOCK, {"type": "web_search"}],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "user": "me",
        "store": True,
        "truncation": "auto",
    }
    with client_of(service) as client:
        answer = answered(client, False, **asked)
    same = {name: value for name, value in asked.items() if name not in ("tools", "store", "truncation")}
    assert {name: answer[name] for name in same} == same
    assert answer["tools"] == [{**CLOCK, "description": None}]
    assert answer["store"] is False


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("carried", [True, False])
def test_a_tool_loop_finds_its_earlier_tokens_in_the_cache(streamed: bool, carried: bool) -> None:
    """Whether the client returns the thought in clear, or only what it was given to carry."""
    first_said = ids(*["Hm, hm. "] * 20, END_THINK, *called("clock", '{ "at":"noon" }'), EOS)
    service, script = scripted(first_said, ids("So.", EOS))
    fields: dict[str, Any] = {"tools": [CLOCK], "store": False, **THINKING}
    if carried:
        fields["include"] = ["reasoning.encrypted_content"]
    with client_of(service) as client:
        thought, call = answered(client, streamed, **fields)["output"]
        assert ("encrypted_content" in thought) == carried
        if carried:
            thought = {name: value for name, value in thought.items() if name != "content"}
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "12:00"}
        second = answered(client, streamed, **fields | {"input": [USER, thought, call, output]})
    before = [*script.prompts[0], *script.answers[0]]
    assert list(script.prompts[1][: len(before)]) == before
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == len(before) // 64 * 64 >= 128


def test_tokens_are_counted_as_they_are_read() -> None:
    service, script = scripted(ids("Yes", EOS))
    with client_of(service) as client:
        counted = client.post(f"{PATH}/input_tokens", json=body(tools=[CLOCK])).json()
        usage = answered(client, False, tools=[CLOCK])["usage"]
    assert counted == {"object": "response.input_tokens", "input_tokens": len(script.prompts[0])}
    assert usage["input_tokens"] == len(script.prompts[0])


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_keeps_to_its_schema(streamed: bool) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    format = {"type": "json_schema", "name": "yes", "schema": schema | {"additionalProperties": False}}
    with client_of(make_service(FakeRunner(context=CONTEXT), format="toy")) as client:
        answer = answered(client, streamed, max_output_tokens=400, text={"format": format})
    assert type(json.loads(answer["output"][0]["content"][0]["text"])["yes"]) is bool
    assert answer["text"]["format"] == format


CODEX: dict[str, Any] = {
    "model": MODEL,
    "instructions": "You are a program.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Look."}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA-of-somebody-else"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "noon"},
        {"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "call_2"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_image", "image_url": "data:"}],
        },
    ],
    "tools": [CLOCK, {"type": "web_search", "external_web_access": False}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0",
    "client_metadata": {},
}


def test_what_codex_sends() -> None:
    service, script = scripted(ids("Hm.", END_THINK, "Done.", EOS))
    with client_of(service) as client:
        response = client.post(PATH, json=CODEX)
        assert response.status_code == 200, response.text
        assert events(response.text)[-1]["response"]["output"][-1]["content"][0]["text"] == "Done."
    text = service.tokenizer.decode(script.prompts[0])
    assert text.index("You are a program.") < text.index("Rules.") < text.index("Look.") < text.index("I look.")
    assert text.index("noon") < text.index("[Unsupported content: input_image]")


def call(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": id, "name": "clock", "arguments": "{}", **fields}


def output(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": id, "output": "noon", **fields}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [USER, call()]}, "input"),
        ({"input": [USER, call(), USER]}, "input[2]"),
        ({"input": [USER, call(), output("b")]}, "input[2]"),
        ({"input": [USER, call(), output(), output()]}, "input[3]"),
        ({"input": [USER, call(), call(), output()]}, "input[2].call_id"),
        ({"input": [USER, call(name=None), output()]}, "input[1].name"),
        ({"input": [USER, call(arguments=None), output()]}, "input[1].arguments"),
        ({"input": [USER, call(), output(output=None)]}, "input[2].output"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom"}]}, "tools[0].name"),
        ({"tools": [SPACE | {"tools": [CLOCK, CLOCK]}]}, "tools[0].tools"),
        ({"tools": [SPACE | {"tools": [{"type": "custom", "name": "a"}]}]}, "tools[0].tools[0].type"),
        ({"tools": [{"type": "namespace", "tools": [CLOCK]}]}, "tools[0].name"),
        ({"tools": [SPACE], "tool_choice": {"type": "function", "name": "clock"}}, "tool_choice"),
        ({"input": [USER, {"type": "custom_tool_call", "call_id": "a", "name": "b"}]}, "input[1].input"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].name"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 3, "max_tokens": 4}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"model": "gpt-9"}, "model"),
    ],
)
def test_faults_are_named(fields: dict[str, Any], param: str) -> None:
    service, _ = scripted(ids("x", EOS))
    with client_of(service) as client:
        response = client.post(PATH, json=body() | fields)
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"input": ' + "[" * 100_000,
        '{"input": [' + '{"role": "user", "content": [' * 50_000,
        '{"input": [' + ",".join(['{"role":"user","content":"x"}'] * 100_000) + "]}",
        '{"input": "x", "tools": [{"type": "function", "name": "a", "parameters": '
        + '{"a":' * 900
        + "1"
        + "}" * 901
        + "]}",
    ],
)
def test_hostile_bodies_are_refused(text: str) -> None:
    with client_of(make_service()) as client:
        response = client.post(PATH, content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("method", "path"), [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel")])
def test_nothing_is_stored(method: str, path: str) -> None:
    with client_of(make_service(FakeRunner(context=CONTEXT, next_token=says("Hi.")))) as client:
        response = client.request(method, f"{PATH}/{path}")
    assert response.status_code == 404
    assert "stores no responses" in response.json()["error"]["message"]


@pytest.mark.parametrize("broken", [0, 3])
def test_an_engine_that_fails_ends_the_stream_with_an_error(broken: int) -> None:
    service, _ = scripted(ids("one two three", EOS), broken_after=broken)
    with client_of(service) as client:
        last = events(client.post(PATH, json=body(stream=True)).text)[-1]
        whole = client.post(PATH, json=body())
    if broken:
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == "server_error"
    else:
        assert (last["type"], last["code"]) == ("error", "server_error")
    assert whole.status_code in (500, 503)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_a_stop_cuts_off_has_failed(streamed: bool) -> None:
    runner = FakeRunner(context=CONTEXT, next_token=endless, delay=0.02)
    service = make_service(runner, drain_seconds=0.05)
    with TestClient(create_app(service)) as client:
        assert client.portal is not None
        client.portal.start_task_soon(stop_soon, service)
        response = client.post(PATH, json=body(max_output_tokens=400, stream=streamed))
    assert response.status_code == (200 if streamed else 503)
    if streamed:
        assert events(response.text)[-1]["type"] == "response.failed"


@pytest.mark.parametrize("streamed", [True, False])
def test_custom_tools_take_a_text_and_namespaces_part_names(streamed: bool) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /[0-9]+/"}
    tools = [{"type": "custom", "name": "sum", "description": "Adds.", "format": grammar}, SPACE]
    service, _ = scripted(ids(*called("sum", '{ "input": "1\\n2"}'), *called("wall__clock", "{}"), EOS))
    with client_of(service) as client:
        answer = answered(client, streamed, tools=tools)
        sum, clock = answer["output"]
        assert (sum["type"], sum["name"], sum["input"]) == ("custom_tool_call", "sum", "1\n2")
        assert (clock["type"], clock["namespace"], clock["name"]) == ("function_call", "wall", "clock")
        assert answer["tools"][0] == tools[0]
        assert answer["tools"][1]["tools"][0]["name"] == "clock"
        outputs = [
            {"type": "custom_tool_call_output", "call_id": sum["call_id"], "output": "3"},
            {"type": "function_call_output", "call_id": clock["call_id"], "output": "noon"},
        ]
        again = client.post(PATH, json=body([USER, sum, clock, *outputs], tools=tools))
        assert again.status_code == 200, again.text


@given(st.text(), st.data())
def test_the_input_of_a_custom_tool_comes_out_however_it_is_cut(text: str, data: st.DataObject) -> None:
    written = data.draw(st.sampled_from([True, False]))
    arguments = data.draw(st.sampled_from(["", " \n"])) + json.dumps({"input": text}, ensure_ascii=written)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arguments)), max_size=8)))
    reader = CustomInput()
    parts = [arguments[a:b] for a, b in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
    assert "".join(map(reader.push, parts)) + reader.finish() == text


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        ('{"in put": 1}', '{"in put": 1}'),
        ("plain text", "plain text"),
        ('{"input": 1}', '{"input": 1}'),
        ('{"inp', '{"inp'),
        ('{"input": "a\\u00', "a"),
        ('{"input": "a\\ud800b\\udc00\\q', "a\ufffdb\ufffd\\q"),
        ('{"input": "a", "more": 1}', "a"),
    ],
)
def test_arguments_of_a_custom_tool_that_are_no_input_are_it_as_they_are(arguments: str, input: str) -> None:
    for step in (1, 100):
        reader = CustomInput()
        parts = [arguments[at : at + step] for at in range(0, len(arguments), step)]
        assert "".join(map(reader.push, parts)) + reader.finish() == input
