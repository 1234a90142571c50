"""Who asks: API keys in headers, and what may be asked without one.

Keys come as `Authorization: Bearer sk-...` or `x-api-key: sk-...`, and never in cookies, so no page of a stranger can
act with them. While no key exists, everybody may ask for answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deepwell.accounts import Caller, Platform
from deepwell.errors import BadKey, Forbidden, LedgerDown
from deepwell.server.errors import forbidden, ledger_down, unauthenticated
from deepwell.server.request_log import record_of

OPEN = frozenset({"/health", "/openapi.json"})
"""Asked without a key: whether the server lives, and what it can do."""
WATCHED = "/metrics"
"""For administrators, and for whoever is on this machine."""

_LOOKUPS = ThreadPoolExecutor(2, "deepwell-callers")
"""Reads the database, so that the event loop never waits for it."""


class KnowCallers:
    """Notes in a request's state who asks, as `caller`, and refuses who may not.

    What the `page` consists of, paths that end in / being folders, is for everybody: it has to be there to be given a
    key.
    """

    def __init__(self, app: ASGIApp, platform: Platform, page: Collection[str]) -> None:
        self._app, self._platform = app, platform
        self._page = OPEN | {path for path in page if path == "/" or not path.endswith("/")}
        self._folders = tuple(path for path in page if path != "/" and path.endswith("/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(_path(scope)):
            await self._app(scope, receive, send)
            return
        try:
            caller = await self._caller(scope)
        except BadKey as error:
            await unauthenticated(error)(scope, receive, send)
            return
        except LedgerDown as error:
            await ledger_down(error)(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        if caller is not None:
            record_of(scope).account = caller.name
        if _path(scope) == WATCHED and caller is not None and not caller.anonymous and caller.role != "admin":
            await forbidden(Forbidden("the metrics are for keys of the role admin"))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._page or path.startswith(self._folders)

    async def _caller(self, scope: Scope) -> Caller | None:
        """Who asks; None for a watcher on this machine. Raises BadKey, LedgerDown."""
        secret = secret_of(Headers(scope=scope))
        try:
            return await looked_up(self._platform, secret)
        except (BadKey, LedgerDown):
            if _path(scope) == WATCHED and secret is None and _is_here(scope):
                return None
            raise


async def looked_up(platform: Platform, secret: str | None) -> Caller:
    """Who has a key. Raises BadKey, LedgerDown."""
    if platform.knows(secret):
        return platform.caller(secret)
    return await asyncio.get_running_loop().run_in_executor(_LOOKUPS, platform.caller, secret)


async def check(platform: Platform, caller: Caller, model: str, kind: str) -> None:
    """Raise at once what keeps a caller from any answer of that kind: see Platform.check."""
    if not caller.anonymous:
        await asyncio.get_running_loop().run_in_executor(_LOOKUPS, platform.check, caller, model, kind)


def caller_of(request: Request) -> Caller | None:
    """Who asks; None where the server keeps no accounts."""
    caller: Caller | None = request.scope.get("state", {}).get("caller")
    return caller


def secret_of(headers: Headers) -> str | None:
    """The key in a request's headers."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        secret = headers.get("x-api-key", "")
    return secret.strip() or None


def allowed(names: Collection[str], caller: Caller | None) -> list[str]:
    """Which of these models a caller may use."""
    models = caller.models if caller else None
    return [name for name in names if models is None or name in models]


def _path(scope: Scope) -> str:
    """The path below the server's own base path."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _is_here(scope: Scope) -> bool:
    """Whether the client is on this machine, and no proxy that speaks for another one."""
    client = scope.get("client")
    headers = Headers(scope=scope)
    if client is None or "x-forwarded-for" in headers or "forwarded" in headers:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
