"""While a long prompt is read, all else goes on: what stands still is compared with how long the reading takes."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest
from serving import MODEL, T, chat, live, make_service, prompt

from deepwell.server import chat_completions
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
TEXT = "def add(first, second):\n    return first + second  # 深度 <b>\n" * 30_000
ROOMY = 600_000
"""Tokens of context: more than TEXT has at least, and fewer than it has."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", prompt(TEXT, max_tokens=1)),
        (CHAT, chat(TEXT, max_tokens=1)),
        (CHAT, {"model": MODEL, "messages": [{"role": "user", "content": TEXT[:30_000]}] * 60}),
    ],
)
def test_health_answers_while_a_long_prompt_is_read(path: str, body: dict[str, Any]) -> None:
    """One of the library's ways to encode holds the interpreter's lock; then a thread of its own does not help."""
    assert T.fewest_tokens(TEXT) < ROOMY < len(T.encode(TEXT))
    latencies: list[float] = []
    sent = json.dumps(body).encode()
    with (
        live(make_service(FakeRunner(context=ROOMY))) as address,
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        reading = threading.Thread(target=lambda: refused.append(_post(address, path, sent)))
        refused: list[tuple[int, float]] = []
        reading.start()
        while reading.is_alive():
            begun = time.perf_counter()
            assert client.get("/health").status_code == 200
            latencies.append(time.perf_counter() - begun)
            time.sleep(0.01)
    ((status, seconds),) = refused
    assert status == 400
    assert seconds > 0.3, "too quick to tell"
    assert max(latencies) < seconds / 2
    assert len(latencies) > 4


@pytest.mark.parametrize(("messages", "apart"), [(3, False), (2000, True)])
def test_a_long_conversation_is_made_off_the_loop(messages: int, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    made = chat_completions.conversation_of

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return made(*given)

    monkeypatch.setattr(chat_completions, "conversation_of", noted)
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * messages] + chat("y")["messages"]
    with live(make_service(FakeRunner(context=ROOMY))) as address:
        answer = httpx.post(address + CHAT, json=chat(max_tokens=1) | {"messages": turns}, timeout=60)
        assert answer.status_code == 200
        serving = httpx.post(address + CHAT, json=chat(max_tokens=1), timeout=60)
    assert serving.status_code == 200
    assert (threads[0] != threads[1]) is apart


def test_what_cannot_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was read")

    monkeypatch.setattr(T, "encode", read)
    with live(make_service(FakeRunner(context=1000))) as address:
        answer = httpx.post(address + CHAT, json=chat(TEXT), timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def _post(address: str, path: str, body: bytes) -> tuple[int, float]:
    """Status and seconds of a request."""
    begun = time.perf_counter()
    answer = httpx.post(address + path, content=body, headers={"Content-Type": "application/json"}, timeout=120)
    return answer.status_code, time.perf_counter() - begun
