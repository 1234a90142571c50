"""A client's connection: bytes in, bounded and timed, and answers out, in the order of their requests.

httptools parses and uvicorn accepts; this is what stands between them in place of uvicorn's own protocol, which loses
the body of a request that offers an upgrade, bounds no head, and takes a client that has only ended its own side for
gone.
"""

from __future__ import annotations

import asyncio
import select
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec
from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from deepwell.server.errors import FAILED, INTERNAL, INVALID, STOPPING, error_body
from deepwell.server.exchange import Exchange, status_line
from deepwell.server.request_log import log_refusal

HEAD_BYTES = 1 << 16
"""Of a request's target and headers together, and of all that may come without meaning anything."""
HEADERS = 128
"""Headers of a request."""
PIPELINED = 64
"""Requests that may come before the first of them is answered."""
HEAD_SECONDS = 20.0
"""From a head's first byte to its last."""
IDLE_SECONDS = 75.0
"""Without a request; longer than proxies keep their side, so that they never write into a connection being closed."""
UNREAD_SECONDS = 300.0
"""How long a client may leave an answer unread."""
LINGER_SECONDS = 0.5
"""How long a refused client is listened to, so that the refusal reaches it before the connection is reset."""
PEER_SECONDS = 0.25
"""How often is looked whether a client that has ended its own side is still there for the answer."""

_RESET = select.POLLHUP | select.POLLERR if hasattr(select, "poll") else 0


class Refused(Exception):
    """A request that is not answered by the application."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(asyncio.Protocol):
    """One of uvicorn's protocols, by its constructor, `connections`, `tasks` and `shutdown`.

    The methods from `on_message_begin` on are the parser's callbacks.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._app: ASGIApp = config.loaded_app
        self._state, self._app_state = server_state, app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = self._new_parser()
        self._running: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._newest: Exchange | None = None
        self._refusal: tuple[int, str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deaf = self._ended = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._in_head = self._upgrades = self._told = False
        self._untold = 0

    @property
    def default_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of every answer."""
        return self._state.default_headers

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not say so
        self._client = get_remote_addr(self._transport)
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._told = False
        try:
            while data:
                data = self._feed(data)
        except Refused as refused:
            self._refuse(refused.status, str(refused))

    def eof_received(self) -> bool:
        """Whether the connection stays open: for answers still to come, if the client may be there for them."""
        self._ended = self._deaf = True
        self._forget_half()
        if self._running is None:
            return False
        if self._refusal is None:
            (self._waiting or [self._running])[-1].keep_alive = False
        self._ask_peer()
        self._watch_peer()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._stop_timer()
        self._deaf = True
        for exchange in (self._running, self._newest, *self._waiting):
            if exchange is not None:
                exchange.leave()
        self._waiting.clear()
        self._running = None
        self._may_write.set()
        del self._parser  # which knows this connection: a circle

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # What uvicorn tells.

    def shutdown(self) -> None:
        """Take no more requests; the answer that runs may end. A body that is only half here will not be waited for."""
        self._waiting.clear()
        self._refusal = None
        running = self._running
        if running is None:
            self._transport.close()
        elif running.more_body and not running.started:
            self._newest = running
            self._refuse(503, "the server is stopping; try again later", STOPPING)
        else:
            running.keep_alive = False
            self._deaf = True

    # What exchanges ask for.

    def write(self, data: bytes) -> None:
        """Put bytes on the wire."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def writable(self) -> None:
        """Wait until the client has read enough. One that reads nothing for UNREAD_SECONDS is cut off."""
        if self._may_write.is_set():
            return
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await self._may_write.wait()
        except TimeoutError:
            self._transport.abort()

    def read_on(self) -> None:
        """Read more of a body."""
        if not self._deaf and not self._transport.is_closing():
            self._transport.resume_reading()

    def answered(self, exchange: Exchange) -> None:
        """The answer is whole: on to the next request."""
        self._state.total_requests += 1
        if exchange is not self._running:
            return
        self._running = None
        if not exchange.keep_alive:
            self._close()
        elif self._waiting:
            self._start(self._waiting.popleft())
        elif self._refusal is not None:
            self._say(*self._refusal)
        else:
            self.read_on()
            self._watch()

    def broken(self, exchange: Exchange) -> None:
        """The application will not end its answer."""
        if exchange.started or exchange is not self._running:
            self._transport.close()
        else:
            self._running = None
            self._say(500, FAILED, INTERNAL)

    # What the parser tells.

    def on_message_begin(self) -> None:
        self._told = self._in_head = True
        self._upgrades = False
        self._url = b""
        self._size = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._watch()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow(len(name) + len(value) + 4)
        if not self._in_head:
            return  # a trailer: bounded like the head, and not wanted
        if len(self._headers) == HEADERS:
            raise Refused(431, f"the request has more than {HEADERS} headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._told, self._in_head = True, False
        if self._parser.get_method() == b"CONNECT":
            raise Refused(405, "this server is no proxy: CONNECT is not allowed")
        if self._parser.should_upgrade():
            self._upgrades = True  # the parser stops after the head; see `_without_upgrade`
            return
        exchange = Exchange(
            self,
            self._scope(),
            expects=any(name == b"expect" and value.lower() == b"100-continue" for name, value in self._headers),
            keep_alive=self._parser.get_http_version() != "1.0" and self._parser.should_keep_alive(),
        )
        self._newest = exchange
        if self._running is None:
            self._start(exchange)
        elif len(self._waiting) < PIPELINED and self._running.keep_alive:
            self._waiting.append(exchange)
            self._transport.pause_reading()
        else:
            raise Refused(429, "too many requests at once on one connection")

    def on_body(self, body: bytes) -> None:
        self._told = True
        exchange = self._newest
        if exchange is not None and not exchange.complete and not exchange.feed(body):
            self._transport.pause_reading()

    def on_chunk_header(self) -> None:
        self._told = True

    def on_message_complete(self) -> None:
        self._told = True
        if self._newest is not None and not self._upgrades:
            self._newest.end()

    # How it is done.

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Bytes after a last request are ignored here; they must not spoil the answer to it.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _feed(self, data: bytes) -> bytes:
        """Parse. What is left is for another parser."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError as error:
            raise Refused(400, f"this is not a request of HTTP/1.1: {error}") from None
        # A value is told when it is whole: what has come and was not told is in the parser's memory.
        self._untold = 0 if self._told else self._untold + len(data)
        if self._untold > HEAD_BYTES:
            raise Refused(431, f"a request's head may have {HEAD_BYTES} bytes")
        return b""

    def _without_upgrade(self) -> bytes:
        """The head that has just come, for a new parser: a server may ignore an offer to upgrade, but not the body."""
        method = self._parser.get_method()
        version = self._parser.get_http_version().encode("ascii")
        fields = b"".join(b"%b: %b\r\n" % field for field in self._headers if field[0] != b"upgrade")
        self._parser = self._new_parser()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._url, version, fields)

    def _grow(self, size: int) -> None:
        self._told = True
        self._size += size
        if self._size > HEAD_BYTES:
            raise Refused(431, f"a request's target and headers may have {HEAD_BYTES} bytes together")

    def _scope(self) -> Scope:
        version = self._parser.get_http_version()
        host, raw_path, query = _target(self._url)
        if host is not None:  # RFC 9112, 3.2.2: the target's own host is the one that counts
            self._headers = [(b"host", host), *(field for field in self._headers if field[0] != b"host")]
        hosts = sum(name == b"host" for name, _ in self._headers)
        if hosts > 1 or (hosts == 0 and version != "1.0"):
            raise Refused(400, f"a request must have one Host header, and this one has {hosts}")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": get_local_addr(self._transport),
            "client": self._client,
            "scheme": "http",
            "method": self._parser.get_method().decode("ascii"),
            "root_path": "",
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        if not self._ended:
            self._stop_timer()
        task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _refuse(self, status: int, message: str, kind: str = INVALID) -> None:
        """Answer what cannot be answered by the application, after the requests before it, and hear no more."""
        self._deaf = True
        self._forget_half()
        if self._running is not None:
            self._refusal = status, message, kind
        else:
            self._say(status, message, kind)

    def _forget_half(self) -> None:
        """Drop a request of which no more will be heard; if its answer had begun, it ends here, and the connection."""
        newest, self._newest = self._newest, None
        if newest is None or not newest.more_body:
            return
        if newest is self._running:
            self._running = None
            newest.leave()
            if newest.started:
                self._transport.close()
        elif self._waiting and self._waiting[-1] is newest:
            self._waiting.pop()

    def _say(self, status: int, message: str, kind: str) -> None:
        """Write a refusal, the last word on this connection."""
        if self._transport.is_closing():
            return
        id = uuid.uuid4().hex
        body = msgspec.json.encode(error_body(message, kind))
        fields = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {id}\r\n"
        self.write(status_line(status) + fields.encode("ascii") + b"connection: close\r\n\r\n" + body)
        log_refusal(self._client, status, message, id)
        self._close()

    def _close(self) -> None:
        """Say no more, and listen a little while: to close on unread bytes would reset what was said last."""
        self._deaf = True
        self._stop_timer()
        if self._transport.is_closing():
            return
        try:
            if self._ended or not self._transport.can_write_eof():
                raise OSError
            self._transport.write_eof()
        except OSError:  # nobody listens any more
            self._transport.close()
            return
        self._transport.resume_reading()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._transport.close)

    def _watch(self) -> None:
        """Time what the client has to do next."""
        self._stop_timer()
        if self._running is None and not self._deaf:
            late: Callable[[], None] = self._late_head if self._in_head else self._transport.close
            self._timer = self._loop.call_later(HEAD_SECONDS if self._in_head else IDLE_SECONDS, late)

    def _late_head(self) -> None:
        self._refuse(408, f"the head of the request did not come within {HEAD_SECONDS:.0f} seconds")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ask_peer(self) -> None:
        """Write what changes nothing for a client that waits, and has the machine of one that left say so."""
        running = self._running
        if running is not None and not running.started and running.scope["http_version"] == "1.1":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _watch_peer(self) -> None:
        """End a connection that was reset. Nothing else tells, since nothing more is read of a side that has ended."""
        if self._transport.is_closing() or not _RESET:
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        if any(event & _RESET for _, event in poll.poll(0)):
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(PEER_SECONDS, self._watch_peer)


def _target(url: bytes) -> tuple[bytes | None, bytes, bytes]:
    """Host, path and query of a request's target: a path, an absolute address, or * (all of the server)."""
    host = None
    if url[:1] not in (b"/", b"*"):
        try:
            parsed = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            raise Refused(400, "the request's target is neither a path nor an address") from None
        port = b"" if parsed.port is None else b":%d" % parsed.port
        host, url = (parsed.host or b"") + port, (parsed.path or b"/") + b"?" + (parsed.query or b"")
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return host, path, query
