"""Whatever a client sends, it gets an answer that says what is wrong, and the server lives on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import CONTEXT, MODEL, T, chat, client_of, make_service, prompt
from starlette.testclient import TestClient

from deepwell.server import ServerLimits
from fakes import FakeRunner
from toy_format import TOY

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BETA = "/beta/completions"
HUGE = 10**400
TOO_LONG = "context_length_exceeded"


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which must have DeepSeek's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] in (error["type"], TOO_LONG, "model_not_found")
    return error


def raw(client: TestClient, body: bytes, content_type: str | None = "application/json") -> Any:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return client.post(CHAT, content=body, headers=headers)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": 3}, "model", "text"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "int"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "messages[0].role",
            "system, developer, user, assistant, tool",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "messages[0].prefix", "assistant"),
        ({"temperature": -0.1}, "temperature", "from 0 to 2"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": HUGE}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0 and up to 1"),
        ({"top_p": 1.01}, "top_p", "above 0 and up to 1"),
        ({"top_k": -2}, "top_k", "at least 0"),
        ({"top_k": HUGE}, "top_k", "at least 0"),
        ({"min_p": 1.5}, "min_p", "from 0 to 1"),
        ({"presence_penalty": -2.5}, "presence_penalty", "from -2 to 2"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 10"),
        ({"seed": -2}, "seed", "2^63-1"),
        ({"seed": 2**63}, "seed", "2^63-1"),
        ({"seed": 1.5}, "seed", "2^63-1"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": -5}, "max_tokens", "at least 1"),
        ({"max_tokens": HUGE}, "max_tokens", "at least 1"),
        ({"max_tokens": "many"}, "max_tokens", "at least 1"),
        ({"max_tokens": 5.5}, "max_tokens", "at least 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "max_tokens is 5"),
        ({"n": 17}, "n", "16"),
        ({"n": 0}, "n", "1 to 16"),
        ({"stop": ["x"] * 17}, "stop", "16"),
        ({"stop": "x" * 1025}, "stop", "up to 1024 characters"),
        ({"stop": [3]}, "stop[0]", "texts"),
        ({"stop": {}}, "stop", "texts"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"320": 1}}, "logit_bias", "319"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
        ({"logit_bias": {str(HUGE): 1}}, "logit_bias", "token ids"),
        ({"logit_bias": [1]}, "logit_bias", "object"),
        ({"stop_token_ids": [320]}, "stop_token_ids", "319"),
        ({"stop_token_ids": [HUGE]}, "stop_token_ids", "token ids"),
        ({"stop_token_ids": [1] * 2000}, "stop_token_ids", "1024"),
        ({"ignore_eos": 1}, "ignore_eos", "true or false"),
        ({"logprobs": 3}, "logprobs", "true or false"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "from 0 to 20"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": "json"}, "response_format", "object"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(
    client: TestClient, fields: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(client.post(CHAT, json=chat() | fields))
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert words in error["message"]
    assert len(error["message"]) < 500
    assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 200


def test_a_missing_field_is_named(client: TestClient) -> None:
    for path in (CHAT, TEXT):
        error = error_of(client.post(path, json={"model": MODEL}))
        assert error["param"] == ("messages" if path == CHAT else "prompt")
        assert "missing" in error["message"]


@pytest.mark.parametrize("model", ["gpt-9", " ", "x" * 10_000])
def test_an_unknown_model_is_not_found(client: TestClient, model: str) -> None:
    for body in (CHAT, chat()), (TEXT, prompt()):
        error = error_of(client.post(body[0], json=body[1] | {"model": model}), 404)
        assert error["param"] == "model"
        assert f"allowed: {MODEL}" in error["message"]


@pytest.mark.parametrize("text", ["hello " * 2_000, "hello " * 20_000, "é" * 3_000_000])
def test_prompt_over_the_context(client: TestClient, text: str) -> None:
    for path, body, param in ((CHAT, chat(text), "messages"), (TEXT, prompt(text), "prompt")):
        error = error_of(client.post(path, json=body))
        assert error["message"].startswith(f"This model's maximum context length is {CONTEXT} tokens. However, you ")
        assert "prompt is too long" in error["message"]
        assert "exceeds the context window" in error["message"]
        assert (error["param"], error["code"]) == (param, TOO_LONG)


def test_an_answer_over_the_context_is_shortened_or_where_strict_refused_in_deepseeks_words(client: TestClient) -> None:
    size = 1 + len(T.encode("A deep well"))
    asked = prompt(max_tokens=CONTEXT, ignore_eos=True)
    assert client.post(TEXT, json=asked).json()["usage"]["total_tokens"] == CONTEXT
    with client_of(make_service(limits=ServerLimits(strict=True))) as strict:
        error = error_of(strict.post(BETA, json=asked))
        assert error["message"] == (
            f"This model's maximum context length is {CONTEXT} tokens. However, you requested {CONTEXT + size} tokens "
            f"({size} in the messages, {CONTEXT} in the completion). Please reduce the length of the messages or "
            f"completion. max_tokens can be at most {CONTEXT - size} here."
        )
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", TOO_LONG, "max_tokens")
        assert strict.post(BETA, json=prompt(max_tokens=CONTEXT - size)).status_code == 200


def test_a_prompt_of_exactly_the_context_can_be_scored(client: TestClient) -> None:
    ids = T.encode("a") * CONTEXT
    body = client.post(TEXT, json=prompt(ids, max_tokens=0, echo=True, logprobs=1)).json()
    assert len(body["choices"][0]["logprobs"]["tokens"]) == CONTEXT
    error = error_of(client.post(TEXT, json=prompt(ids, max_tokens=1)))
    assert str(CONTEXT) in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the request body is empty"),
        (b"{", "not valid JSON"),
        (b'{"model": NaN}', "not valid JSON"),
        (b'{"model": "m", "messages": [{"role": "user"}]} trailing', "not valid JSON"),
        (b"\x00\x01\x02", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[]", "array"),
        (b"null", "null"),
        (b'"text"', "str"),
        (b'{"model": "\xff\xfe"}', "UTF-8"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xe6\xb7"}]}', "UTF-8"),
        (b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"tools": [' + b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"]}", "nested too deeply"),
    ],
)
def test_broken_bodies(client: TestClient, body: bytes, words: str) -> None:
    assert words in error_of(raw(client, body))["message"]


def test_lone_surrogates_are_refused(client: TestClient) -> None:
    body = json.dumps(chat("SURROGATE")).replace("SURROGATE", "\\ud83d x").encode()
    error_of(raw(client, body))


def test_huge_numbers_in_unknown_and_known_fields(client: TestClient) -> None:
    digits = "9" * 100_000
    for field in ("max_tokens", "seed", "temperature", "top_k", "stop_token_ids", "logit_bias"):
        value = {"stop_token_ids": f"[{digits}]", "logit_bias": f'{{"{digits}": 1}}'}.get(field, digits)
        body = json.dumps(chat(FIELD=0)).replace('"FIELD": 0', f'"{field}": {value}').encode()
        assert error_of(raw(client, body))["param"].startswith(field)
    body = json.dumps(chat(unknown=0, max_tokens=1)).replace('"unknown": 0', f'"unknown": {digits}').encode()
    assert raw(client, body).status_code == 200
    body = f'{{"model": "{MODEL}", "prompt": [{digits}]}}'.encode()
    error_of(client.post(TEXT, content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_wrong_content_type(client: TestClient, content_type: str | None) -> None:
    error = error_of(raw(client, json.dumps(chat()).encode(), content_type))
    assert error["param"] == "Content-Type"
    assert "application/json" in error["message"]


def test_content_type_may_name_its_charset(client: TestClient) -> None:
    body = json.dumps(chat(max_tokens=1)).encode()
    assert raw(client, body, "Application/JSON; charset=utf-8").status_code == 200


def test_unknown_paths_and_methods(client: TestClient) -> None:
    for method, path in (("GET", "/v1/nothing"), ("POST", "/v2/chat/completions"), ("POST", "/nothing")):
        assert path in error_of(client.request(method, path), 404)["message"]
    for method, path in (("GET", CHAT), ("DELETE", "/v1/models"), ("PUT", TEXT)):
        assert method in error_of(client.request(method, path), 405)["message"]


def test_body_limit_counts_what_comes_not_what_is_declared() -> None:
    with client_of(make_service(limits=ServerLimits(max_body_bytes=1000))) as client:

        def pieces() -> Any:
            yield from [b"x" * 300] * 10

        headers = {"Content-Type": "application/json"}
        for content in (b"x" * 1001, pieces()):
            assert "1000 bytes" in error_of(client.post(CHAT, content=content, headers=headers), 413)["message"]
        assert client.post(CHAT, json=chat("x" * 400, max_tokens=1)).status_code == 200


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from([2**31, 2**63, -(2**63), HUGE, "", "auto", "text", "user", "\x00", "<｜User｜>"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TEXT_TYPE = st.just("text")
IDS = st.sampled_from(["a", "b"])
ARGUMENTS = st.sampled_from(["{}", '{"a": [1]}', "", "{", "[]"])
CALLED = st.fixed_dictionaries(
    {"id": IDS, "function": st.fixed_dictionaries({"name": st.just("f"), "arguments": ARGUMENTS | JUNK})},
    optional={"type": st.just("function") | JUNK},
)
OFFERED = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g"])}, optional={"description": JUNK, "parameters": JUNK, "strict": JUNK}
        )
        | JUNK,
    }
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "latest_reminder"]) | JUNK,
        "content": st.text(max_size=30)
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": JUNK}))
        | JUNK,
        "prefix": st.booleans() | JUNK,
        "reasoning_content": st.text(max_size=9) | JUNK,
        "tool_calls": st.lists(CALLED, max_size=3) | JUNK,
        "tool_call_id": IDS | JUNK,
    },
)
SHARED = {
    "temperature": st.floats(0, 2) | JUNK,
    "top_p": st.floats(0, 1) | JUNK,
    "top_k": st.integers(0, 400) | JUNK,
    "min_p": st.floats(0, 1) | JUNK,
    "presence_penalty": st.floats(-2, 2) | JUNK,
    "frequency_penalty": st.floats(-2, 2) | JUNK,
    "repetition_penalty": st.floats(0, 10) | JUNK,
    "logit_bias": st.dictionaries(st.integers(-2, 400).map(str), st.floats(-120, 120), max_size=4) | JUNK,
    "seed": st.integers(0, 2**63) | JUNK,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=18) | JUNK,
    "stop_token_ids": st.lists(st.integers(-2, 400), max_size=4) | JUNK,
    "ignore_eos": st.booleans() | JUNK,
    "n": st.integers(1, 3) | JUNK,
    "stream": st.booleans() | JUNK,
    "stream_options": st.just({"include_usage": True}) | JUNK,
}
CHAT_BODY = st.fixed_dictionaries(
    {
        "model": st.just(MODEL) | JUNK,
        "messages": st.lists(MESSAGE, max_size=4) | JUNK,
        "max_tokens": st.integers(-1, 6),
    },
    optional=SHARED
    | {
        "logprobs": st.booleans() | JUNK,
        "top_logprobs": st.integers(-1, 21) | JUNK,
        "thinking": JUNK,
        "response_format": JUNK,
        "reasoning_effort": st.sampled_from(["none", "low", "max"]) | JUNK,
        "tools": st.lists(OFFERED, max_size=3) | JUNK,
        "tool_choice": st.sampled_from(["none", "auto", "required"]) | JUNK,
        "parallel_tool_calls": st.booleans() | JUNK,
    },
)
TEXT_BODY = st.fixed_dictionaries(
    {
        "model": st.just(MODEL) | JUNK,
        "prompt": st.text(max_size=40) | st.lists(st.integers(-1, 321), max_size=20) | JUNK,
        "max_tokens": st.integers(-1, 6),
    },
    optional=SHARED
    | {"logprobs": st.integers(-1, 21) | JUNK, "echo": st.booleans() | JUNK, "suffix": st.text(max_size=9) | JUNK},
)
ANY_BODY = st.tuples(st.just(CHAT), CHAT_BODY) | st.tuples(st.just(TEXT), TEXT_BODY) | st.tuples(st.just(CHAT), JUNK)


@pytest.fixture(scope="module")
def fuzzed() -> Any:
    service = make_service(FakeRunner(context=CONTEXT, next_token=lambda c: None), format=TOY.name)
    with client_of(service) as client:
        yield client


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_BODY)
def test_no_body_breaks_the_server(fuzzed: TestClient, request_: tuple[str, Any]) -> None:
    path, body = request_
    response = fuzzed.post(path, json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error_of(response, response.status_code)
    else:
        assert '"error"' not in response.text


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.tuples(st.binary(max_size=20), st.integers(0, 90)).map(lambda cut: _spliced(*cut)))
def test_no_bytes_break_the_server(fuzzed: TestClient, body: bytes) -> None:
    assert raw(fuzzed, body).status_code in (200, 400, 404)


def _spliced(junk: bytes, at: int) -> bytes:
    body = json.dumps(chat(max_tokens=1)).encode()
    return body[:at] + junk + body[at + len(junk) :]
