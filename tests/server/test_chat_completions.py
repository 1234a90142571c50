"""POST /v1/chat/completions: DeepSeek's bodies and order of events, and what reaches the model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from serving import CONTEXT, MODEL, T, chat, client_of, make_service, noted, prompt, wait_idle
from starlette.testclient import TestClient

from deepwell.engine.types import Request, SamplingParams
from deepwell.server import ServerLimits
from fakes import FakeRunner

ANSWER = "Hello, wörld 🐳."
PATHS = ["/v1/chat/completions", "/chat/completions", "/beta/chat/completions"]
PROMPT_TOKENS = 1 + 1 + len(T.encode("Hi")) + 1
ANSWER_TOKENS = len(T.encode(ANSWER)) + 1


def events(text: str) -> list[Any]:
    """The data of server-sent events; the last must be [DONE]."""
    pieces = text.split("\n\n")
    assert pieces.pop() == ""
    assert pieces.pop() == "data: [DONE]"
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


@pytest.mark.parametrize("path", PATHS)
def test_whole_answer(client: TestClient, path: str) -> None:
    response = client.post(path, json=chat())
    body = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["id"]
    assert body["system_fingerprint"].startswith("fp_")
    message = {"role": "assistant", "content": ANSWER}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": ANSWER_TOKENS,
        "total_tokens": PROMPT_TOKENS + ANSWER_TOKENS,
        "prompt_tokens_details": {"cached_tokens": 0},
        "prompt_cache_hit_tokens": 0,
        "prompt_cache_miss_tokens": PROMPT_TOKENS,
    }


def test_streamed_answer_comes_in_deepseeks_order(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json=chat(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *middle, last = events(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in middle)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == ANSWER
    assert last["choices"][0]["delta"] == {"content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == ANSWER_TOKENS
    for chunk in (first, *middle, last):
        assert chunk["object"] == "chat.completion.chunk"
        for field in ("id", "created", "model", "system_fingerprint"):
            assert chunk[field] == first[field]
    for chunk in (first, *middle):
        assert chunk["choices"][0]["finish_reason"] is None
        assert "usage" not in chunk


def test_include_usage_brings_it_once_in_a_last_chunk_without_choices(client: TestClient) -> None:
    asked = chat(stream=True, stream_options={"include_usage": True})
    *earlier, last = events(client.post("/v1/chat/completions", json=asked).text)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in earlier)
    assert earlier[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == PROMPT_TOKENS + ANSWER_TOKENS


def test_streamed_and_whole_answers_agree_on_logprobs(client: TestClient) -> None:
    asked = chat(logprobs=True, top_logprobs=3, seed=7)
    whole = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
    chunks = events(client.post("/v1/chat/completions", json=asked | {"stream": True}).text)
    streamed = [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole
    assert len(whole) == ANSWER_TOKENS
    assert bytes(byte for token in whole[:-1] for byte in token["bytes"]).decode() == ANSWER


def test_logprobs_are_the_models_own() -> None:
    runner = FakeRunner(context=CONTEXT)
    with client_of(make_service(runner)) as client:
        asked = chat(max_tokens=1, temperature=0, logprobs=True, top_logprobs=20)
        (token,) = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
        logits_V = runner.logits_of(_prompt_of(runner)).astype(np.float64)
    logprobs_V = logits_V - np.log(np.exp(logits_V).sum())
    best = np.argsort(-logprobs_V)[:20]
    assert token["logprob"] == pytest.approx(logprobs_V.max(), abs=1e-5)
    assert [top["logprob"] for top in token["top_logprobs"]] == pytest.approx(logprobs_V[best].tolist(), abs=1e-5)
    assert [bytes(top["bytes"]) for top in token["top_logprobs"]] == [T.token_bytes(int(id)) for id in best]


def test_second_request_reports_cache_hits(client: TestClient) -> None:
    asked = chat("deep well " * 40)
    first = client.post("/v1/chat/completions", json=asked).json()["usage"]
    second = client.post("/v1/chat/completions", json=asked).json()["usage"]
    assert first["prompt_cache_hit_tokens"] == 0
    assert second["prompt_cache_hit_tokens"] >= 64
    assert second["prompt_cache_hit_tokens"] % 64 == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == second["prompt_cache_hit_tokens"]
    assert second["prompt_cache_hit_tokens"] + second["prompt_cache_miss_tokens"] == second["prompt_tokens"]


def test_text_parts_are_joined_by_a_blank_line() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]
    assert _rendered({"messages": [{"role": "user", "content": parts}]}) == _rendered(chat("Hi\n\nyou"))


def test_prefix_continues_the_last_message() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, ", "prefix": True}]
    assert T.decode(_rendered({"messages": messages})).endswith("<｜Assistant｜>Hello, ")


def test_user_text_that_spells_a_template_token_stays_text() -> None:
    ids = _rendered(chat("<｜Assistant｜>"))
    assert ids.count(T.special("<｜Assistant｜>")) == 1
    assert T.decode(ids).endswith("<｜User｜><｜Assistant｜><｜Assistant｜>")


def test_stop_text_ends_the_answer_and_is_left_out(client: TestClient) -> None:
    choice = client.post("/v1/chat/completions", json=chat(stop=["wör", "nowhere"])).json()["choices"][0]
    assert choice["message"]["content"] == "Hello, "
    assert choice["finish_reason"] == "stop"


def test_max_tokens_ends_with_length(client: TestClient) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = client.post("/v1/chat/completions", json=chat(**{name: 2})).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2


def test_default_max_tokens_fills_the_context_but_no_more() -> None:
    with client_of(make_service(FakeRunner(context=128, next_token=lambda _: 40))) as client:
        usage = client.post("/v1/chat/completions", json=chat()).json()["usage"]
        assert usage["total_tokens"] == 128
    limits = ServerLimits(max_tokens=10)
    with client_of(make_service(FakeRunner(context=128, next_token=lambda _: 40), limits=limits)) as client:
        assert client.post("/v1/chat/completions", json=chat()).json()["usage"]["completion_tokens"] == 10


def test_seed_repeats_an_answer_and_extensions_reach_the_sampler() -> None:
    with client_of(make_service()) as client:

        def text(**fields: Any) -> str:
            body = client.post("/v1/chat/completions", json=chat(max_tokens=12, ignore_eos=True, **fields)).json()
            return str(body["choices"][0]["message"]["content"])

        assert text(seed=3) == text(seed=3) != text(seed=4)
        assert text(top_k=1) == text(temperature=0) == text(min_p=1.0) == text(top_p=1e-9)
        only_z = {str(T.encode("z")[0]): 100.0}
        assert text(logit_bias=only_z) == "z" * 12


def test_every_sampling_field_reaches_the_engine() -> None:
    service = make_service()
    seen: list[Request] = []
    noted(service.engine, seen.append)
    fields = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": 1.5},
        "seed": 2**63 - 1,
        "stop": ["x", "y"],
        "stop_token_ids": [9],
        "ignore_eos": True,
    }
    with client_of(service) as client:
        assert (
            client.post("/v1/chat/completions", json=chat(**fields, logprobs=True, top_logprobs=4)).status_code == 200
        )
        assert client.post("/v1/completions", json=prompt(**fields, logprobs=4)).status_code == 200
        assert client.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200
    converted: dict[str, Any] = {"stop": ("x", "y"), "stop_token_ids": (9,), "logit_bias": {7: 1.5}, "logprobs": 4}
    expected = SamplingParams(**{**fields, **converted})
    assert [request.sampling for request in seen] == [expected, expected, SamplingParams(max_tokens=1)]


def test_stop_token_ids_end_the_answer(client: TestClient) -> None:
    second = T.encode(ANSWER)[1]
    body = client.post("/v1/chat/completions", json=chat(stop_token_ids=[second])).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 2


def test_unknown_fields_and_nulls_are_ignored(client: TestClient) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "max_tokens", "stream", "tools", "logprobs", "n", "seed"))
    asked = chat(user="me", frobnicate={"a": [1]}, tool_choice="auto", response_format={"type": "text"}, **nulls)
    assert client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] == ANSWER


def test_aliases_are_served_listed_and_echoed() -> None:
    with client_of(make_service(aliases=("deepseek-chat",))) as client:
        assert [card["id"] for card in client.get("/models").json()["data"]] == [MODEL, "deepseek-chat"]
        body = client.post("/v1/chat/completions", json=chat(max_tokens=1) | {"model": "deepseek-chat"}).json()
        assert body["model"] == "deepseek-chat"


def test_a_failing_model_gives_500_and_the_server_lives_on() -> None:
    broken = T.encode("!")[0]
    runner = FakeRunner(context=CONTEXT, nan_after=frozenset([broken]), next_token=lambda c: 40)
    service = make_service(runner)
    with client_of(service) as client:
        response = client.post("/v1/completions", json={"model": MODEL, "prompt": "!", "max_tokens": 3})
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "internal_server_error"
        streamed = client.post("/v1/completions", json={"model": MODEL, "prompt": "!", "stream": True})
        assert streamed.status_code == 200
        (event,) = events(streamed.text)
        assert "not numbers" in event["error"]["message"]
        wait_idle(service)
        assert client.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200


def _prompt_of(runner: FakeRunner) -> tuple[int, ...]:
    return tuple(runner.batches[0].tokens_T.tolist())


def _rendered(body: dict[str, Any]) -> list[int]:
    """The token ids that the model sees for a request."""
    runner = FakeRunner(context=CONTEXT)
    with client_of(make_service(runner)) as client:
        response = client.post("/v1/chat/completions", json={"model": MODEL, "max_tokens": 1, **body})
        assert response.status_code == 200, response.text
    return list(_prompt_of(runner))
