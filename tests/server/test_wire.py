"""What clients of other servers send means here what it means there, or is refused by its name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from serving import CONTEXT, MODEL, chat, client_of, make_service, noted, prompt, says
from starlette.testclient import TestClient
from test_bad_input import CHAT, TEXT, error_of

from deepwell.chat import FORMATS
from deepwell.chat.formats.base import Format
from deepwell.engine.types import Request
from deepwell.server import ServerLimits
from deepwell.server.conversations import conversation_of
from deepwell.server.protocol import ChatRequest, CompletionRequest
from deepwell.server.unsupported import Unsupported
from fakes import FakeRunner


def asked_of_engine(path: str, body: dict[str, Any], **options: Any) -> Request:
    """What the engine is asked to do."""
    service = make_service(**options)
    seen: list[Request] = []
    noted(service.engine, seen.append)
    with client_of(service) as client:
        assert client.post(path, json=body).status_code == 200
    return seen[0]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_beam_search", True),
        ("typical_p", 0.9),
        ("mirostat", 2),
        ("repeat_penalty", 1.1),
        ("dry_multiplier", 0.8),
        ("xtc_probability", 0.5),
        ("samplers", ["top_k"]),
        ("min_tokens", 3),
        ("n_predict", 12),
        ("allowed_token_ids", [1]),
        ("bad_words", ["no"]),
        ("lora", [{"id": 0, "scale": 1}]),
        ("truncate_prompt_tokens", 5),
        ("prompt_logprobs", 1),
        ("return_token_ids", True),
        ("skip_special_tokens", False),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_what_would_change_the_answer_is_refused_by_its_name(
    client: TestClient, path: str, field: str, value: Any
) -> None:
    error = error_of(client.post(path, json=(chat() if path == CHAT else prompt()) | {field: value}))
    assert error["param"] == field
    assert error["message"].startswith(field)


@pytest.mark.parametrize(
    "field", ["best_of", "continue_final_message", "echo", "reasoning", "documents", "chat_template"]
)
def test_so_is_what_belongs_to_chats(client: TestClient, field: str) -> None:
    assert error_of(client.post(CHAT, json=chat(**{field: {"a": 1}})))["param"] == field


NEUTRAL: dict[str, Any] = {
    "best_of": 1,
    "grammar": "",
    "guided_json": None,
    "logit_bias": {},
    "min_p": 0,
    "typical_p": 1.0,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "xtc_probability": 0.0,
    "samplers": [],
    "n_predict": -1,
    "use_beam_search": False,
    "length_penalty": 1,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "stop": "",
    "seed": -1,
    "top_k": -1,
    "max_tokens": -1,
    "n": 1,
    # OpenAI's, OpenRouter's and llama.cpp's fields that change no answer
    "metadata": {"a": "b"},
    "user": "me",
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "x",
    "safety_identifier": "x",
    "prediction": {"type": "content", "content": "x"},
    "cache_prompt": True,
    "id_slot": 0,
    "timings_per_token": True,
}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_asks_for_nothing_is_accepted(path: str) -> None:
    body = chat() if path == CHAT else prompt()
    plain, neutral = asked_of_engine(path, body), asked_of_engine(path, body | NEUTRAL)
    assert neutral.sampling == plain.sampling
    assert neutral.prompt == plain.prompt


def test_every_unsupported_field_is_known_to_both_endpoints() -> None:
    own = {"best_of", "echo", "add_special_tokens"}
    for kind in (ChatRequest, CompletionRequest):
        assert set(Unsupported.__struct_fields__) <= set(kind.__struct_fields__)
    assert own <= set(Unsupported.__struct_fields__), "which completions support, and chats do not"


@pytest.mark.parametrize("stop", ["", [""], ["", "two", ""]])
def test_empty_stop_texts_stop_nothing(stop: Any) -> None:
    runner = FakeRunner(context=CONTEXT, next_token=says("one two"))
    with client_of(make_service(runner)) as client:
        content = client.post(CHAT, json=chat(stop=stop)).json()["choices"][0]["message"]["content"]
    assert content == ("one " if "two" in stop else "one two")


def test_a_model_left_out_is_the_one_that_is_loaded() -> None:
    with client_of(make_service(aliases=("deepseek-chat",))) as client:
        for body in (chat(max_tokens=1), prompt(max_tokens=1)):
            path = CHAT if "messages" in body else TEXT
            del body["model"]
            assert client.post(path, json=body).json()["model"] == MODEL
            for nothing in (None, ""):
                assert client.post(path, json=body | {"model": nothing}).json()["model"] == MODEL
            assert client.post(path, json=body | {"model": "deepseek-chat"}).json()["model"] == "deepseek-chat"


def test_both_names_of_max_tokens_may_agree(client: TestClient) -> None:
    body = client.post(CHAT, json=chat(max_tokens=2, max_completion_tokens=2)).json()
    assert body["usage"]["completion_tokens"] == 2
    assert client.post(CHAT, json=chat(max_tokens=-1)).json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("format", "fields", "answer"),
    [
        ("deepseek-v3", {}, None),
        ("deepseek-r1", {}, 32_768),
        ("deepseek-r1-0528", {}, 32_768),
        ("deepseek-v3.1", {"thinking": {"type": "enabled"}}, None),
        ("deepseek-v3", {"max_tokens": 7}, 7),
        ("deepseek-r1", {"max_tokens": 40_000}, 40_000),
    ],
)
def test_an_answer_may_be_as_long_as_its_family_has_it(format: str, fields: dict[str, Any], answer: int | None) -> None:
    runner = FakeRunner(context=50_000, next_token=says("Hi"))
    asked = asked_of_engine(CHAT, chat(**fields), runner=runner, format=format)
    assert asked.sampling.max_tokens == (answer or 50_000 - len(asked.prompt))
    limited = asked_of_engine(CHAT, chat(), runner=runner, format=format, limits=ServerLimits(max_tokens=9))
    assert limited.sampling.max_tokens == 9


def thinking_of(format: Format, **fields: Any) -> bool | None:
    messages = [{"role": "user", "content": "Hi"}]
    return conversation_of(msgspec.convert({"messages": messages, **fields}, ChatRequest), format).thinking


@pytest.mark.parametrize("name", ["deepseek-v3.1", "deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"])
def test_name_effort_and_template_options_turn_thinking_on_and_off(name: str) -> None:
    format = FORMATS[name]
    assert set(format.names) == {"deepseek-chat", "deepseek-reasoner"}
    assert thinking_of(format) is None
    assert thinking_of(format, model="deepseek-chat") is False
    assert thinking_of(format, model="deepseek-reasoner") is True
    assert thinking_of(format, model="deepseek-chat", thinking={"type": "enabled"}) is True
    assert thinking_of(format, model="deepseek-reasoner", thinking={"type": "disabled"}) is False
    assert thinking_of(format, model="deepseek-reasoner", reasoning_effort="none") is False
    assert thinking_of(format, reasoning_effort="high") is True
    assert thinking_of(format, reasoning_effort="minimal") is format.efforts
    assert thinking_of(format, chat_template_kwargs={"thinking": True}) is True
    assert thinking_of(format, chat_template_kwargs={"enable_thinking": False}) is False
    assert thinking_of(format, enable_thinking=False, reasoning_effort="high") is False


def test_a_demanded_call_comes_before_what_only_implies_thinking() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for fields in ({"model": "deepseek-reasoner"}, {"reasoning_effort": "high"}):
        assert thinking_of(FORMATS["deepseek-v3.1"], tools=tools, tool_choice="required", **fields) is None


def test_template_options_that_are_not_known_are_refused(client: TestClient) -> None:
    error = error_of(client.post(CHAT, json=chat(chat_template_kwargs={"tone": "kind"})))
    assert error["param"] == "chat_template_kwargs"
    assert "tone" in error["message"]
    error = error_of(client.post(CHAT, json=chat(chat_template_kwargs={"thinking": True})))
    assert error["param"] == "chat_template_kwargs.thinking"


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("streams", "stream"), ("logit_biases", "logit_bias")],
)
def test_a_slip_in_a_name_is_no_other_servers_field(client: TestClient, slip: str, meant: str) -> None:
    for path, body in ((CHAT, chat()), (TEXT, prompt())):
        response = client.post(path, json=body | {slip: 1})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["message"] == f"{slip} is no field of this request; did you mean {meant}?"
        assert error["param"] == slip


def test_other_unknown_fields_are_ignored(client: TestClient) -> None:
    """Of clients that were tried, and of servers that they are written for."""
    fields = (
        "provider",
        "transforms",
        "route",
        "keep_alive",
        "options",
        "priority",
        "extra_body",
    )
    assert client.post(CHAT, json=chat() | dict.fromkeys(fields, 1)).status_code == 200
