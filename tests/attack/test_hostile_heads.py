"""Heads and bodies made to take memory, time or the event loop: each is refused, and others are served meanwhile.

DEEPWELL_SEED chooses the noise.
"""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw import connect, everything, exchange, head, post, status_of
from seeds import SEED
from serving import CONTEXT, MODEL, chat, live, make_service, says
from starlette.testclient import TestClient
from test_live import slow

from deepwell.server import ServerLimits, body, connection, create_app
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
JSON = ("Host: localhost", "Content-Type: application/json")
MIB = 1 << 20


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    service = make_service(FakeRunner(context=CONTEXT, next_token=says("Hello.")))
    with live(service) as address:
        yield address


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that run out soon."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.6)
    monkeypatch.setattr(body, "BODY_SECONDS", 0.3)


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def health_stays(address: str, seconds: float) -> Iterator[None]:
    """/health answers within `seconds` at all times meanwhile."""
    slowest, ended = 0.0, threading.Event()

    def ask() -> None:
        nonlocal slowest
        with httpx.Client() as client:
            while not ended.is_set():
                before = time.perf_counter()
                assert client.get(address + "/health", timeout=30).status_code == 200
                slowest = max(slowest, time.perf_counter() - before)
                time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert slowest < seconds


def flood(address: str, start: bytes, piece: bytes, total: int) -> bytes:
    """What a server says to a start and pieces, before there are `total` bytes of them."""
    with connect(address) as victim:
        sent = 0
        try:
            victim.sendall(start)
            while sent < total and not select.select([victim], [], [], 0)[0]:
                victim.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        assert sent < total, "nothing was said to it"
        return everything(victim)


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKS = head(f"POST {CHAT} HTTP/1.1", *JSON, "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (GET, b"a:1\r\n" * 10_000),
        (GET, b"".join(b"x-%d: y\r\n" % number for number in range(10_000))),
        (GET + b"x: ", b"v" * 65_536),
        (GET, b"n" * 65_536),
        (GET + b"x: ", b"\xff" * 65_536),
        (b"GET /", b"a" * 65_536),
        (b"GET /?", b"%41&" * 16_384),
        (b"", b"\r\n" * 32_768),
        (GET + b"Cookie: a=b\r\n" * 1000, b"Cookie: a=b\r\n" * 5000),
        (CHUNKS + b"1\r\n{\r\n0\r\n", b"trailer: 1\r\n" * 5000),
        (CHUNKS + b"1\r\n{\r\n0\r\ntrailer: ", b"v" * 65_536),
        (CHUNKS + b"1;", b"extension" * 8000),
    ],
)
def test_what_never_ends_is_cut_off_early(address: str, start: bytes, piece: bytes) -> None:
    before = memory()
    with health_stays(address, 1.0):
        answer = flood(address, start, piece, 100 * MIB)
    assert not answer or status_of(answer) in (400, 431)
    assert memory() - before < 30 * MIB


@pytest.mark.parametrize(("headers", "status"), [(120, 200), (128, 431), (5000, 431)])
def test_the_number_of_headers_is_bounded(address: str, headers: int, status: int) -> None:
    lines = [f"x-{number}: 1" for number in range(headers)]
    answer = exchange(address, head("GET /health HTTP/1.1", "Host: localhost", *lines, "Connection: close"))
    assert status_of(answer) == status


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (70_000, 431), (1_000_000, 431)])
def test_the_size_of_headers_is_bounded(address: str, size: int, status: int) -> None:
    answer = exchange(address, head("GET /health HTTP/1.1", "Host: localhost", "x: " + "y" * size, "Connection: close"))
    assert status_of(answer) == status
    if status == 431:
        assert b"65536 bytes" in answer


def test_a_long_value_in_small_pieces_is_not_quadratic(address: str) -> None:
    with health_stays(address, 1.0), connect(address) as victim:
        victim.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        victim.sendall(GET + b"x: ")
        began = time.perf_counter()
        for _ in range(600):
            victim.sendall(b"v" * 100)
        victim.sendall(b"\r\nConnection: close\r\n\r\n")
        assert status_of(everything(victim)) == 200
        assert time.perf_counter() - began < 5


@pytest.mark.parametrize("start", [b"", b"G", b"GET / HTTP/1.1\r\nHost: local", b"\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(start: bytes, hurried: None, address: str) -> None:
    with connect(address) as victim:
        victim.sendall(start)
        answer = everything(victim)
    assert status_of(answer) == (408 if start.strip() else 0)


def test_a_head_that_trickles_is_not_waited_for(hurried: None, address: str) -> None:
    with connect(address) as victim:
        began = time.monotonic()
        try:
            for byte in GET * 100:
                victim.sendall(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            pass
        assert 0.2 < time.monotonic() - began < 5


@pytest.mark.parametrize("body", [b"", b'{"model": '])
@pytest.mark.parametrize("trickles", [False, True])
def test_a_body_that_does_not_come_is_not_waited_for(body: bytes, trickles: bool, hurried: None, address: str) -> None:
    with connect(address) as victim:
        victim.sendall(head(f"POST {CHAT} HTTP/1.1", *JSON, "Content-Length: 100000") + body)
        victim.settimeout(0.05 if trickles else 10)
        began, answer = time.monotonic(), b""
        while not answer and time.monotonic() - began < 5:
            try:
                answer = victim.recv(1 << 16)
            except TimeoutError:
                victim.sendall(b" ")
        victim.settimeout(10)
        answer += everything(victim)
    assert status_of(answer) == 408
    assert b"connection: close" in answer
    assert b"did not come" in answer


def test_a_slow_body_that_keeps_coming_is_waited_for(hurried: None, address: str) -> None:
    asked = post(CHAT, chat(), "Connection: close")
    cut = asked.index(b"\r\n\r\n") + 4
    padded = asked[cut:-1] + b" " * 60_000 + b"}"
    start = head(f"POST {CHAT} HTTP/1.1", *JSON, f"Content-Length: {len(padded)}", "Connection: close")
    with connect(address) as victim:
        victim.sendall(start)
        for place in range(0, len(padded), 6000):
            victim.sendall(padded[place : place + 6000])
            time.sleep(0.1)
        assert status_of(everything(victim)) == 200


def test_half_bodies_hold_a_bounded_memory() -> None:
    limit = MIB
    service = make_service(limits=ServerLimits(max_body_bytes=limit))
    with live(service) as address, ExitStack() as stack:
        before = memory()
        victims = [stack.enter_context(connect(address)) for _ in range(200)]
        for victim in victims:
            victim.setblocking(False)
        pending = {victim: head(f"POST {CHAT} HTTP/1.1", *JSON, f"Content-Length: {limit}") for victim in victims}
        for victim, start in pending.items():
            victim.send(start)
        left = dict.fromkeys(victims, limit - 1)
        deadline = time.monotonic() + 20
        while left and time.monotonic() < deadline:
            for victim in list(left):
                try:
                    left[victim] -= victim.send(b" " * min(left[victim], 65_536))
                except BlockingIOError:
                    continue
                except OSError:
                    left[victim] = 0
                if not left[victim]:
                    del left[victim]
        assert not left
        while 'status="429"' not in httpx.get(address + "/metrics").text:
            assert time.monotonic() < deadline
        assert memory() - before < 100 * limit
        for victim in victims:
            victim.close()
        assert httpx.post(address + CHAT, json=chat(max_tokens=1)).status_code == 200


def test_bodies_of_requests_that_wait_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "KEPT_AT_ONCE", 2)
    service = make_service(slow(), limits=ServerLimits(max_body_bytes=MIB))
    long = post(CHAT, chat(max_tokens=4000) | {"unknown": "x" * (MIB * 3 // 4)})
    with live(service) as address, ExitStack() as stack:
        waiting = [stack.enter_context(connect(address)) for _ in range(2)]
        for one in waiting:
            one.sendall(long)
        deadline = time.monotonic() + 20
        while service.engine.stats().running + service.engine.stats().waiting < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        answer = exchange(address, long)
        assert status_of(answer) in (429, 503)
        assert b"long bodies" in answer
        assert status_of(exchange(address, post(CHAT, chat(max_tokens=1)))) == 200
        for one in waiting:
            one.close()
        while status_of(exchange(address, post(CHAT, chat(max_tokens=1) | {"unknown": "x" * (MIB * 3 // 4)}))) != 200:
            assert time.monotonic() < deadline, "what was kept is given back"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/messages/count_tokens", chat()),
        ("/v1/responses/input_tokens", {"model": MODEL, "input": "a"}),
    ],
)
def test_bodies_whose_tokens_are_counted_are_bounded_with_the_others(path: str, sent: dict[str, Any]) -> None:
    service = make_service(FakeRunner(context=CONTEXT))
    with TestClient(create_app(service)) as client:
        assert client.post(path, json=sent).status_code == 200
        assert service.bodies._kept == 0
        service.bodies._kept = body.KEPT_AT_ONCE * service.limits.max_body_bytes
        answer = client.post(path, json=sent)
        assert answer.status_code in (429, 503, 529)
        assert "long bodies" in answer.text


def _many(unit: bytes, total: int = 8 * MIB - 1000) -> bytes:
    return unit * (total // len(unit))


def _chat(field: bytes) -> bytes:
    return b'{"model":"%b","messages":[{"role":"user","content":"x"}],%b}' % (MODEL.encode(), field)


def _tool(inside: bytes) -> bytes:
    return _chat(b'"tools":[{"type":"function","function":{"name":"f","parameters":{"a":%b}}}]' % inside)


BOMBS: dict[str, Callable[[], bytes]] = {
    "open lists": lambda: _chat(b'"x":' + _many(b"[")),
    "deep lists": lambda: _tool(_many(b"[", 3 * MIB) + _many(b"]", 3 * MIB)),
    "deep objects": lambda: _tool(_many(b'{"a":', 4 * MIB) + b"1" + _many(b"}", MIB)),
    "objects": lambda: _tool(b"[" + _many(b"{},") + b"{}]"),
    "lists": lambda: _tool(b"[" + _many(b"[],") + b"[]]"),
    "texts": lambda: _tool(b"[" + _many(b'"",') + b'""]'),
    "numbers": lambda: _tool(b"[" + _many(b"1,") + b"1]"),
    "fractions": lambda: _tool(b"[" + _many(b"1e9,") + b"1]"),
    "keys": lambda: _tool(b"{" + b",".join(b'"%d":1' % number for number in range(700_000)) + b"}"),
    "unknown fields": lambda: _chat(_many(b'"x":1,') + b'"x":1'),
    "biases": lambda: _chat(b'"logit_bias":{' + b",".join(b'"%d":1' % number for number in range(700_000)) + b"}"),
    "stops": lambda: _chat(b'"stop":[' + _many(b'"a",') + b'"a"]'),
    "messages": lambda: (
        b'{"model":"%b","messages":[%b{"role":"user","content":"x"}]}'
        % (MODEL.encode(), _many(b'{"role":"user","content":""},'))
    ),
    "parts": lambda: (
        b'{"model":"%b","messages":[{"role":"user","content":[%b{"type":"text","text":""}]}]}'
        % (MODEL.encode(), _many(b'{"type":"text","text":""},'))
    ),
    "as many messages as may be": lambda: (
        b'{"model":"%b","messages":[%b{"role":"user","content":"x"}]}'
        % (MODEL.encode(), b'{"role":"user","content":""},' * (body.MAX_PARTS // 7 - 10))
    ),
    "as many numbers as may be": lambda: _tool(b"[" + b"1," * (body.MAX_COMMAS - 100) + b"1]"),
    "as many objects as may be": lambda: _tool(b"[" + b"{}," * (body.MAX_PARTS - 100) + b"{}]"),
    "a long number": lambda: _chat(b'"seed":' + _many(b"1")),
    "a long fraction": lambda: _chat(b'"temperature":0.' + _many(b"1")),
    "a number out of range": lambda: _chat(b'"temperature":1e' + _many(b"9")),
    "escapes": lambda: _chat(b'"user":"' + _many(b"\\u0041") + b'"'),
    "quotes": lambda: _chat(b'"user":"' + _many(b'\\"') + b'"'),
    "a text that never ends": lambda: _chat(b'"user":"' + _many(b'\\"')),
    "quotes outside of texts": lambda: _chat(_many(b'"')),
    "backslashes": lambda: _chat(b'"user":"' + _many(b"\\\\")),
    "white space": lambda: _chat(b'"x":' + _many(b" ") + b"1"),
    "token ids": lambda: b'{"model":"%b","prompt":[%b1]}' % (MODEL.encode(), _many(b"1,")),
    "lists of token ids": lambda: b'{"model":"%b","prompt":[%b[1]]}' % (MODEL.encode(), _many(b"[1],")),
    "prompts": lambda: b'{"model":"%b","prompt":[%b"x"]}' % (MODEL.encode(), _many(b'"x",')),
    "zeros": lambda: bytes(8 * MIB),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_body_never_holds_the_loop_for_long(kind: str, address: str) -> None:
    content = BOMBS[kind]()
    assert len(content) <= 8 * MIB
    path = "/v1/completions" if b'"prompt":' in content[:50] else CHAT
    with health_stays(address, 1.5):
        answer = httpx.post(address + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in (200, 400)
    assert len(answer.content) < 20_000


def test_bytes_in_any_disorder_are_no_failure(address: str, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(SEED)
    whole = [
        post(CHAT, chat(), "Connection: keep-alive"),
        post(CHAT, chat(stream=True), "Upgrade: h2c", "Connection: Upgrade"),
        CHUNKS + b"5\r\n{    \r\n0\r\n\r\n",
        GET + b"\r\n",
    ]
    with health_stays(address, 2.0):
        for _ in range(300):
            data = bytearray(b"".join(chance.choices(whole, k=chance.randint(1, 4))))
            for _ in range(chance.randint(0, 6)):
                place = chance.randrange(len(data))
                match chance.randrange(4):
                    case 0:
                        data[place] = chance.randrange(256)
                    case 1:
                        del data[place : place + chance.randint(1, 40)]
                    case 2:
                        data[place:place] = chance.choice([b"\r\n", b"\r\n\r\n", b"\0", b":", b" ", b"0\r\n\r\n"])
                    case _:
                        data[place:place] = data[: chance.randint(1, 100)]
                data = data or bytearray(b"\n")
            _throw(address, bytes(data), chance)
    assert [record for record in caplog.records if record.exc_info] == [], f"DEEPWELL_SEED={SEED}"
    assert httpx.post(address + CHAT, json=chat(max_tokens=1)).status_code == 200
    assert 'status="500"' not in httpx.get(address + "/metrics").text, f"DEEPWELL_SEED={SEED}"


def _throw(address: str, data: bytes, chance: random.Random) -> None:
    with connect(address, timeout=5) as victim:
        try:
            cut = chance.randrange(len(data) + 1)
            victim.sendall(data[:cut])
            victim.sendall(data[cut:])
            if chance.random() < 0.5:
                victim.shutdown(socket.SHUT_WR)
                answer = everything(victim)
                assert not answer or answer.startswith(b"HTTP/1.1 "), f"DEEPWELL_SEED={SEED}"
        except (OSError, TimeoutError):
            pass
