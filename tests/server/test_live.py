"""A real uvicorn server on loopback: the openai SDK, curl, clients that vanish, crowds, and SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from serving import CONTEXT, MODEL, chat, endless, live, make_service, prompt, says, wait_idle
from test_chat_completions import events

from deepwell.errors import ConfigError
from deepwell.server import ServerLimits, listen
from fakes import FakeRunner

HERE = Path(__file__).parent
API_PAGE = HERE.parents[1] / "docs" / "api.md"
ANSWER = "Hello, wörld 🐳."
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def slow(seconds: float = 0.01, context: int = 4096) -> FakeRunner:
    """A model that never stops by itself and takes `seconds` per step."""
    return FakeRunner(context=context, next_token=endless, delay=seconds)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live(make_service(FakeRunner(context=CONTEXT, next_token=says(ANSWER)))) as address:
        yield address


def test_openai_sdk(address: str) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=2)
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.content is not None
        assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
        assert whole.usage is not None
        stream = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == ANSWER
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        text = client.completions.create(model=MODEL, prompt="A", suffix="B", max_tokens=2, logprobs=1)
        assert text.choices[0].logprobs is not None
        pieces = client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=2, stream=True, echo=True)
        assert list(pieces)[-1].choices[0].finish_reason in ("stop", "length")


async def test_async_openai_sdk(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert whole.choices[0].message.content == ANSWER
        async with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
            done = await stream.get_final_completion()
        assert done.choices[0].message.content == ANSWER


def test_openai_sdk_errors(address: str) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-9", messages=MESSAGES)
        assert caught.value.param == "model"
        assert caught.value.code == "model_not_found"
        assert MODEL in caught.value.message
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model=MODEL, prompt="a " * CONTEXT)
        assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("number", range(11))
def test_curl_examples_of_the_documentation_work(number: int) -> None:
    page = API_PAGE.read_text(encoding="utf-8")
    examples = re.findall(r"```sh\n(curl .*?)```", page, re.DOTALL)
    assert len(examples) == 11
    service = make_service(FakeRunner(context=CONTEXT, next_token=says(ANSWER)), aliases=("deepwell",))
    with live(service) as address:
        words = shlex.split(examples[number].replace("\\\n", " ").replace("http://127.0.0.1:8000", address))
        done = subprocess.run([*words, "--fail", "-s", "-S"], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
    if "[DONE]" in done.stdout:
        assert len(events(done.stdout)) > 2
    elif "/metrics" in examples[number]:
        assert "deepwell:num_requests_running" in done.stdout
    else:
        assert json.loads(done.stdout).get("error") is None


def test_curl_gets_413_for_ten_megabytes(address: str, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(chat("x" * 10_000_000)))
    words = [
        "curl",
        "-s",
        "-w",
        "\n%{http_code}",
        "-H",
        "Content-Type: application/json",
        "-d",
        f"@{body}",
        address + CHAT,
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    text, _, status = done.stdout.rpartition("\n")
    assert status == "413"
    assert "8388608 bytes" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabyte_bodies(address: str, chunked: bool) -> None:
    body = json.dumps(chat("x" * 10_000_000)).encode()
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    response = httpx.post(address + CHAT, content=pieces if chunked else body, headers=JSON)
    assert response.status_code == 413
    assert httpx.post(address + CHAT, json=chat()).status_code == 200


def test_body_under_the_limit_but_over_the_context(address: str) -> None:
    response = httpx.post(address + CHAT, json=chat("word " * 1_600_000))
    assert response.status_code == 400
    assert str(CONTEXT) in response.json()["error"]["message"]


def test_half_a_request_does_no_harm(address: str) -> None:
    parts = urlsplit(address)
    for sent in (
        b"",
        b"POST ",
        b"\x16\x03\x01\x02\x00",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 50\r\n\r\n{",
    ):
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(sent)
    assert httpx.post(address + CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_client_that_vanishes_frees_everything(path: str, streamed: bool) -> None:
    service = make_service(slow())
    body = (chat if path == CHAT else prompt)(stream=streamed, max_tokens=4000)
    with live(service) as address:
        content = json.dumps(body)
        fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n{content}".encode())
            _until(lambda: service.engine.stats().generated_tokens > 3)
            if streamed:
                assert b"data: " in connection.recv(4096)
            assert service.engine.stats().running == 1
        wait_idle(service)
        stats = service.engine.stats()
        assert stats.aborted == 1
        assert stats.generated_tokens < 1000
        assert 'request_success_total{finished_reason="abort"' in httpx.get(address + "/metrics").text


def test_a_client_that_vanishes_from_the_queue() -> None:
    service = make_service(slow(), max_running=1)
    with live(service) as address, httpx.Client(base_url=address) as client:
        with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=4000)) as first:
            lines = first.iter_lines()
            assert next(lines)
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=chat(max_tokens=5), timeout=0.3)
            _until(lambda: service.engine.stats().waiting == 0)
            assert service.engine.stats().running == 1
        wait_idle(service)


def test_waiting_streams_get_keep_alive_comments() -> None:
    service = make_service(slow(), max_running=1, limits=ServerLimits(keep_alive_seconds=0.05))
    with live(service) as address, httpx.Client(base_url=address) as client:
        with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=60)) as first:
            lines = first.iter_lines()
            assert next(lines).startswith("data: ")
            response = client.post(CHAT, json=chat(stream=True, max_tokens=3))
        events = response.text.split("\n\n")
        assert events[0] == ": keep-alive"
        assert events.count(": keep-alive") >= 2
        assert events[-2] == "data: [DONE]"


async def test_two_hundred_clients_on_a_queue_of_sixty_four() -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=endless, delay=0.002), max_running=8, max_waiting=56)
    with live(service) as address:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=30) as client:
            crowd = [_one_of_many(client, number) for number in range(200)]
            outcomes = Counter(await asyncio.wait_for(asyncio.gather(*crowd), 60))
            assert (await client.post(CHAT, json=chat(max_tokens=1))).status_code == 200
        await asyncio.to_thread(wait_idle, service)
    assert set(outcomes) <= {200, 429}
    assert outcomes[200] >= 64
    assert outcomes[429] >= 1


async def _one_of_many(client: httpx.AsyncClient, number: int) -> int:
    response = await client.post(CHAT, json=chat(f"client {number}", max_tokens=20, stream=number % 2 == 0))
    if response.status_code == 429:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["message"]
    elif number % 2 == 0:
        assert events(response.text)[-1]["usage"]["completion_tokens"] == 20
    else:
        assert response.json()["choices"][0]["message"]["content"] == "a" * 20
    return response.status_code


def test_openai_sdk_waits_and_retries_when_the_queue_is_full() -> None:
    service = make_service(slow(), max_running=1, max_waiting=0)
    with live(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=4) as client:
        first = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, max_tokens=80)
        next(iter(first))
        with pytest.raises(openai.RateLimitError):
            client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=MESSAGES)
        threading.Thread(target=list, args=(first,)).start()
        assert (
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2).choices[0].message.content
            == "aa"
        )


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process whose model never stops, with a drain time of half a second; its address."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])}
    command = [sys.executable, str(HERE / "endless_server.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        yield server, server.stdout.readline().strip()
        server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_streams_ends_them_cleanly(process: tuple[subprocess.Popen[str], str], number: int) -> None:
    server, address = process
    answers: dict[str, Any] = {}

    def ask(name: str, **fields: Any) -> None:
        answers[name] = httpx.post(address + CHAT, json=chat(**fields), timeout=20)

    asked = {
        "endless stream": {"stream": True},
        "endless": {},
        "soon done": {"stream": True, "max_tokens": 20},
    }
    threads = [threading.Thread(target=ask, args=(name,), kwargs=fields) for name, fields in asked.items()]
    for thread in threads:
        thread.start()
    _until(lambda: 'num_requests_running{model_name="deepwell-test"} 3.0' in httpx.get(address + "/metrics").text)
    server.send_signal(number)
    assert server.wait(10) == 0
    for thread in threads:
        thread.join(5)
    last = events(answers["endless stream"].text)[-1]
    assert last["choices"][0]["finish_reason"] == "insufficient_system_resource"
    assert last["usage"]["completion_tokens"] > 0
    whole = answers["endless"].json()
    assert whole["choices"][0]["finish_reason"] == "insufficient_system_resource"
    assert set(whole["choices"][0]["message"]["content"]) == {"a"}
    assert events(answers["soon done"].text)[-1]["choices"][0]["finish_reason"] == "length"
    assert server.stderr is not None
    assert server.stderr.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(address + "/health")


def test_a_taken_port_is_said_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: .*--port"):
            listen(port=port)


def _until(condition: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
