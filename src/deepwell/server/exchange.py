"""One request on a connection and its answer, as an ASGI application sees them."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Scope

if TYPE_CHECKING:
    from deepwell.server.connection import Connection

HIGH_WATER = 1 << 16
"""Bytes of a body that may wait for the application; then no more are read."""

_BAD_FIELD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

logger = logging.getLogger("deepwell.server")


class Exchange:
    """A request whose body comes by `feed` and `end`, and what is answered to it.

    `expects`: the client waits for leave to send its body. `keep_alive`: the connection may serve another request
    afterwards. `started` and `complete` are said of the answer, `more_body` of the request; `gone` that nobody is there
    any more.
    """

    def __init__(self, connection: Connection, scope: Scope, expects: bool, keep_alive: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.started = self.complete = self.gone = False
        self.more_body = True
        self._connection = connection
        self._expects = expects
        self._body = bytearray()
        self._end_told = False
        self._news = asyncio.Event()
        self._old = scope["http_version"] == "1.0"
        self._chunked = False
        self._left = 0

    def feed(self, body: bytes) -> bool:
        """Take a piece of the body. Whether there is room for more."""
        self._body += body
        self._news.set()
        return len(self._body) <= HIGH_WATER

    def end(self) -> None:
        """The body is whole."""
        self.more_body = False
        self._news.set()

    def leave(self) -> None:
        """Nobody is there any more: what is sent from now on is dropped."""
        self.gone = True
        self._news.set()

    async def run(self, app: ASGIApp) -> None:
        """Have the application answer. What it fails to say is said or cut off here."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            logger.exception("the application failed to answer")
        finally:
            if not self.complete and not self.gone:
                self._connection.broken(self)

    async def receive(self) -> Message:
        """The next piece of the body; after its end, nothing until the client has gone or the answer is whole."""
        if self._expects and not self.started and not self._old:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._expects = False
        while not (self.gone or self.complete):
            if self._body or (not self.more_body and not self._end_told):
                body, self._body = bytes(self._body), bytearray()
                self._end_told = not self.more_body
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            self._news.clear()
            self._connection.read_on()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Write a part of the answer, when the client has read enough of what came before."""
        await self._connection.writable()
        if self.gone:
            return
        if message["type"] == "http.response.start" and not self.started:
            self.started = True
            self._connection.write(self._head(message["status"], message.get("headers", ())))
        elif message["type"] == "http.response.body" and self.started and not self.complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is out of turn")

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The status line and the fields; how the body's end will be known is chosen here."""
        lines = [status_line(status)]
        length = None
        for name, value in (*self._connection.default_headers, *headers):
            if _BAD_FIELD.search(value):
                raise RuntimeError(f"the value of the answer's header {name!r} has control characters")
            lower = name.lower()
            if lower == b"content-length":
                length = int(value)
            if lower == b"connection" and b"close" in value.lower():
                self.keep_alive = False
            elif lower != b"transfer-encoding":
                lines.append(b"%b: %b\r\n" % (name, value))
        bodiless = self.scope["method"] == "HEAD" or status < 200 or status in (204, 304)
        self._left = 0 if bodiless or length is None else length
        self._chunked = length is None and not bodiless and not self._old
        if length is None and not bodiless and self._old:
            self.keep_alive = False
            self._left = -1
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        return b"".join((*lines, b"\r\n"))

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._connection.write(piece if more else piece + b"0\r\n\r\n")
        elif self._left < 0:
            self._connection.write(body)
        elif self._left:
            if len(body) > self._left:
                raise RuntimeError("the answer is longer than its Content-Length")
            self._left -= len(body)
            self._connection.write(body)
        if not more:
            if self._left > 0:
                raise RuntimeError("the answer is shorter than its Content-Length")
            self.complete = True
            self._news.set()
            self._connection.answered(self)


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")
