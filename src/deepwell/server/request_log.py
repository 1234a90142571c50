"""What is noted of each request: an id for its client, a line for the log, counts for the metrics. Never any text."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.errors import shown
from deepwell.options import RequestLog
from deepwell.server.metrics import Metrics, RequestTimer

WATCHERS = frozenset({"/health", "/metrics"})
"""Asked every few seconds by what watches a server; logged only when they fail."""
LONGEST_PATH = 200
ID_HEADER = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_LEVELS = {"requests": logging.INFO, "errors": logging.WARNING, "none": logging.CRITICAL}

logger = logging.getLogger("deepwell.requests")


def set_log(log: RequestLog) -> None:
    """Choose which requests get a line on standard error: all, those that failed, or none."""
    logger.setLevel(_LEVELS[log])
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


class Record:
    """One request while it is answered.

    `model` is what was asked for, `account` who asks; `status` what was answered, 499 if in vain.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.model: str | None = None
        self.account: str | None = None
        self.status = 500
        self.timers: list[RequestTimer] = []
        self._arrived = time.perf_counter()

    def line(self, client: str, method: str, path: str) -> str:
        """The request in one line: seconds, and numbers of tokens."""
        fields = [f"{time.perf_counter() - self._arrived:.3f}s"]
        if self.model is not None:
            fields.append(f"model={shown(self.model)}")
        if self.account:
            fields.append(f"account={shown(self.account)}")
        if self.timers:
            first = min((timer.first for timer in self.timers if timer.first is not None), default=None)
            fields += [
                f"in={sum(timer.prompt_tokens for timer in self.timers)}",
                f"cached={sum(timer.cached_tokens for timer in self.timers)}",
                f"out={sum(timer.tokens for timer in self.timers)}",
                "first=-" if first is None else f"first={first:.3f}s",
            ]
        shown_path = path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "..."
        return f"{client} {method} {shown_path} {self.status} {' '.join(fields)} id={self.id}"


def record_of(scope: Scope) -> Record:
    """What is noted of a request."""
    record: Record = scope["state"]["record"]
    return record


def log_refusal(client: tuple[str, int] | None, status: int, reason: str, id: str) -> None:
    """A line for a request that was refused before it was whole."""
    logger.warning("%s - - %d %s id=%s", client[0] if client else "-", status, reason, id)


class RecordRequests:
    """Gives every request a record and every answer its id, and logs and counts it at its end.

    `paths` are the endpoints; other paths are counted together.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], base_path: str) -> None:
        self._app, self._metrics, self._paths, self._base_path = app, metrics, paths, base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = Headers(scope=scope).get(ID_HEADER, "")
        record = Record(own if _SANE_ID.fullmatch(own) else uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (ID_HEADER.encode(), record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._note(record, scope)

    def _note(self, record: Record, scope: Scope) -> None:
        path = scope["path"].removeprefix(self._base_path)
        self._metrics.http(path if path in self._paths else "other", record.status)
        failed = record.status >= 400
        if path in WATCHERS and not failed:
            return
        client = ascii(scope["client"][0])[1:-1] if scope.get("client") else "-"  # a proxy's header may have named it
        raw = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
        logger.log(logging.WARNING if failed else logging.INFO, "%s", record.line(client, scope["method"], raw))
