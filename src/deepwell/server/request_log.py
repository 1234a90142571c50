"""What is noted of each request: an id for its client, a line for the log, counts for the metrics. Never any text."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.errors import shown
from deepwell.options import LogFormat, RequestLog
from deepwell.server.metrics import Metrics, RequestTimer

WATCHERS = frozenset({"/health", "/metrics"})
"""Asked every few seconds by what watches a server; logged only when they fail."""
LONGEST_PATH = 200
ID_HEADER = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_LEVELS = {"requests": logging.INFO, "errors": logging.WARNING, "none": logging.CRITICAL}

logger = logging.getLogger("deepwell.requests")


def set_log(log: RequestLog, format: LogFormat = "text") -> None:
    """Choose which requests get a line on standard error, all, those that failed, or none; and as what."""
    logger.setLevel(_LEVELS[log])
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
    text = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
    logger.handlers[0].setFormatter(JsonLines() if format == "json" else text)


class Noted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that has ended.

    `time` is when, in seconds since 1970; `seconds` how long it took; `first` until its first token; `answers` are the
    ids under which its answers stand in the ledger. `endpoint` is the path if it is one of ours.
    """

    time: float
    id: str
    client: str
    method: str
    path: str
    endpoint: str = "other"
    status: int
    seconds: float
    model: str | None = None
    account: str | None = None
    answers: list[str] = []
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    first: float | None = None
    traceparent: str | None = None

    @property
    def line(self) -> str:
        """All in one line: seconds, and numbers of tokens."""
        fields = [f"{self.seconds:.3f}s"]
        if self.model is not None:
            fields.append(f"model={shown(self.model)}")
        if self.account:
            fields.append(f"account={shown(self.account)}")
        if self.prompt_tokens is not None:
            fields += [
                f"in={self.prompt_tokens}",
                f"cached={self.cached_tokens}",
                f"out={self.completion_tokens}",
                "first=-" if self.first is None else f"first={self.first:.3f}s",
            ]
        return f"{self.client} {self.method} {self.path} {self.status} {' '.join(fields)} id={self.id}"


class JsonLines(logging.Formatter):
    """A line of JSON for each request, with its `time` as ISO 8601, and for whatever else is said."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        noted = getattr(record, "noted", None)
        said = msgspec.to_builtins(noted) if noted else {"message": record.getMessage()}
        return msgspec.json.encode({**said, "time": moment, "level": record.levelname.lower()}).decode()


class Record:
    """One request while it is answered.

    `model` is what was asked for, `account` who asks, `answers` the ids of its answers; `status` what was answered, 499
    if in vain.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.model: str | None = None
        self.account: str | None = None
        self.answers: list[str] = []
        self.status = 500
        self.timers: list[RequestTimer] = []
        self._arrived = time.perf_counter()

    def noted(self, client: str, method: str, path: str, endpoint: str, traceparent: str | None) -> Noted:
        """What there is to say at its end."""
        timers = self.timers
        return Noted(
            time=time.time(),
            id=self.id,
            client=client,
            method=method,
            path=path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "...",
            endpoint=endpoint,
            status=self.status,
            seconds=round(time.perf_counter() - self._arrived, 6),
            model=None if self.model is None else self.model[:LONGEST_PATH],
            account=self.account or None,
            answers=self.answers,
            prompt_tokens=sum(timer.prompt_tokens for timer in timers) if timers else None,
            cached_tokens=sum(timer.cached_tokens for timer in timers) if timers else None,
            completion_tokens=sum(timer.tokens for timer in timers) if timers else None,
            first=min((timer.first for timer in timers if timer.first is not None), default=None),
            traceparent=traceparent,
        )


def record_of(scope: Scope) -> Record:
    """What is noted of a request."""
    record: Record = scope["state"]["record"]
    return record


def log_refusal(client: tuple[str, int] | None, status: int, reason: str, id: str) -> None:
    """A line for a request that was refused before it was whole."""
    logger.warning("%s - - %d %s id=%s", client[0] if client else "-", status, reason, id)


class RecordRequests:
    """Gives every request a record and every answer its id, and logs and counts it at its end.

    `paths` are the endpoints; other paths are counted together. `tell` is told of each at its end.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: frozenset[str],
        base_path: str,
        tell: Callable[[Noted], None] | None = None,
    ) -> None:
        self._app, self._metrics, self._paths, self._base_path = app, metrics, paths, base_path
        self._tell = tell

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
        endpoint = path if path in self._paths else "other"
        self._metrics.http(endpoint, record.status)
        failed = record.status >= 400
        if path in WATCHERS and not failed:
            return
        client = ascii(scope["client"][0])[1:-1] if scope.get("client") else "-"  # a proxy's header may have named it
        raw = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
        noted = record.noted(client, scope["method"], raw, endpoint, Headers(scope=scope).get("traceparent"))
        level = logging.WARNING if failed else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s", noted.line, extra={"noted": noted})
        if self._tell is not None:
            self._tell(noted)
