"""A whole answer that takes long shows signs of life before it: empty lines, as DeepSeek sends."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest
from raw import body_of, connect, everything, post, status_of
from serving import MODEL, chat, live, make_service, prompt, wait_idle
from starlette.testclient import TestClient
from test_live import MESSAGES, slow

from deepwell.engine.core import EngineCore
from deepwell.server import ServerLimits, create_app

CHAT = "/v1/chat/completions"
SOON = ServerLimits(keep_alive_seconds=0.1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(max_tokens=40)),
        ("/v1/completions", prompt(max_tokens=40)),
        ("/v1/completions", prompt(["one", "two"], max_tokens=20)),
    ],
)
def test_empty_lines_come_before_a_late_answer(path: str, body: dict[str, Any]) -> None:
    with live(make_service(slow(0.02), limits=SOON)) as address:
        with connect(address) as connection:
            connection.sendall(post(path, body))
            connection.settimeout(0.6)
            first = connection.recv(1 << 16)
            assert status_of(first) == 200
            assert b"content-type: application/json\r\n" in first
            connection.settimeout(10)
            whole = body_of(first + everything(connection))
        assert 3 <= len(whole) - len(whole.lstrip(b"\n")) <= 12
        assert json.loads(whole)["usage"]["completion_tokens"] == 40


def test_an_answer_that_is_not_late_has_none() -> None:
    with live(make_service(slow(0.001), limits=SOON)) as address:
        answer = httpx.post(address + CHAT, json=chat(max_tokens=2))
        assert answer.text.startswith("{")
        assert "content-length" in answer.headers


def test_the_sdk_and_jq_read_a_late_answer() -> None:
    with live(make_service(slow(0.02), limits=SOON)) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20)
            assert answer.choices[0].message.content == "a" * 20
        assert httpx.post(address + CHAT, json=chat(max_tokens=20)).json()["choices"]


def test_an_error_behind_empty_lines_is_an_error_object(monkeypatch: pytest.MonkeyPatch) -> None:
    step = EngineCore.step

    def failing(core: EngineCore) -> Any:
        if core.stats().steps == 20:
            raise MemoryError("no more")
        return step(core)

    monkeypatch.setattr(EngineCore, "step", failing)
    with TestClient(create_app(make_service(slow(0.02), limits=SOON))) as client:
        answer = client.post(CHAT, json=chat())
        assert answer.status_code == 200
        assert answer.text.startswith("\n")
        assert "no more" in answer.json()["error"]["message"]


@pytest.mark.parametrize("seconds", [0.15, 0.5])
def test_a_client_that_leaves_between_empty_lines_frees_everything(seconds: float) -> None:
    service = make_service(slow(), limits=SOON)
    with live(service) as address:
        with connect(address) as connection:
            connection.sendall(post(CHAT, chat(max_tokens=4000)))
            time.sleep(seconds)
        wait_idle(service)
        assert service.engine.stats().aborted == 1
        assert service.engine.stats().generated_tokens < 1000
        assert f'path="{CHAT}",status="499"}} 1.0' in httpx.get(address + "/metrics").text
