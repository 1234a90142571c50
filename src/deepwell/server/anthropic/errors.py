"""Errors in Anthropic's words, on the paths of its API, whoever raises them."""

from __future__ import annotations

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.server.errors import ErrorBody
from deepwell.server.request_log import record_of

PATHS = ("/anthropic", "/v1/messages")

KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""What Anthropic calls an error of a status. Others are of the request below 500, and of the server above."""


class Fault(msgspec.Struct, frozen=True):
    type: str
    message: str


class AnthropicError(msgspec.Struct, frozen=True, tag="error", omit_defaults=True):
    """The body of an error, and the data of an `error` event."""

    error: Fault
    request_id: str | None = None


def worded(message: str, status: int, request_id: str | None = None) -> AnthropicError:
    """An error of a status."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return AnthropicError(Fault(kind, message), request_id)


class WordErrors:
    """Turns the bodies of errors on Anthropic's paths into its own, and adds the header by which its clients know a
    request.

    It stands around everything that may refuse a request; `base_path` may be in front of its paths.
    """

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        self._app, self._base_path = app, base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(self._base_path) if scope["type"] == "http" else ""
        if not any(path == own or path.startswith(own + "/") for own in PATHS):
            await self._app(scope, receive, send)
            return
        id = record_of(scope).id
        held: Message | None = None
        body = b""

        async def reworded(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message.setdefault("headers", [])).append("request-id", id)
                if message["status"] >= 400:
                    held = message
                    return
            elif held is not None:
                body += message.get("body", b"")
                if message.get("more_body", False):
                    return
                body = _reworded(body, held["status"], id)
                MutableHeaders(raw=held["headers"])["content-length"] = str(len(body))
                await send(held)
                await send({"type": "http.response.body", "body": body})
                return
            await send(message)

        await self._app(scope, receive, reworded)


def _reworded(body: bytes, status: int, id: str) -> bytes:
    """The body of an error; one that is not ours stays as it is."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.MsgspecError:
        return body
    return msgspec.json.encode(worded(error.message, status, id))
