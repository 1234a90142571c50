"""A place in the engine comes first: a full server refuses at once, and no place is lost, whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import CONTEXT, T, chat, client_of, endless, live, make_service, prompt, says, wait_idle
from starlette.testclient import TestClient

from deepwell.engine.core import EngineCore
from deepwell.server import Service, create_app
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
LONG = "7" * 1_000_000
ROOMY = 1_000_000


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def sent(address: str, path: str, body: bytes, length: int | None = None) -> Iterator[socket.socket]:
    """A connection over which a POST was sent, whose body is said to have `length` bytes."""
    parts = urlsplit(address)
    length = len(body) if length is None else length
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
        yield connection


@contextmanager
def full(service: Service) -> Iterator[None]:
    """All places are held meanwhile."""
    engine = service.engine
    places = [engine.place() for _ in range(engine.config.max_running + engine.config.max_waiting)]
    yield
    for place in places:
        place.close()


class Gate:
    """An encoder that can be closed for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.most, self._inside = 0, 0, 0
        self.open = threading.Event()
        self._encode = T.encode
        monkeypatch.setattr(T, "encode", self._wait)

    def _wait(self, text: str, **how: Any) -> list[int]:
        self.begun += 1
        self._inside += 1
        self.most = max(self.most, self._inside)
        assert self.open.wait(10)
        self._inside -= 1
        return self._encode(text, **how)


@pytest.mark.parametrize("body", [(CHAT, chat(LONG)), (TEXT, prompt(LONG)), (TEXT, prompt(LONG, suffix="x"))])
def test_a_full_server_refuses_without_encoding(body: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(FakeRunner(context=ROOMY), max_running=2, max_waiting=1)
    gate = Gate(monkeypatch)
    with client_of(service) as client, full(service):
        refused = client.post(body[0], json=body[1])
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "3 requests are live" in refused.json()["error"]["message"]
        assert gate.begun == 0


def test_a_full_server_refuses_before_the_body_comes() -> None:
    service = make_service(max_running=1, max_waiting=0)
    with live(service) as address:
        with full(service), sent(address, CHAT, b"{", length=8_000_000) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
        assert httpx.post(address + CHAT, json=chat(max_tokens=1)).status_code == 200


def test_a_refused_body_does_not_spoil_the_connection() -> None:
    service = make_service(max_running=1, max_waiting=0)
    with live(service) as address, httpx.Client(base_url=address) as client:
        for _ in range(3):
            with full(service):
                assert client.post(CHAT, json=chat("x" * 4_000_000)).status_code == 429
            assert client.post(CHAT, json=chat(max_tokens=1)).status_code == 200


def test_a_body_that_does_not_come_keeps_nobody_out() -> None:
    service = make_service(max_running=1, max_waiting=0)
    with live(service) as address, sent(address, CHAT, b"{", length=50):
        assert httpx.post(address + CHAT, json=chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat() | {"model": "another"}),
        (CHAT, chat(messages=[{"role": "user"}])),
        (CHAT, chat(messages=[{"role": "nobody", "content": "x"}])),
        (CHAT, chat("word " * CONTEXT)),
        (CHAT, chat(LONG)),
        (CHAT, chat("a \ud800 b")),
        (CHAT, chat(grammar="root ::= x")),
        (CHAT, chat(logit_bias={str(2**30): 1})),
        (CHAT, chat(stop_token_ids=[10**6])),
        (CHAT, {"no": "request"}),
        (TEXT, prompt(["a", ["b"]])),
        (TEXT, prompt(["a"] * 9)),
        (TEXT, prompt([10**6])),
        (TEXT, prompt([])),
        (TEXT, prompt(LONG)),
        (TEXT, prompt("x", max_tokens=0)),
    ],
)
def test_every_refusal_gives_the_place_back(path: str, body: dict[str, Any]) -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=says("Hi")), max_running=1, max_waiting=0)
    with client_of(service) as client:
        refused = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert refused.status_code == (404 if body.get("model") == "another" else 400)
        service.engine.check_room()
        assert service.engine.stats().waiting == 0
        assert client.post(CHAT, json=chat()).status_code == 200


def test_an_error_of_our_own_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(max_running=1, max_waiting=0)
    with live(service) as address:
        with monkeypatch.context() as patch:
            patch.setattr(T, "encode", lambda text: 1 / 0)
            assert httpx.post(address + CHAT, json=chat()).status_code == 500
        assert httpx.post(address + CHAT, json=chat(max_tokens=1)).status_code == 200


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("word " * 8000)), (TEXT, prompt("word " * 8000))])
def test_a_client_that_leaves_while_it_is_encoded_gives_its_place_back(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(FakeRunner(context=ROOMY))
    gate = Gate(monkeypatch)
    with live(service) as address:
        with sent(address, path, json.dumps(body).encode()):
            until(lambda: gate.begun == 1)
            assert service.engine.stats().waiting == 1
        wait_idle(service)
        gate.open.set()
        until(lambda: f'path="{path}",status="499"}} 1.0' in httpx.get(address + "/metrics").text)
        assert service.engine.stats().finished == {"stop": 0, "length": 0, "abort": 0, "error": 0, "cut": 0}


async def test_long_texts_are_encoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(FakeRunner(blocks=6 * 700, context=ROOMY, next_token=says("Hi")))
    gate = Gate(monkeypatch)
    with live(service) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            asked = [asyncio.create_task(client.post(CHAT, json=chat("word " * 8000))) for _ in range(6)]
            await asyncio.to_thread(until, lambda: service.engine.stats().waiting == 6 and gate.begun > 0)
            assert (gate.begun, gate.most) == (1, 1)
            gate.open.set()
            assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 6
        assert gate.most == 1


async def test_a_long_text_does_not_wait_for_very_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(FakeRunner(blocks=1000, context=ROOMY, next_token=says("Hi")))
    gate = Gate(monkeypatch)
    with live(service) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            slow = [asyncio.create_task(client.post(CHAT, json=chat(LONG))) for _ in range(3)]
            await asyncio.to_thread(until, lambda: service.engine.stats().waiting == 3 and gate.begun > 0)
            long = asyncio.create_task(client.post(CHAT, json=chat("word " * 8000)))
            await asyncio.to_thread(until, lambda: gate.begun == 2)
            gate.open.set()
            assert (await long).status_code == 200
            assert [answer.status_code for answer in await asyncio.gather(*slow)] == [400] * 3


async def test_a_stop_refuses_what_waits_to_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(FakeRunner(context=ROOMY))
    gate = Gate(monkeypatch)
    service.engine.start()

    async def stays() -> Any:
        await asyncio.Event().wait()

    def asked() -> Any:
        return service.rendered(stays, lambda: T.encode("word"), ["word " * 8000], "prompt")

    waiting = [asyncio.create_task(asked()) for _ in range(3)]
    await asyncio.to_thread(until, lambda: gate.begun == 1)
    await service.stop()
    gate.open.set()
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert first == T.encode("word")
    assert ["stopping" in str(other) for other in others] == [True, True]
    assert gate.begun == 2, "the two that waited were not encoded; the second call is the one just above"


def metric(address: str, name: str) -> float:
    page = httpx.get(address + "/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(f"deepwell:{name}{{"))


@pytest.mark.parametrize("streamed", [True, False])
def test_the_tokens_of_a_client_that_left_are_counted(streamed: bool) -> None:
    service = make_service(FakeRunner(context=4096, next_token=endless, delay=0.005))
    with live(service) as address:
        with sent(address, CHAT, json.dumps(chat(stream=streamed, max_tokens=4000)).encode()):
            until(lambda: service.engine.stats().generated_tokens >= 50)
        wait_idle(service)
        stats = service.engine.stats()
        assert metric(address, "generation_tokens_total") == stats.generated_tokens >= 50
        assert metric(address, "prompt_tokens_total") == stats.prompt_tokens > 0
        assert 'request_success_total{finished_reason="abort",model_name="deepwell-test"} 1.0' in (
            httpx.get(address + "/metrics").text
        )


def test_the_tokens_before_a_failure_of_the_engine_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    step = EngineCore.step

    def failing(core: EngineCore) -> Any:
        if core.stats().steps == 7:
            raise MemoryError("no more")
        return step(core)

    monkeypatch.setattr(EngineCore, "step", failing)
    service = make_service(FakeRunner(context=CONTEXT, next_token=endless))
    with TestClient(create_app(service)) as client:
        assert client.post(CHAT, json=chat()).status_code == 500
        page = client.get("/metrics").text
        assert 'generation_tokens_total{model_name="deepwell-test"} 7.0' in page
        assert 'finished_reason="error",model_name="deepwell-test"} 1.0' in page


@pytest.mark.parametrize(
    "body",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\n%bContent-Length: 50\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\n%bContent-Length: 50\r\n\r\n",
        b'POST /v1/completions HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\n{"mod\r\n',
        b'POST /v1/chat/completions HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\n{"mod\r\nnonsense\r\n',
        b"POST /v1/chat/completions HTTP/1.1\r\n%bContent-Length: 90000000\r\n\r\n{",
        b"GET /v1/models HTTP/1.1\r\n%b\r\n",
        b"GET / HTTP/1.1\r\n%b\r\n",
        b"GET /v1/models HT",
    ],
)
def test_hanging_up_at_any_moment_is_no_failure(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), live(make_service()) as address:
        parts = urlsplit(address)
        for _ in range(3):
            with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
                connection.sendall(body.replace(b"%b", b"Host: localhost\r\nContent-Type: application/json\r\n"))
                time.sleep(0.02)
        assert 'status="500"' not in httpx.get(address + "/metrics").text
    assert caplog.records == []


def test_hanging_up_in_the_body_is_counted_as_a_client_that_left() -> None:
    with live(make_service()) as address:
        with sent(address, CHAT, b"{", length=50):
            time.sleep(0.05)
        until(lambda: f'path="{CHAT}",status="499"}} 1.0' in httpx.get(address + "/metrics").text)
