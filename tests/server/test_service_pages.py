"""Models, health, metrics, the OpenAPI document and the page."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import CONTEXT, MODEL, chat, client_of, make_service
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message

from deepwell.engine.core import EngineCore
from deepwell.server import Service, create_app
from deepwell.server.page import NO_PAGE, page_routes
from deepwell.weights.advice import Advice
from fakes import FakeRunner, tiny_tokenizer

HELLO_TOKENS = 3


def metrics_of(client: TestClient) -> dict[tuple[str, ...], float]:
    """Values by name and labels (but the model's)."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "model_name")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_models(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    (card,) = body["data"]
    assert card["id"] == MODEL
    assert card["object"] == "model"
    assert card["context_length"] == CONTEXT
    assert [skill for skill in card["capabilities"] if skill not in ("tools", "thinking")] == [
        "completion",
        "chat",
        "fim",
        "embedding",
    ]
    assert card["sampling"] is None


def test_a_model_is_listed_with_what_its_makers_advise() -> None:
    service = make_service()
    service.advice = Advice(temperature=0.6, top_p=0.95)
    with client_of(service) as client:
        for card in (client.get("/v1/models").json()["data"][0], client.get(f"/v1/models/{MODEL}").json()):
            assert card["sampling"] == {"temperature": 0.6, "top_p": 0.95}


def test_health_turns_503_when_the_server_stops() -> None:
    service = make_service()
    with client_of(service) as client:
        assert client.get("/health").status_code == 200
        assert client.portal is not None
        client.portal.call(_stopped, service)
        assert client.get("/health").status_code == 503
        refused = client.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0


def test_health_turns_503_when_the_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: EngineCore) -> None:
        raise MemoryError("no more")

    with TestClient(create_app(make_service())) as client:
        monkeypatch.setattr(EngineCore, "step", broken)
        answer = client.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 500
        assert "no more" in answer.json()["error"]["message"]
        health = client.get("/health")
        assert health.status_code == 503
        assert "no more" in health.json()["status"]
        assert client.post("/v1/chat/completions", json=chat()).status_code == 503


@pytest.mark.parametrize(
    ("texts", "in_loop"), [(["Hi"], True), (["x" * 20_000], False), (["x"] * 1000, False), ([""] * 1000, False)]
)
async def test_long_prompts_are_encoded_beside_the_event_loop(texts: list[str], in_loop: bool) -> None:
    service = make_service(FakeRunner(context=1_000_000))
    service.engine.start()
    (thread,) = await service.rendered(stays, lambda: (threading.get_ident(),), texts, "prompt")
    assert (thread == threading.get_ident()) == in_loop
    await service.stop()


@pytest.mark.parametrize("text", ["Hi", "x" * 20_000])
async def test_a_strangers_template_runs_beside_the_event_loop(text: str) -> None:
    tokenizer = copy.copy(tiny_tokenizer())
    tokenizer.template = "{{ messages[0].content }}"
    service = make_service(FakeRunner(context=1_000_000), tokenizer=tokenizer, format="jinja")
    service.engine.start()
    (thread,) = await service.rendered(stays, lambda: (threading.get_ident(),), [text], "messages", chat=True)
    assert thread != threading.get_ident()
    await service.stop()


async def stays() -> Message:
    """What is received of a client that waits for its answer: nothing."""
    await asyncio.Event().wait()
    raise AssertionError


async def _stopped(service: Service) -> None:
    await service.stop()


def test_metrics_count_what_happened(client: TestClient) -> None:
    long = "deep well " * 40
    asked = [chat(long, max_tokens=HELLO_TOKENS), chat(long, max_tokens=HELLO_TOKENS), chat(temperature=9)]
    answers = [client.post("/v1/chat/completions", json=body).json() for body in asked]
    client.get("/nowhere")
    seen = metrics_of(client)
    usages = [answer["usage"] for answer in answers[:2]]
    assert seen["deepwell:http_requests_total", "/v1/chat/completions", "200"] == 2
    assert seen["deepwell:http_requests_total", "/v1/chat/completions", "400"] == 1
    assert seen["deepwell:http_requests_total", "other", "404"] == 1
    assert seen["deepwell:request_success_total", "length"] == 2
    assert seen["deepwell:prompt_tokens_total",] == sum(usage["prompt_tokens"] for usage in usages)
    assert seen["deepwell:prefix_cache_hits_total",] == usages[1]["prompt_cache_hit_tokens"] > 0
    assert seen["deepwell:generation_tokens_total",] == 2 * HELLO_TOKENS
    assert seen["deepwell:time_to_first_token_seconds_count",] == 2
    assert seen["deepwell:inter_token_latency_seconds_count",] == 2 * (HELLO_TOKENS - 1)
    assert seen["deepwell:e2e_request_latency_seconds_count",] == 2
    assert seen["deepwell:e2e_request_latency_seconds_sum",] >= seen["deepwell:time_to_first_token_seconds_sum",] > 0
    assert seen["deepwell:num_requests_running",] == seen["deepwell:num_requests_waiting",] == 0
    assert seen["deepwell:kv_blocks",] == seen["deepwell:kv_blocks_free",] == FakeRunner().blocks
    assert seen["deepwell:kv_blocks_cached",] >= 1
    assert seen["deepwell:kv_cache_usage_perc",] == 0


def test_openapi_schemas_resolve_and_say_what_is_allowed(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [r for value in node.values() for r in references(value)]
        return [r for value in node for r in references(value)] if isinstance(node, list) else []

    found = references(document)
    assert len(found) > 10
    assert all(reference.removeprefix("#/components/schemas/") in schemas for reference in found)
    temperature = schemas["ChatRequest"]["properties"]["temperature"]
    assert temperature["description"].startswith("a number from 0 to 2")
    assert {"type": "number", "minimum": 0, "maximum": 2} in temperature["anyOf"]
    assert schemas["CompletionRequest"]["required"] == ["prompt"]
    assert schemas["Function"]["required"] == ["name"]
    assert {"reasoning_content", "tool_calls", "tool_call_id"} < set(schemas["ChatMessage"]["properties"])
    assert {"reasoning_content", "tool_calls"} < set(schemas["ChatAnswer"]["properties"])
    assert "reasoning_tokens" in schemas["CompletionDetails"]["properties"]
    for path in document["paths"]:
        answer = client.get(path.replace("{id}", MODEL))
        unset = "--data-dir" in answer.text or "keeps no accounts" in answer.text
        assert answer.status_code in (200, 405) or unset


def test_page_serves_the_build(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>Deepwell</title>")
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / "assets" / "main.js").write_text("1")
    client = TestClient(Starlette(routes=page_routes(tmp_path)))
    assert client.get("/").text == "<title>Deepwell</title>"
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/icon.svg").headers["content-type"] == "image/svg+xml"
    assert "javascript" in client.get("/assets/main.js").headers["content-type"]
    for path in ("/assets/../index.html", "/assets/%2e%2e/icon.svg", "/assets/none.js", "/none"):
        assert client.get(path).status_code == 404 or client.get(path).text == "<title>Deepwell</title>"


def test_page_without_a_build_says_so(tmp_path: Path) -> None:
    client = TestClient(Starlette(routes=page_routes(tmp_path)))
    assert client.get("/").text == NO_PAGE
