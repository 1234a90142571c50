"""Requests as other stacks than the SDKs' write them: each is answered as if it had been written plainly."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from raw import body_of, connect, everything, exchange, head, one_answer, post, status_of
from serving import CONTEXT, chat, live, make_service, prompt, says, wait_idle
from test_live import slow

from deepwell.server import Service
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
ANSWER = "Hello."
BODY = json.dumps(chat()).encode()
JSON = ("Host: localhost", "Content-Type: application/json")
H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


@pytest.fixture(scope="module")
def service() -> Service:
    return make_service(FakeRunner(context=CONTEXT, next_token=says(ANSWER)))


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with live(service) as address:
        yield address


def said(answer: bytes) -> str:
    """The content of the only chat answer."""
    assert status_of(answer) == 200, answer
    content: str = json.loads(body_of(answer))["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("offer", [H2C, ("Connection: upgrade", "Upgrade: websocket"), ("Upgrade: TLS/1.0",)])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_loses_no_body(address: str, offer: tuple[str, ...], apart: bool, chunked: bool) -> None:
    """Java's HttpClient makes one with every first request, curl with --http2."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    with connect(address) as connection:
        for _ in range(2):
            start = head(f"POST {CHAT} HTTP/1.1", *JSON, *offer, length)
            if apart:
                connection.sendall(start)
                time.sleep(0.05)
                connection.sendall(body)
            else:
                connection.sendall(start + body)
            answer = one_answer(connection)
            assert b"connection: close" not in answer
            assert said(answer) == ANSWER


def test_java_may_hang_up_after_an_upgrade_and_ask_again(address: str) -> None:
    assert said(exchange(address, post(CHAT, chat(), *H2C, "Connection: close"))) == ANSWER


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is a program of this machine")
@pytest.mark.parametrize(
    "how", ["--http2", "--http1.0", "--http1.1", "-HExpect: 100-continue", "-HTransfer-Encoding: chunked"]
)
def test_curl(address: str, how: str) -> None:
    command = ["curl", "-sS", how, "-H", "Content-Type: application/json", "-d", BODY.decode(), address + CHAT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def test_leave_to_send_the_body_is_given_when_it_is_wanted(address: str) -> None:
    with connect(address) as connection:
        expects = ("Expect: 100-Continue", f"Content-Length: {len(BODY)}", "Connection: close")
        connection.sendall(head(f"POST {CHAT} HTTP/1.1", *JSON, *expects))
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert said(everything(connection)) == ANSWER


@pytest.mark.parametrize(("field", "status"), [("Content-Length: 99999999", 413), ("Content-Type: text/plain", 400)])
def test_leave_is_not_given_for_a_body_that_is_refused(address: str, field: str, status: int) -> None:
    with connect(address) as connection:
        plain = ("Host: localhost", "Expect: 100-continue", field, *(() if "Len" in field else ("Content-Length: 9",)))
        typed = plain if "Type" in field else (*plain, "Content-Type: application/json")
        connection.sendall(head(f"POST {CHAT} HTTP/1.1", *typed))
        assert status_of(connection.recv(1 << 16)) == status


def test_chunks_with_extensions_and_trailers(address: str) -> None:
    half = len(BODY) // 2
    chunks = b"".join(b"%x;why=not\r\n%b\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:]))
    start = head(f"POST {CHAT} HTTP/1.1", *JSON, "Transfer-Encoding: chunked", "Connection: close")
    assert said(exchange(address, start + chunks + b"0\r\nChecksum: 1\r\n\r\n")) == ANSWER


def test_one_byte_at_a_time(address: str) -> None:
    with connect(address) as connection:
        for byte in post(CHAT, chat()):
            connection.send(bytes([byte]))
        assert said(everything(connection)) == ANSWER


@pytest.mark.parametrize("path", ["http://localhost:1/v1/models?x=1", "http://127.0.0.1/v1/models", "/v1/models#part"])
def test_a_target_may_be_a_whole_address(address: str, path: str) -> None:
    answer = exchange(address, head(f"GET {path} HTTP/1.1", "Host: other.example", "Connection: close"))
    if path.startswith("http"):
        assert status_of(answer) == 200
        assert b'"object":"list"' in answer
    else:
        assert status_of(answer) == 403, "without a host in the target, the header counts"


@pytest.mark.parametrize("path", ["nonsense", "http://", "localhost:8000"])
def test_a_target_that_is_none_is_refused(address: str, path: str) -> None:
    assert status_of(exchange(address, head(f"OPTIONS {path} HTTP/1.1", *JSON, "Connection: close"))) in (400, 404)


def test_pipelined_requests_are_answered_in_order(address: str) -> None:
    keep = "Connection: keep-alive"
    asked = (
        post(CHAT, chat(), keep)
        + head("GET /v1/nothing HTTP/1.1", *JSON)
        + post("/v1/completions", prompt(max_tokens=1))
    )
    answers = exchange(address, asked)
    assert statuses_of(answers) == [200, 404, 200]


def statuses_of(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (head("GET /health HTTP/1.1"), 400),
        (head("CONNECT x:443 HTTP/1.1", *JSON), 405),
        (head("GET /health HTTP/1.1", *JSON, *("x: y" for _ in range(200))), 431),
        (head(f"POST {CHAT} HTTP/1.1", *JSON, "Transfer-Encoding: chunked") + b"no length\r\n", 400),
    ],
)
@pytest.mark.parametrize("before", [1, 3])
def test_what_is_whole_is_answered_before_what_is_refused(
    address: str, before: int, bad: bytes, status: int, half_close: bool
) -> None:
    whole = post(CHAT, chat(), "Connection: keep-alive") + head("GET /v1/models HTTP/1.1", *JSON) * (before - 1)
    answers = exchange(address, whole + bad, half_close=half_close)
    assert [status for status in statuses_of(answers) if status != 100] == [200] * before + [status]


@pytest.mark.parametrize("rest", [b"", b"GET /v1/mod", post(CHAT, chat())[:-5]])
def test_all_that_a_client_asked_before_it_ended_its_side_is_answered(address: str, rest: bytes) -> None:
    whole = post(CHAT, chat(), "Connection: keep-alive") + head("GET /v1/models HTTP/1.1", *JSON) * 2
    answers = exchange(address, whole + rest, half_close=True)
    assert [status for status in statuses_of(answers) if status != 100] == [200] * 3
    assert b"\r\nconnection: close\r\n" in answers


def test_the_server_as_a_whole_says_what_it_allows(address: str) -> None:
    answer = exchange(address, head("OPTIONS * HTTP/1.1", *JSON, "Connection: close"))
    assert status_of(answer) == 204
    assert b"allow: get, head, options, post\r\n" in answer.lower()
    assert status_of(exchange(address, head("GET * HTTP/1.1", *JSON, "Connection: close"))) == 404


def test_http_1_0_is_answered_without_chunks_until_the_connection_ends(address: str) -> None:
    asked = post(CHAT, chat(stream=True), version="1.0").replace(b"Host: localhost\r\n", b"")
    answer = exchange(address, asked.replace(b"Connection: close", b"Connection: keep-alive"))
    assert b"transfer-encoding" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")
    assert said(exchange(address, post(CHAT, chat(), version="1.0"))) == ANSWER


@pytest.mark.parametrize(
    "request_line",
    [f"post {CHAT} HTTP/1.1", f"POST {CHAT} HTTP/2.0", f"POST  {CHAT}", "\x16\x03\x01\x02", "CONNECT x:443 HTTP/1.1"],
)
def test_what_is_no_request_is_refused_in_a_sentence(address: str, request_line: str) -> None:
    answer = exchange(address, head(request_line, *JSON))
    assert status_of(answer) in (400, 405)
    assert json.loads(body_of(answer))["error"]["message"]
    assert b"x-request-id: " in answer


@pytest.mark.parametrize("hosts", [(), ("Host: localhost", "Host: localhost")])
def test_http_1_1_takes_one_host(address: str, hosts: tuple[str, ...]) -> None:
    answer = exchange(address, head("GET /health HTTP/1.1", *hosts))
    assert status_of(answer) == 400
    assert f"has {len(hosts)}" in json.loads(body_of(answer))["error"]["message"]


def test_line_breaks_before_and_after_a_request_are_nothing(address: str) -> None:
    asked = post(CHAT, chat(), "Connection: keep-alive")
    assert exchange(address, b"\r\n\r\n" + asked + b"\r\n" + post(CHAT, chat())).count(b"HTTP/1.1 200 OK") == 2
    assert said(exchange(address, post(CHAT, chat()) + b"\r\n")) == ANSWER


def test_head_has_no_body(address: str) -> None:
    answer = exchange(address, head("HEAD /health HTTP/1.1", *JSON, "Connection: close"))
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_has_only_ended_its_own_side_gets_its_answer(fields: dict[str, Any], version: str) -> None:
    service = make_service(slow())
    with live(service) as address:
        asked = post(CHAT, chat(max_tokens=60, **fields), version=version)
        answer = exchange(address, asked, half_close=True)
        if version == "1.1" and not fields:
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert status_of(answer) == 200
        assert b'"length"' in answer
        assert service.engine.stats().finished["length"] == 1


def test_pipelined_requests_of_a_client_that_left_are_all_given_up() -> None:
    service = make_service(slow())
    with live(service) as address:
        with connect(address) as connection:
            connection.sendall(post(CHAT, chat(max_tokens=4000), "Connection: keep-alive") * 3)
            time.sleep(0.3)
            assert service.engine.stats().running == 1
        wait_idle(service)
        stats = service.engine.stats()
        assert (stats.aborted, sum(stats.finished.values())) == (1, 1)
        assert stats.generated_tokens < 1000
