"""A client that reads a byte now and then holds up nobody, and costs little more than the text it has not read."""

from __future__ import annotations

import json
import socket
import time
import tracemalloc
from urllib.parse import urlsplit

import httpx
from serving import chat, endless, live, make_service, prompt

from fakes import FakeRunner

TOKENS = 3000
READERS = 8


def test_slow_readers_hold_neither_the_engine_nor_memory() -> None:
    """Answers end while almost nothing was read of them, and are whole when they are read at last."""
    service = make_service(FakeRunner(context=4096, next_token=endless), max_running=READERS + 1)
    with live(service) as address:
        parts = urlsplit(address)
        asked = json.dumps(prompt(stream=True, max_tokens=TOKENS)).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        readers = []
        for _ in range(READERS):
            reader = socket.socket()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((parts.hostname, parts.port))
            reader.sendall(f"{head}Content-Length: {len(asked)}\r\n\r\n".encode() + asked)
            readers.append(reader)
        tracemalloc.start()
        begun = time.monotonic()
        while service.engine.stats().finished["length"] < READERS:
            assert time.monotonic() - begun < 60, "the answers are generated on, whoever reads them"
            for reader in readers:
                assert reader.recv(1)
            time.sleep(0.05)
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert httpx.post(address + "/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200
        assert grown < READERS * (TOKENS * 200 + (1 << 18)), "bytes of what was not read, sockets' buffers included"
        rest = b""
        while b"[DONE]" not in rest:
            rest += readers[0].recv(1 << 20)
        assert rest.count(b'"text":"a') > 100
        assert b'"completion_tokens":%d' % TOKENS in rest
        for reader in readers:
            reader.close()
