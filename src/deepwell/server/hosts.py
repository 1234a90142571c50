"""Which names a server answers to.

A page of a stranger can have its own name lead to 127.0.0.1 (DNS rebinding), and the browser then takes a server on
this machine for that stranger's. The Host header says which name was meant; an address cannot be such a name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepwell.errors import shown
from deepwell.server.errors import FORBIDDEN, JsonResponse, error_body

ANY = "*"


class Hosts:
    """The names of a server that listens on `address`: this machine's, those `allowed` by hand, and addresses.

    On a loopback address only loopback addresses, since nothing else leads there. `allowed` may hold *, for every name.
    """

    def __init__(self, address: str, allowed: Iterable[str] = ()) -> None:
        machine = socket.gethostname().lower()
        self._names = {"localhost", machine, f"{machine}.local", *(_plain(name) for name in allowed)}
        bound = _address(address)
        self._loopback = bound is not None and bound.is_loopback

    def knows(self, host: str) -> bool:
        """Whether a Host header, with or without a port, names this server."""
        name = _name(host)
        if name is None:
            return False
        address = _address(name)
        if ANY in self._names or name in self._names or name.endswith(".localhost"):
            return True
        return address is not None and (address.is_loopback or not self._loopback)


class CheckHost:
    """Refuses requests that were meant for another name. Those of HTTP/1.0 may name none."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host is None or self._hosts.knows(host):
            await self._app(scope, receive, send)
            return
        message = f"this server does not answer to the name {shown(host)}; serve with --allow-host NAME to let it"
        await JsonResponse(error_body(message, FORBIDDEN), status_code=403)(scope, receive, send)


def _name(host: str) -> str | None:
    """The name in a Host header, as `_plain` has it; None if there is none."""
    try:
        return _plain(urlsplit(f"//{host}").hostname or "") if not set(host) & set("/?#@\\ ") else None
    except ValueError:
        return None


def _plain(name: str) -> str:
    return name.strip("[]").lower().rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
