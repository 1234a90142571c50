"""Raw bytes to a server, and what comes back."""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit


def connect(address: str, timeout: float = 10.0) -> socket.socket:
    """A connection to a server."""
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=timeout)


def exchange(address: str, data: bytes, *, half_close: bool = False, timeout: float = 10.0) -> bytes:
    """All that a server says to `data` until it ends the connection."""
    with connect(address, timeout) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """What comes until the end; a reset is one too."""
    said = bytearray()
    try:
        while more := connection.recv(1 << 16):
            said += more
    except ConnectionResetError:
        pass
    return bytes(said)


def one_answer(connection: socket.socket) -> bytes:
    """One answer that tells its length; the connection goes on."""
    said = b""
    while True:
        fields, end, body = said.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", fields)
        if end and length and len(body) >= int(length[1]):
            return said
        more = connection.recv(1 << 16)
        assert more, said
        said += more


def post(path: str, body: dict[str, Any], *headers: str, version: str = "1.1", method: str = "POST") -> bytes:
    """A request; the connection ends after its answer unless `headers` say otherwise."""
    content = json.dumps(body).encode()
    fields = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
    if not any(header.lower().startswith("connection:") for header in headers):
        fields.append("Connection: close")
    return head(f"{method} {path} HTTP/{version}", *fields) + content


def head(*lines: str) -> bytes:
    """Lines, and an empty one."""
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def status_of(answer: bytes) -> int:
    """The status of the first answer; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


def body_of(answer: bytes) -> bytes:
    """The body of the only answer, whose length is told or which ends with the connection."""
    fields, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in fields.lower():
        return rest
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        if length == 0:
            return body
        rest = rest[length + 2 :]
