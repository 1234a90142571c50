"""`OPTIONS *`: what the server as a whole can do (RFC 9110, 9.3.7)."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = "GET, HEAD, OPTIONS, POST"


class AnswerAsterisk:
    """Answers for the target `*`, which is no path and so has no route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("OPTIONS", "*"):
            await Response(status_code=204, headers={"Allow": METHODS})(scope, receive, send)
        else:
            await self._app(scope, receive, send)
