"""One request to the application from inside: the same endpoint, rules and words as over a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message

from deepwell.server.batches.objects import LineAnswer
from deepwell.server.request_log import Record

PRIORITY = -1
"""Behind everybody who waits for an answer."""


async def ask(app: ASGIApp, path: str, body: bytes, id: str, caller: Any) -> LineAnswer:
    """POST a JSON body as `caller`, and wait for the answer however long it takes. The answer has the id `id`, in the
    ledger too, so that a line that is asked again after a kill is still billed once."""
    record = Record(id)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "server": None,
        "client": None,
        "state": {"record": record, "priority": PRIORITY, "kind": "batch", "caller": caller, "answer_id": id},
    }
    request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    said: list[bytes] = []
    never = asyncio.Event()

    async def receive() -> Message:
        if not request:
            await never.wait()
        return request.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
        else:
            said.append(message.get("body", b""))

    await app(scope, receive, send)
    answer = msgspec.json.decode(b"".join(said).lstrip() or b"null")
    late_failure = record.status == 200 and isinstance(answer, dict) and answer.get("error") is not None
    return LineAnswer(500 if late_failure else record.status, id, answer)
