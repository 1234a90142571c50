"""The server process: a socket, uvicorn, and an end in which no stream is cut off without a word."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from deepwell.errors import ConfigError
from deepwell.server.app import SITE, create_app
from deepwell.server.connection import Connection
from deepwell.server.hosts import Hosts
from deepwell.server.request_log import set_log
from deepwell.server.service import Service
from deepwell.server.site import Site

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 2048
"""Connections that may wait to be accepted."""
LAST_WORDS_SECONDS = 5
"""How long answers may take to reach their readers after the engine has drained."""


def serve(
    service: Service,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None = None,
    site: Site = SITE,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers end within the engine's drain time. A second signal ends
    the process at once.

    `listener` is a socket of `listen`; `on_ready` gets the base address (http://127.0.0.1:8000) once requests are
    answered.
    """
    Server(service, listener, on_ready, site).run()


def listen(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """A socket that listens; `port` 0 takes a free one. ConfigError if the address cannot be had.

    For before a model is loaded: a port that is taken is said at once, and nobody else can take it during the load.
    Whoever connects meanwhile waits in the backlog and is answered as soon as requests are. (Only bound, two servers
    could hold the port, and one would fail after its load.)
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        reason = error.strerror or str(error)
        of_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        advice = "name an address of this machine with --host" if of_host else "choose another with --port"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; {advice}") from None
    return listener


class Server(uvicorn.Server):
    """A listening server. `address` is its base URL; `run` serves until a signal, or until `should_exit` is set."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        on_ready: Callable[[str], None] | None = None,
        site: Site = SITE,
    ) -> None:
        self._service, self._on_ready = service, on_ready
        self._listener = listener
        self.address = _address(self._listener)
        set_log(site.log, site.log_format)
        hosts = Hosts(listener.getsockname()[0], (site.host, *site.allow_hosts))
        config = uvicorn.Config(
            create_app(service, site, hosts),
            http=Connection,
            lifespan="on",
            ws="none",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(service.engine.config.drain_seconds) + LAST_WORDS_SECONDS,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on the socket given at construction."""
        super().run(sockets or [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; tells `on_ready`."""
        await super().startup(sockets)
        if self._on_ready is not None:
            self._on_ready(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, with the engine draining meanwhile.

        uvicorn stops the application only after its connections end, and they end when the engine drains.
        """
        drained = self._service.stop()
        await super().shutdown(sockets)
        await drained

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again at the end; but a drained server has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; at the second, leave as if it had not been caught."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
