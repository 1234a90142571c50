"""From a running request to an HTTP answer, whole or streamed, whatever the endpoint."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, closing
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deepwell.engine.engine import Stream
from deepwell.engine.types import Delta, FinishReason, join
from deepwell.errors import EngineStopped
from deepwell.server.errors import INTERNAL, JsonResponse, error_body
from deepwell.server.metrics import RequestTimer
from deepwell.server.replies import Finish
from deepwell.server.wire import DONE, KEEP_ALIVE, EventStream, event, watch


class Writer(Protocol):
    """How one endpoint words its answers."""

    def chunks(self, delta: Delta) -> Iterable[msgspec.Struct]:
        """The events of the next piece of a streamed answer."""
        ...

    def answer(self, whole: Delta) -> msgspec.Struct:
        """The body of an answer that came in one piece."""
        ...


async def respond(
    request: Request, stream: Stream, writer: Writer, timer: RequestTimer, streamed: bool, silence: float
) -> Response:
    """Answer with the deltas of `stream`: as events (a comment line after `silence` seconds without one), or whole.

    Raises EngineStopped if the engine stops before the first token of a whole answer, ClientDisconnect if the client
    leaves before its end.
    """
    if streamed:
        return EventStream(_events(request, stream, writer, timer, silence), stream)
    whole = await _whole(request, stream, timer)
    if whole.finish_reason == "error":
        return JsonResponse(error_body(whole.error or "the engine failed", INTERNAL), status_code=500)
    if whole.finish_reason == "abort" and not whole.token_ids:
        raise EngineStopped("the server stopped before this request began; try again")
    return JsonResponse(writer.answer(whole))


def finish_of(reason: FinishReason) -> Finish:
    """DeepSeek's word for why an answer ended."""
    return "stop" if reason == "stop" else "length" if reason == "length" else "insufficient_system_resource"


async def _events(
    request: Request, stream: Stream, writer: Writer, timer: RequestTimer, silence: float
) -> AsyncGenerator[bytes, None]:
    with closing(timer):
        async with aclosing(watch(stream, request.receive, silence)) as deltas:
            async for delta in deltas:
                if delta is None:
                    yield KEEP_ALIVE
                    continue
                timer.delta(delta)
                if delta.finish_reason == "error":
                    yield event(error_body(delta.error or "the engine failed", INTERNAL))
                    continue
                for chunk in writer.chunks(delta):
                    yield event(chunk)
        yield DONE


async def _whole(request: Request, stream: Stream, timer: RequestTimer) -> Delta:
    """All deltas as one. Raises ClientDisconnect if the client leaves first."""
    parts: list[Delta] = []
    with closing(timer):
        async with aclosing(watch(stream, request.receive)) as deltas:
            async for delta in deltas:
                if delta is not None:
                    timer.delta(delta)
                    parts.append(delta)
    return join(parts)
