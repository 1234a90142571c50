"""--strict: what DeepSeek's API refuses, ignores and overrides, rule by rule (docs/deepseek-api.md)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from serving import MODEL, chat, client_of, make_service, noted, prompt

from deepwell.engine.types import Request
from deepwell.server import ServerLimits
from deepwell.weights.tokenizer import Tokenizer
from fakes import SPECIALS, FakeRunner, write_tiny_tokenizer

with tempfile.TemporaryDirectory() as folder:
    MARKS = (*SPECIALS, "｜DSML｜", "<｜latest_reminder｜>", "<｜System｜>")
    V41 = Tokenizer.load(write_tiny_tokenizer(Path(folder), 400, MARKS))
ROOM = 4096
CHAT, BETA, TEXT = "/chat/completions", "/beta/chat/completions", "/beta/completions"
TOOL = {"type": "function", "function": {"name": "f"}}
STRICT_TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
THINKING = {"thinking": {"type": "enabled"}}
PLAIN = {"thinking": {"type": "disabled"}}


def ask(path: str, body: dict[str, Any], format: str = "deepseek-v4", **limits: Any) -> tuple[Any, list[Request]]:
    """The answer of a strict server, and what reached its engine."""
    service = make_service(
        FakeRunner(context=ROOM, blocks=64, vocab_size=V41.vocab_size),
        format=format,
        limits=ServerLimits(strict=True, **limits),
        tokenizer=V41,
    )
    seen: list[Request] = []
    noted(service.engine, seen.append)
    with client_of(service) as client:
        return client.post(path, json=body), seen


def test_the_formats_of_today_are_there() -> None:
    answer, (request,) = ask(CHAT, chat(max_tokens=2, **PLAIN))
    assert answer.status_code == 200, answer.text
    assert request.sampling.max_tokens == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": chat()["messages"]}, "model"),
        (CHAT, chat(n=2), "n"),
        (CHAT, chat(max_tokens=0), "max_tokens"),
        (CHAT, chat(max_tokens=-1), "max_tokens"),
        (CHAT, chat(max_tokens=393_217), "max_tokens"),
        (CHAT, chat(max_tokens=ROOM), "max_tokens"),
        (CHAT, chat(seed=-1), "seed"),
        (CHAT, chat(temperature=2.1), "temperature"),
        (CHAT, chat(top_p=0), "top_p"),
        (CHAT, chat(presence_penalty=3), "presence_penalty"),
        (CHAT, chat(stop=["a"] * 17), "stop"),
        (CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
        (CHAT, chat(top_logprobs=2), "top_logprobs"),
        (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (CHAT, chat(user_id="a b"), "user_id"),
        (CHAT, chat(messages=[{"role": "developer", "content": "x"}]), "messages[0].role"),
        (CHAT, chat(tools=[TOOL], tool_choice="required"), "tool_choice"),
        (CHAT, chat(tools=[TOOL], tool_choice=TOOL, **THINKING), "tool_choice"),
        (CHAT, chat(response_format={"type": "json_object"}), "messages"),
        (CHAT, chat(tools=[STRICT_TOOL]), "tools"),
        (BETA, chat(tools=[STRICT_TOOL, TOOL]), "tools[1].function.strict"),
        (CHAT, chat(messages=[*chat()["messages"], {"role": "assistant", "content": "a", "prefix": True}]), "messages"),
        (CHAT, chat(thinking={"type": "maybe"}), "thinking.type"),
        (TEXT, prompt(["a", "b"]), "prompt"),
        (TEXT, prompt([5, 6]), "prompt"),
        (TEXT, prompt("a", max_tokens=4097), "max_tokens"),
        (TEXT, prompt("a", n=2), "n"),
        (TEXT, prompt("a", logprobs=21), "logprobs"),
    ],
)
def test_what_is_refused(path: str, body: dict[str, Any], param: str) -> None:
    answer, _ = ask(path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_an_unknown_model_is_a_400_that_lists_the_names() -> None:
    answer, _ = ask(CHAT, chat() | {"model": "no"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request_error"
    assert MODEL in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/completions", "/v1/completions"])
def test_completions_are_beta(path: str) -> None:
    answer, _ = ask(path, prompt("a"))
    assert answer.status_code == 400
    assert "/beta" in answer.json()["error"]["message"]


def test_what_is_not_known_is_ignored() -> None:
    unknown: dict[str, Any] = {
        "max_completion_tokens": 7,
        "top_k": 3,
        "min_p": 0.5,
        "repetition_penalty": 2,
        "logit_bias": {"5": 9},
        "stop_token_ids": [5],
        "ignore_eos": True,
        "temprature": 0,
        "grammar": "x",
        "mirostat": 2,
        "parallel_tool_calls": False,
        "enable_thinking": True,
    }
    _, (plain,) = ask(CHAT, chat(max_tokens=2, seed=1, **PLAIN))
    answer, (same,) = ask(CHAT, chat(max_tokens=2, seed=1, **PLAIN, **unknown))
    assert answer.status_code == 200, answer.text
    assert same.sampling == plain.sampling
    assert same.prompt == plain.prompt


@pytest.mark.parametrize(
    ("format", "fields", "temperature", "top_p"),
    [
        ("deepseek-v4", {}, 1.0, 1.0),
        ("deepseek-v4", {"tools": [TOOL]}, 1.0, 0.95),
        ("deepseek-v4", PLAIN, 0.3, 0.5),
        ("deepseek-v4.1", {}, 1.0, 0.95),
        ("deepseek-v4.1", PLAIN, 0.3, 1.0),
        ("deepseek-v3.1", {}, 0.3, 0.5),
    ],
)
def test_thinking_has_its_own_sampling(format: str, fields: dict[str, Any], temperature: float, top_p: float) -> None:
    asked = chat(max_tokens=2, temperature=0.3, top_p=0.5, presence_penalty=1, **fields)
    answer, requests = ask(CHAT, asked, format)
    assert answer.status_code == 200, answer.text
    (request,) = requests
    assert (request.sampling.temperature, request.sampling.top_p) == (temperature, top_p)
    assert request.sampling.presence_penalty == (1 if format == "deepseek-v3.1" else 0)


def test_v4_thinks_unless_told_not_to() -> None:
    thinking, _ = ask(CHAT, chat(max_tokens=2))
    plain, _ = ask(CHAT, chat(max_tokens=2, **PLAIN))
    none, _ = ask(CHAT, chat(max_tokens=2, reasoning_effort="none"))
    odd, _ = ask(CHAT, chat(max_tokens=2, reasoning_effort="whatever"))
    assert [
        "reasoning_content" in answer.json()["choices"][0]["message"] for answer in (thinking, plain, none, odd)
    ] == [True, False, False, True]


@pytest.mark.parametrize(("format", "fields", "longest"), [("deepseek-v3.1", {}, 8192), ("deepseek-r1", {}, 32_768)])
def test_older_models_have_shorter_answers(format: str, fields: dict[str, Any], longest: int) -> None:
    answer, _ = ask(CHAT, chat(max_tokens=longest + 1, **fields), format)
    assert str(longest) in answer.json()["error"]["message"]


def test_json_that_is_spoken_of_is_answered() -> None:
    answer, _ = ask(CHAT, chat("Say it as JSON", response_format={"type": "json_object"}, max_tokens=30, **PLAIN))
    assert answer.status_code == 200, answer.text


def test_thoughts_may_not_be_sent_back_to_r1() -> None:
    said = {"role": "assistant", "content": "a", "reasoning_content": "b"}
    turns = [*chat()["messages"], said, *chat()["messages"]]
    assert ask(CHAT, chat(messages=turns, max_tokens=2), "deepseek-r1")[0].status_code == 400
    assert ask(CHAT, chat(messages=turns, max_tokens=2), "deepseek-v4")[0].status_code == 200


def test_logprobs_of_thinkers_came_with_v4() -> None:
    asked = chat(max_tokens=2, logprobs=True)
    assert ask(CHAT, asked, "deepseek-r1")[0].json()["error"]["param"] == "logprobs"
    assert ask(CHAT, asked, "deepseek-v4")[0].status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/detokenize", "/infill", "/v1/files", "/v1/batches"])
def test_extras_are_not_there(path: str) -> None:
    with client_of(make_service(limits=ServerLimits(strict=True))) as client:
        assert client.post(path, json={}).status_code == 404
        assert "embedding" not in client.get("/models").json()["data"][0]["capabilities"]
