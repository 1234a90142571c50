"""Stop means stop: nothing that a client does or leaves undone holds a server that was told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw import connect, everything, head, post, status_of
from serving import chat

from deepwell.errors import ConfigError
from deepwell.server import listen
from deepwell.server.connection import IDLE_SECONDS

HERE = Path(__file__).parent
CHAT = "/v1/chat/completions"
JSON = ("Host: localhost", "Content-Type: application/json")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])}


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python process, and the first line that it prints."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *command], stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@contextmanager
def server(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with process(str(HERE / "endless_server.py"), *args) as started:
        yield started


def running(address: str, count: int) -> None:
    """Wait until so many requests run."""
    deadline = time.monotonic() + 10
    while f'num_requests_running{{model_name="deepwell-test"}} {count}.0' not in httpx.get(address + "/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_half_requests_do_not_delay_the_end() -> None:
    with server("--patient") as (process, address), ExitStack() as stack:
        halves = [
            b"",
            b"GET /health HT",
            head(f"POST {CHAT} HTTP/1.1", *JSON, "Content-Length: 5000"),
            head(f"POST {CHAT} HTTP/1.1", *JSON, "Content-Length: 5000") + b'{"model": ',
            head(f"POST {CHAT} HTTP/1.1", *JSON, "Transfer-Encoding: chunked") + b"9\r\n{",
        ]
        victims = [stack.enter_context(connect(address)) for _ in range(4) for _ in halves]
        for number, victim in enumerate(victims):
            victim.sendall(halves[number % len(halves)])
        httpx.get(address + "/health")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answers = [everything(victim) for victim in victims]
        assert process.wait(10) == 0
        assert time.monotonic() - began < 4
        assert [status_of(answer) for answer in answers] == [0, 0, 503, 503, 503] * 4
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_client_that_does_not_read_does_not_delay_the_end_for_long() -> None:
    with server() as (process, address), connect(address) as victim:
        victim.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        victim.sendall(post(CHAT, chat(stream=True), "Connection: keep-alive") * 50)
        running(address, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with server("--patient") as (process, address), connect(address) as client:
        client.sendall(post(CHAT, chat(stream=True)))
        assert client.recv(4096)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert b"data: " in client.recv(4096), "the answer goes on"
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(5) == 128 + number
        assert time.monotonic() - began < 1


def test_an_answer_cut_by_the_end_keeps_its_usage() -> None:
    with server() as (process, address):
        answers: list[Any] = []
        asker = threading.Thread(target=lambda: answers.append(httpx.post(address + CHAT, json=chat(), timeout=20)))
        asker.start()
        running(address, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        asker.join(5)
        body = answers[0].json()
        assert body["choices"][0]["finish_reason"] == "insufficient_system_resource"
        assert body["usage"]["completion_tokens"] > 0


LOADING = """
import sys, time
from deepwell.cli import main, serve
def load(options):
    print("loading", flush=True)
    time.sleep(60)
serve.load = load
sys.argv = ["deepwell", "serve", "--port", "0"]
raise SystemExit(main.main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_the_load_ends_it(number: signal.Signals, code: int) -> None:
    """By a handler: the first process of a container ignores a signal that has none."""
    with process("-c", LOADING) as (loading, line):
        assert line == "loading"
        loading.send_signal(number)
        assert loading.wait(5) == code
        assert loading.stderr is not None
        assert "Traceback" not in loading.stderr.read()


@pytest.mark.parametrize(
    ("first", "second"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")]
)
def test_two_servers_do_not_share_a_port(first: str, second: str) -> None:
    with listen(first, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on {second} port {port}: .*in use"):
            listen(second, port)


def test_of_servers_that_start_together_one_listens() -> None:
    """A hundred at a time, on a port that was free a moment ago."""

    def tried(port: int) -> socket.socket | None:
        try:
            return listen(port=port)
        except ConfigError:
            return None

    with ThreadPoolExecutor(20) as together:
        for _ in range(5):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            listening = [found for found in together.map(tried, [port] * 100) if found is not None]
            assert len(listening) == 1
            for found in listening:
                found.close()


def test_idle_connections_are_kept_longer_than_proxies_keep_theirs() -> None:
    """60 s is the usual limit of a proxy; it must be the proxy that ends the connection."""
    assert IDLE_SECONDS > 60
    with server() as (_, address), httpx.Client(base_url=address) as client:
        assert client.get("/health").headers.get("connection") is None
        time.sleep(0.1)
        assert json.loads(client.get("/health").text) == {"status": "ok"}
