"""From exceptions to DeepSeek's error bodies and status codes."""

from __future__ import annotations

import logging
import zlib
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.errors import (
    BadKey,
    Broke,
    EngineStopped,
    Forbidden,
    LedgerDown,
    ModelUnknown,
    NotFound,
    OverLimit,
    QueueFull,
    RequestError,
    Unavailable,
)
from deepwell.server.request_log import record_of

INVALID = "invalid_request_error"
FORBIDDEN = "permission_error"
BUSY = "rate_limit_error"
STOPPING = "server_overloaded"
UNAUTHENTICATED = "authentication_error"
BROKE = "insufficient_balance"
INTERNAL = "internal_server_error"
FAILED = "the server failed to answer; its log says why"
CLIENT_GONE = 499
"""Status of an answer that nobody waits for any more; only the log and the metrics see it."""
RETRY_AFTER_STOP = 5
"""Seconds a client should wait when this server is going down."""

logger = logging.getLogger("deepwell.server")


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong; `param` names the field at fault, when there is one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class BodyTooLarge(Exception):
    """The request's body is longer than the server reads."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than the {limit} bytes this server accepts (--max-body-mb)")


class BodyTooSlow(Exception):
    """The request's body does not come fast enough to be waited for."""


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> ErrorBody:
    """An error whose type and code are both `kind`, as DeepSeek's are, unless there is a code of its own."""
    return ErrorBody(ErrorDetail(message, kind, param, code or kind))


class JsonResponse(Response):
    """A msgspec struct as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    status = 404 if isinstance(error, ModelUnknown | NotFound) else 400
    return JsonResponse(error_body(str(error), INVALID, error.param, error.code), status_code=status)


async def _too_large(_: Request, error: Exception) -> Response:
    return JsonResponse(error_body(str(error), INVALID), status_code=413)


async def _too_slow(_: Request, error: Exception) -> Response:
    body = error_body(str(error), INVALID)
    return JsonResponse(body, status_code=408, headers={"Connection": "close"})


async def _busy(request: Request, error: Exception) -> Response:
    """For a full server. Where nobody has a key, it is who asks that asks too much."""
    assert isinstance(error, QueueFull)
    own = zlib.crc32(record_of(request.scope).id.encode()) % (error.retry_after + 1)  # so that not all come at once
    headers = {"Retry-After": str(min(error.retry_after + own, 60))}
    caller = request.scope.get("state", {}).get("caller")
    if caller is not None and not caller.anonymous:
        return JsonResponse(error_body(str(error), STOPPING), status_code=503, headers=headers)
    return JsonResponse(error_body(str(error), BUSY), status_code=429, headers=headers)


def unauthenticated(error: BadKey) -> Response:
    """For a request whose key does not hold, in DeepSeek's words."""
    body = error_body(f"Authentication Fails: {error}", UNAUTHENTICATED, code=INVALID)
    return JsonResponse(body, status_code=401, headers={"WWW-Authenticate": "Bearer"})


def forbidden(error: Forbidden) -> Response:
    """For a request that takes a key of another role."""
    return JsonResponse(error_body(str(error), FORBIDDEN), status_code=403)


def ledger_down(error: LedgerDown) -> Response:
    """For a request that could not be written down."""
    headers = {"Retry-After": str(error.retry_after)}
    return JsonResponse(error_body(str(error), STOPPING), status_code=503, headers=headers)


async def _unauthenticated(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadKey)
    return unauthenticated(error)


async def _forbidden(_: Request, error: Exception) -> Response:
    assert isinstance(error, Forbidden)
    return forbidden(error)


async def _broke(_: Request, error: Exception) -> Response:
    return JsonResponse(error_body(str(error), BROKE, code=INVALID), status_code=402)


async def _over_limit(_: Request, error: Exception) -> Response:
    assert isinstance(error, OverLimit)
    headers = {"Retry-After": str(error.retry_after)}
    return JsonResponse(error_body(str(error), BUSY, code=error.limit), status_code=429, headers=headers)


async def _ledger_down(_: Request, error: Exception) -> Response:
    assert isinstance(error, LedgerDown)
    return ledger_down(error)


async def _stopping(_: Request, error: Exception) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_STOP)}
    return JsonResponse(error_body(str(error), STOPPING), status_code=503, headers=headers)


async def _gone(_: Request, __: Exception) -> Response:
    """For a client that hung up, whether in the middle of its own body or while its prompt was read."""
    return Response(status_code=CLIENT_GONE)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is nothing at {request.url.path}; /openapi.json lists the endpoints",
        405: f"{request.method} is not allowed at {request.url.path}",
    }.get(error.status_code, error.detail)
    return JsonResponse(error_body(message, INVALID), status_code=error.status_code, headers=error.headers)


HANDLERS: dict[Any, Any] = {
    RequestError: _invalid,
    BodyTooLarge: _too_large,
    BodyTooSlow: _too_slow,
    QueueFull: _busy,
    BadKey: _unauthenticated,
    Forbidden: _forbidden,
    Broke: _broke,
    OverLimit: _over_limit,
    LedgerDown: _ledger_down,
    EngineStopped: _stopping,
    Unavailable: _stopping,
    ClientDisconnect: _gone,
    HTTPException: _http,
}
"""Starlette's table of exception handlers. None is a plain function: those run in threads, for which a busy server
would wait."""


class AnswerFailures:
    """Answers where the application fails, and logs why.

    Starlette would do so too, but outside of the other middleware, whose headers such an answer needs as well.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if started or scope["type"] != "http":
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await JsonResponse(error_body(FAILED, INTERNAL), status_code=500)(scope, receive, send)
