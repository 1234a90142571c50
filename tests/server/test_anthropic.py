"""Anthropic's Messages API: its events, answers and errors, and what its clients send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from scripting import scripted
from serving import CONTEXT, MODEL, client_of, endless, make_service, says, wait_idle
from starlette.testclient import TestClient

from deepwell.server import ServerLimits, Service, Site, create_app
from fakes import FakeRunner
from toy_format import END_THINK, EOS, called, ids

PATH = "/anthropic/v1/messages"
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CLOCK: dict[str, Any] = {"name": "clock", "description": "The time.", "input_schema": {"type": "object"}}
THINKING: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
ANSWER = ids("Hm, hm.", END_THINK, "I look. ", *called("clock", '{"at":"noon"}'), EOS)
BROKEN = ids(*called("clock", "noon"), EOS)
TWO = ids(*called("clock", "{}"), *called("clock", '{"at": 2}'), EOS)


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "claude-sonnet-4-5", "max_tokens": 64, "messages": [*(messages or (USER,))], **fields}


def events(text: str) -> list[dict[str, Any]]:
    """The data of all events, whose names are their types."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def gathered(found: list[dict[str, Any]]) -> dict[str, Any]:
    """A message as clients gather it from the events of a stream, which must be in order."""
    assert found[0]["type"] == "message_start"
    message: dict[str, Any] = found[0]["message"]
    inputs: dict[int, str] = {}
    for event in found[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == len(message["content"]) - 1
                delta = dict(event["delta"])
                kind = delta.pop("type")
                if kind == "input_json_delta":
                    inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
                else:
                    ((field, more),) = delta.items()
                    message["content"][-1][field] += more
            case "content_block_stop":
                assert event["index"] == len(message["content"]) - 1
            case "message_delta":
                message |= event["delta"]
                message["usage"] = event["usage"]
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def answered(client: TestClient, streamed: bool, **fields: Any) -> dict[str, Any]:
    """An answer, whole or gathered from its events."""
    response = client.post(PATH, json=body(**fields) | {"stream": streamed})
    assert response.status_code == 200, response.text
    if not streamed:
        whole: dict[str, Any] = response.json()
        return whole
    found = events(response.text)
    assert found[-1] == {"type": "message_stop"}
    return gathered(found)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_thought_a_text_and_a_call(streamed: bool) -> None:
    service, _ = scripted(ANSWER)
    with client_of(service) as client:
        message = answered(client, streamed, tools=[CLOCK], **THINKING)
    thought, text, use = message["content"]
    assert thought == {"type": "thinking", "thinking": "Hm, hm.", "signature": message["id"]}
    assert text == {"type": "text", "text": "I look. "}
    assert use["id"].startswith("call_00_")
    assert use == {"type": "tool_use", "id": use["id"], "name": "clock", "input": {"at": "noon"}}
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", MODEL)
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"]["output_tokens"] == len(ANSWER)
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 7}


def test_the_order_of_events() -> None:
    service, _ = scripted(ANSWER)
    with client_of(service) as client:
        found = events(client.post(PATH, json=body(tools=[CLOCK], stream=True, **THINKING)).text)
    kinds = [event["delta"]["type"] if "index" in event and "delta" in event else event["type"] for event in found]
    assert list(dict.fromkeys(kinds)) == [
        "message_start",
        "content_block_start",
        "ping",
        "thinking_delta",
        "signature_delta",
        "content_block_stop",
        "text_delta",
        "input_json_delta",
        "message_delta",
        "message_stop",
    ]
    assert kinds.count("ping") == kinds.count("signature_delta") == 1
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("fields", "end", "text"),
    [
        ({}, ("end_turn", None), "one two three"),
        ({"stop_sequences": ["x", "two"]}, ("stop_sequence", "two"), "one "),
        ({"max_tokens": 4}, ("max_tokens", None), "one "),
    ],
)
def test_how_an_answer_ended(fields: dict[str, Any], end: tuple[str, Any], text: str, streamed: bool) -> None:
    service, _ = scripted(ids("one two three", EOS))
    with client_of(service) as client:
        message = answered(client, streamed, **fields)
    assert (message["stop_reason"], message["stop_sequence"]) == end
    assert message["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize("streamed", [True, False])
def test_thoughts_may_be_left_out(streamed: bool) -> None:
    service, _ = scripted(ids("Hm.", END_THINK, "Cold.", EOS))
    with client_of(service) as client:
        message = answered(client, streamed, thinking={"type": "enabled", "display": "omitted"})
    assert message["content"][0] == {"type": "thinking", "thinking": "", "signature": message["id"]}
    assert message["content"][1]["text"] == "Cold."


@pytest.mark.parametrize("streamed", [True, False])
def test_one_call_alone_where_that_is_asked(streamed: bool) -> None:
    service, _ = scripted(TWO, TWO)
    with client_of(service) as client:
        both = answered(client, streamed, tools=[CLOCK])
        one = answered(client, streamed, tools=[CLOCK], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block["input"] for block in both["content"]] == [{}, {"at": 2}]
    assert [block["input"] for block in one["content"]] == [{}]


def test_arguments_that_are_no_object_are_shown_as_anthropic_has_them_sent_back() -> None:
    service, _ = scripted(BROKEN)
    with client_of(service) as client:
        (use,) = answered(client, False, tools=[CLOCK])["content"]
    assert use["input"] == {"INVALID_JSON": "noon"}


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_keeps_to_its_schema(streamed: bool) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    fields = {"output_config": {"format": {"type": "json_schema", "schema": schema | {"additionalProperties": False}}}}
    with client_of(make_service(FakeRunner(context=CONTEXT), format="toy")) as client:
        (text,) = answered(client, streamed, max_tokens=400, **fields)["content"]
    assert type(json.loads(text["text"])["yes"]) is bool


@pytest.mark.parametrize("streamed", [True, False])
def test_a_tool_loop_finds_its_earlier_tokens_in_the_cache(streamed: bool) -> None:
    """Though the client returns the arguments as an object, whose spacing is not the model's."""
    service, script = scripted(
        ids(*["Hm, hm. "] * 20, END_THINK, *called("clock", '{ "at":"noon" }'), EOS), ids("So.", EOS)
    )
    fields: dict[str, Any] = {"tools": [CLOCK], **THINKING}
    with client_of(service) as client:
        first = answered(client, streamed, max_tokens=1000, **fields)
        use = first["content"][-1]
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "12:00"}]}
        messages = [USER, {"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
        second = answered(client, streamed, **fields | {"messages": messages})
    before = [*script.prompts[0], *script.answers[0]]
    assert list(script.prompts[1][: len(before)]) == before
    hit = len(before) // 64 * 64
    assert second["usage"]["cache_read_input_tokens"] == hit >= 128
    assert second["usage"]["input_tokens"] == len(script.prompts[1]) - hit


def test_tokens_are_counted_as_they_are_read() -> None:
    service, script = scripted(ids("Yes", EOS))
    fields: dict[str, Any] = {"system": "Be brief.", "tools": [CLOCK]}
    with client_of(service) as client:
        counted = client.post(f"{PATH}/count_tokens", json={"model": MODEL, "messages": [USER], **fields}).json()
        usage = answered(client, False, **fields)["usage"]
    assert counted == {"input_tokens": len(script.prompts[0])}
    assert usage["input_tokens"] == len(script.prompts[0])


CLAUDE_CODE: dict[str, Any] = {
    "model": "claude-opus-4-5-20251101",
    "max_tokens": 32000,
    "stream": True,
    "temperature": 1,
    "metadata": {"user_id": "user_" + "0" * 64 + "_account__session_" + "1" * 36},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.0; cch=12345;"},
        {"type": "text", "text": "You are a program.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ],
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "tools": [{**CLOCK, "type": "custom", "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                {"type": "text", "text": "Look."},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "EqQBCgIYAhIM"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_01", "name": "clock", "input": {"file": "a.png"}},
                {"type": "tool_use", "id": "toolu_02", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_02",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
                    ],
                },
                {"type": "tool_result", "tool_use_id": "toolu_01", "content": "none", "is_error": True},
                {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
}


def test_what_claude_code_sends() -> None:
    service, script = scripted(ids("Done.", EOS))
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,x", "x-api-key": "none"}
    with client_of(service) as client:
        response = client.post(f"{PATH}?beta=true", json=CLAUDE_CODE, headers=headers)
        assert response.status_code == 200
        assert gathered(events(response.text))["content"] == [{"type": "text", "text": "Done."}]
    text = service.tokenizer.decode(script.prompts[0])
    assert "You are a program.\n\nBe brief." in text
    assert "billing" not in text
    assert text.index('{"file": "a.png"}') < text.index("none") < text.index("[Unsupported content: image]")
    assert text.index("[Unsupported content: image]") < text.index("Go on.")


@pytest.mark.parametrize("path", [PATH, "/v1/messages"])
def test_names_of_models(path: str) -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=says("Hello.")), aliases=("other",))
    with client_of(service) as client:
        for name, shown in (("claude-3-5-haiku-latest", MODEL), (MODEL, MODEL), ("other", "other")):
            assert client.post(path, json=body(model=name)).json()["model"] == shown
        refused = client.post(path, json=body(model="gpt-9"))
        assert refused.status_code == 404
        assert refused.json()["error"]["type"] == "not_found_error"
        assert client.post("/v1/chat/completions", json=body()).status_code == 404


def test_models_in_anthropics_shape() -> None:
    with client_of(make_service(aliases=("other",))) as client:
        listed = client.get("/anthropic/v1/models").json()
        assert client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json() == listed
        assert client.get("/anthropic/v1/models/other").json() == listed["data"][1]
        assert client.get("/v1/models").json()["object"] == "list"
        missing = client.get("/anthropic/v1/models/gpt-9")
    assert [(model["type"], model["id"], model["max_input_tokens"]) for model in listed["data"]] == [
        ("model", MODEL, CONTEXT),
        ("model", "other", CONTEXT),
    ]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, MODEL, "other")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


def use(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "clock", "input": {}, **fields}


def result(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": "noon", **fields}


def turns(*blocks: dict[str, Any], back: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A request in which the model has said `blocks`, and the user answered with `back`."""
    messages = [USER, {"role": "assistant", "content": list(blocks)}]
    return {"messages": [*messages, {"role": "user", "content": list(back)}] if back else messages}


def nested(depth: int) -> Any:
    return json.loads('{"a":' * depth + "1" + "}" * depth)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": 3}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0]"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        (turns({"type": "redacted_thinking", "data": "x"}), "messages[1].content[0].type"),
        (turns({"type": "thinking", "signature": "x"}), "messages[1].content[0].thinking"),
        (turns({"type": "tool_use", "id": "a", "input": {}}), "messages[1].content[0].name"),
        (turns(use(name="")), "messages[1].content[0].name"),
        (turns(use(), use(), back=(result(),)), "messages[1].content[1]"),
        (turns(use(input="x")), "messages[1].content[0].input"),
        (turns(use()), "messages"),
        (turns(use(), back=({"type": "text", "text": "x"},)), "messages[2]"),
        (turns(use(), back=({"type": "text", "text": "x"}, result())), "messages[2]"),
        (turns(use(), back=(result("b"),)), "messages[2].content[0]"),
        (turns(use(), back=(result(), result())), "messages[2].content[1]"),
        (turns(use(), back=(result(content=[{"type": "text"}]),)), "messages[2].content[0].content[0].text"),
        (turns(use(), back=({"type": "tool_result", "content": "x"},)), "messages[2].content[0].tool_use_id"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].name"),
        ({"tools": [{"name": "a", "input_schema": nested(70)}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [CLOCK], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [CLOCK], "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"tools": [CLOCK], "tool_choice": {"type": "any"}, **THINKING}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"output_config": {"effort": "much"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "regex", "schema": {}}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "thing"}}}},
            "output_config.format.schema",
        ),
        ({"mcp_servers": [{"type": "url", "url": "http://x"}]}, "mcp_servers"),
        ({"container": {"skills": []}}, "container"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequence": ["x"]}, "stop_sequence"),
    ],
)
def test_faults_are_named_in_anthropics_words(fields: dict[str, Any], named: str) -> None:
    service, _ = scripted(ids("x", EOS))
    with client_of(service) as client:
        response = client.post(PATH, json=body() | fields)
    assert response.status_code == 400
    error = response.json()
    assert list(error) == ["type", "error", "request_id"]
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert error["error"]["message"].startswith(named), error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"messages": ' + "[" * 100_000,
        '{"messages": [' + '{"role": "user", "content": [' * 50_000,
        '{"messages": [{"role": "user", "content": ['
        + '{"type": "tool_result", "content": [' * 5_000
        + "]}" * 5_000
        + "]}]}",
        '{"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": '
        + '{"a":' * 900 + "1" + "}" * 900 + "}]}]}",
        '{"messages": [' + ",".join(['{"role":"user","content":"x"}'] * 100_000) + "]}",
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"messages": [{"role": "user", "content": "\xff"}]}',
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused(text: str) -> None:
    with client_of(make_service()) as client:
        response = client.post(PATH, content=text.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_errors_of_every_kind_have_anthropics_shape() -> None:
    service = make_service(limits=ServerLimits(max_body_bytes=2000))
    with TestClient(create_app(service, Site(base_path="/llm"))) as client:
        kinds = {
            client.get("/llm/anthropic/v1/nothing"): (404, "not_found_error"),
            client.get("/v1/messages"): (405, "invalid_request_error"),
            client.post(PATH, content="x" * 3000, headers={"Content-Type": "application/json"}): (
                413,
                "request_too_large",
            ),
            client.post(PATH, content="{}", headers={"Content-Type": "text/plain"}): (400, "invalid_request_error"),
            client.post(f"/llm{PATH}", json=body(messages=[USER] * 20, model="x")): (404, "not_found_error"),
        }
        for response, (status, kind) in kinds.items():
            assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
            assert response.json()["type"] == "error"
            assert response.headers["content-length"] == str(len(response.content))
        assert "param" in client.get("/v1/nothing").json()["error"]
        wait_idle(service)


def test_a_full_and_a_stopped_server_say_so() -> None:
    service = make_service(FakeRunner(context=CONTEXT, delay=0.05), max_running=1, max_waiting=0)
    with TestClient(create_app(service)) as client:
        with service.engine.place():
            full = client.post(PATH, json=body())
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(full.headers["retry-after"]) >= 1
        assert client.portal is not None
        client.portal.call(service.stop)
        stopped = client.post(PATH, json=body())
    assert (stopped.status_code, stopped.json()["error"]["type"]) == (503, "overloaded_error")


@pytest.mark.parametrize(("broken", "names"), [(0, ["error"]), (3, ["message_start", "content_block_start"])])
def test_an_engine_that_fails_ends_the_stream_with_an_error(broken: int, names: list[str]) -> None:
    service, _ = scripted(ids("one two three", EOS), broken_after=broken)
    with client_of(service) as client:
        found = events(client.post(PATH, json=body(stream=True)).text)
    assert [event["type"] for event in found][: len(names)] == names
    assert found[-1]["type"] == "error"
    assert found[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in [event["type"] for event in found]


def test_an_engine_that_fails_is_an_error_in_place_of_a_whole_answer() -> None:
    service, _ = scripted(ids("one two three", EOS), broken_after=2)
    with client_of(service) as client:
        response = client.post(PATH, json=body())
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "api_error"


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_a_stop_cuts_off_is_an_error(streamed: bool) -> None:
    service = _endless()
    with TestClient(create_app(service)) as client:
        assert client.portal is not None
        client.portal.start_task_soon(_stop_soon, service)
        response = client.post(PATH, json=body(max_tokens=400, stream=streamed))
    error = events(response.text)[-1] if streamed else response.json()
    assert error["error"]["type"] == "overloaded_error"
    assert response.status_code == (200 if streamed else 503)


def _endless() -> Service:
    return make_service(FakeRunner(context=CONTEXT, next_token=endless, delay=0.02), drain_seconds=0.05)


async def _stop_soon(service: Service) -> None:
    while not service.engine.stats().running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await service.stop()
