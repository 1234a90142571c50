"""Everything under a path of its own, for a server behind a proxy that gives it a part of a site."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class BasePath:
    """Has /prefix/v1/models answered as /v1/models is, and sends /prefix to /prefix/.

    Paths without the prefix are answered too: some proxies take it away, and what watches the server knows of none.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._prefix and scope["type"] == "http":
            if scope["path"] == self._prefix:
                # From the folder above, whatever the proxy has put before.
                home = self._prefix.rpartition("/")[2] + "/"
                await RedirectResponse(home, status_code=308)(scope, receive, send)
                return
            if scope["path"].startswith(self._prefix + "/"):
                scope = {**scope, "root_path": self._prefix}
        await self._app(scope, receive, send)
