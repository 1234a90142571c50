"""Answers out: deltas watched for silence and for a client that leaves, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deepwell.engine.engine import Stream
from deepwell.engine.types import Delta

T = TypeVar("T")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


async def while_there(work: asyncio.Future[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client leaves first: ClientDisconnect."""
    gone = asyncio.ensure_future(_disconnected(receive))
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in both:
            task.cancel()


async def watch(stream: Stream, receive: Receive, silence: float | None = None) -> AsyncGenerator[Delta | None, None]:
    """Deltas as they come; None whenever `silence` seconds pass without one.

    Raises ClientDisconnect as soon as the client leaves. However it ends, the request is aborted if still running.
    """
    gone = asyncio.ensure_future(_disconnected(receive))
    step: asyncio.Future[Delta | None] | None = None
    try:
        while True:
            step = step or asyncio.ensure_future(_next(stream))
            both: set[asyncio.Future[Any]] = {step, gone}
            await asyncio.wait(both, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            if not step.done():
                yield None
                continue
            delta, step = step.result(), None
            if delta is None:
                return
            yield delta
    finally:
        stream.abort()
        for task in (step, gone):
            if task is not None:
                task.cancel()


def event(data: msgspec.Struct) -> bytes:
    """A struct as one server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events about a running request, which is aborted if they end early.

    A client that leaves ends them quietly.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], stream: Stream) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._stream = events, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await self.stream_response(send)
        except (ClientDisconnect, OSError):
            return
        finally:
            # Events that were never begun cannot do this themselves.
            self._stream.abort()


async def _next(stream: AsyncIterator[Delta]) -> Delta | None:
    return await anext(stream, None)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
