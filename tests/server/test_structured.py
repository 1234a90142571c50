"""Answers over HTTP that keep to what the request says of their shape, with and without a thought before them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from serving import chat, client_of, make_service, prompt

from fakes import FakeRunner

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "on": {"type": "boolean"}},
    "required": ["x", "on"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "point", "strict": True, "schema": POINT}}


def answers(*bodies: dict[str, Any], format: str = "toy", **config: Any) -> list[dict[str, Any]]:
    """What a random model answers to each body."""
    with client_of(make_service(FakeRunner(context=4096), format=format, **config)) as client:
        found = []
        for body in bodies:
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["choices"][0])
        return found


@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_a_random_model_keeps_to_a_schema(speculate: str) -> None:
    bodies = [chat(f"point {n}, as json", response_format=SCHEMA, seed=n) for n in range(6)]
    found = answers(*bodies, speculate=speculate)
    assert {choice["finish_reason"] for choice in found} == {"stop"}
    for choice in found:
        jsonschema.validate(json.loads(choice["message"]["content"]), POINT)
    assert len({choice["message"]["content"] for choice in found}) > 1


def test_thought_is_free_and_the_answer_is_strict() -> None:
    bodies = [
        chat(f"json {n}", response_format=SCHEMA, seed=n, thinking={"type": "enabled"}, max_tokens=3000)
        for n in range(4)
    ]
    found = answers(*bodies)
    ended = [choice["message"] for choice in found if choice["finish_reason"] == "stop"]
    assert len(ended) >= 2
    for message in ended:
        jsonschema.validate(json.loads(message["content"]), POINT)
    assert any(message["reasoning_content"] for message in ended)


def test_json_of_no_schema_is_an_object_or_cut_off() -> None:
    found = answers(*(chat("json", response_format={"type": "json_object"}, seed=n, max_tokens=800) for n in range(3)))
    for choice in found:
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
        else:
            assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("format", "field", "words"),
    [
        ({"type": "xml"}, "response_format.type", "json_schema"),
        ({"type": "json_schema"}, "response_format.json_schema.schema", "missing"),
        ({"type": "regex", "regex": "("}, "response_format.regex", "unclosed group"),
        ({"type": "grammar", "grammar": "start: other"}, "response_format.grammar", "other"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(format: dict[str, Any], field: str, words: str) -> None:
    with client_of(make_service(format="toy")) as client:
        answer = client.post("/v1/chat/completions", json=chat("json", response_format=format))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": "[ab]{4}"}, "[ab]{4}"),
        ({"guided_regex": "[ab]{4}"}, "[ab]{4}"),
        ({"guided_choice": ["aa", "bb"]}, "aa|bb"),
        ({"grammar": 'root ::= "a" [b-d]'}, "a[b-d]"),
        ({"guided_grammar": 'start: "a" /[b-d]/'}, "a[b-d]"),
        ({"ebnf": 'root ::= "a" [b-d]'}, "a[b-d]"),
        ({"guided_json": {"const": 7}}, "7"),
        ({"json_schema": '{"enum": [1, 2]}'}, "1|2"),
        ({"structured_outputs": {"choice": ["x", "y"]}}, "x|y"),
        ({"structured_outputs": {"json": {"type": "null"}}}, "null"),
        ({"response_format": {"type": "regex", "pattern": "[ab]"}}, "[ab]"),
        ({"response_format": {"type": "json_schema", "schema": {"type": "boolean"}}}, "true|false"),
    ],
)
def test_names_of_other_servers_hold_on_chats_and_completions(fields: dict[str, Any], pattern: str) -> None:
    with client_of(make_service(FakeRunner(context=4096), format="toy")) as client:
        spoken = client.post("/v1/chat/completions", json=chat(**fields)).json()["choices"][0]
        written = client.post("/v1/completions", json=prompt(["a", "b"], **fields)).json()["choices"]
    assert re.fullmatch(pattern, spoken["message"]["content"])
    assert len(written) == 2
    assert all(re.fullmatch(pattern, choice["text"]) for choice in written)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"regex": "a", "guided_choice": ["b"]}, "guided_choice", "both"),
        ({"guided_json": "[1"}, "guided_json", "JSON schema"),
        ({"grammar": "root ::= ("}, "grammar", ""),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs", "jsn"),
        ({"response_format": {"type": "json_object"}}, "messages", "json"),
        (
            {"response_format": {"type": "json_schema", "schema": {"title": "x" * 300_000}}},
            "response_format.schema",
            "large",
        ),
    ],
)
def test_what_contradicts_itself_or_is_too_much_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with client_of(make_service(format="toy")) as client:
        answer = client.post("/v1/chat/completions", json=chat("Hi", **fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_several_answers_and_streams_keep_to_it() -> None:
    with client_of(make_service(FakeRunner(context=4096), format="toy")) as client:
        several = client.post("/v1/chat/completions", json=chat("json", response_format=SCHEMA, n=3)).json()["choices"]
        streamed = client.post("/v1/chat/completions", json=chat("json", response_format=SCHEMA, stream=True)).text
    assert len(several) == 3
    for choice in several:
        jsonschema.validate(json.loads(choice["message"]["content"]), POINT)
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    jsonschema.validate(json.loads(text), POINT)


def test_strict_tools_over_http_and_what_they_cannot_say() -> None:
    function = {"name": "point", "parameters": POINT, "strict": True}
    tools = [{"type": "function", "function": function}]
    with client_of(make_service(FakeRunner(context=4096), format="deepseek-v3")) as client:
        asked = chat("Hi", tools=tools, tool_choice="required", max_tokens=400)
        said = client.post("/v1/chat/completions", json=asked).json()["choices"][0]
        assert said["finish_reason"] == "tool_calls"
        for call in said["message"]["tool_calls"]:
            jsonschema.validate(json.loads(call["function"]["arguments"]), POINT)
        function["parameters"] = {"type": "object", "properties": {"a": {"not": {}}}}
        refused = client.post("/v1/chat/completions", json=asked)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools[0].function.parameters"
    assert "not at #/properties/a" in refused.json()["error"]["message"]
