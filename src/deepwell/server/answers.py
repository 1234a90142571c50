"""From a running request to an HTTP answer, whole or streamed, whatever the protocol: its `Writer` has all the words.

A new protocol is a file beside chat_completions.py: an endpoint, what it asks as a conversation, and a writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from contextlib import aclosing, closing
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from deepwell.engine.engine import Stream
from deepwell.engine.types import Delta, join
from deepwell.errors import EngineStopped
from deepwell.server.errors import CLIENT_GONE, JsonResponse
from deepwell.server.metrics import RequestTimer
from deepwell.server.request_log import record_of

T = TypeVar("T")
P = TypeVar("P", covariant=True)

FAILED = "the engine failed"
STOPPED = "the server stopped in the middle of this answer; try again"


class AnswerFailed(Exception):
    """The engine failed in the middle of an answer."""


class Abortable(Protocol):
    """Something that runs until it ends, or is aborted."""

    def abort(self) -> None: ...


class Pieces(Abortable, Protocol[P]):
    """What a running request yields. `news` is set when a piece comes, `done` once all were taken."""

    @property
    def news(self) -> asyncio.Event: ...

    @property
    def done(self) -> bool: ...

    def take(self) -> Sequence[P]:
        """All that have come and were not taken yet."""
        ...


class Failing(Protocol):
    """What is said in place of an answer in one piece where there is an error."""

    def failure(self, error: str) -> msgspec.Struct:
        """The body."""
        ...


class Writer(Failing, Protocol):
    """All that a protocol says of one answer. Streamed, it is the opening, the pieces, and the end; each as bytes."""

    media_type: str
    """Of a streamed answer."""

    def opening(self) -> Iterable[bytes]:
        """What comes before the first piece. An answer that fails before it has none."""
        ...

    def pieces(self, delta: Delta) -> Iterable[bytes]:
        """The next piece of the answer; with the last one, how it ended."""
        ...

    def ping(self) -> bytes:
        """A sign of life for a client that waits, at any time."""
        ...

    def failed(self, error: str) -> bytes:
        """What stands in place of the last piece where there is an error."""
        ...

    def ended(self) -> bytes:
        """What comes last, after an error too."""
        ...

    def whole(self, delta: Delta) -> msgspec.Struct:
        """The body of an answer that comes in one piece."""
        ...


async def respond(
    request: Request, stream: Stream, writer: Writer, timer: RequestTimer, streamed: bool, silence: float
) -> Response:
    """Answer with the deltas of `stream`: as events (a ping after `silence` seconds without one), or whole.

    A whole answer that takes longer than `silence` begins with empty lines, one after each, and its status is 200
    whatever comes. Before that, raises EngineStopped if the engine stops before the first token, and ClientDisconnect
    if the client leaves.
    """
    note(request, stream, timer)
    if streamed:
        return EventStream(_events(request, stream, writer, timer, silence), stream, writer.media_type)

    async def whole() -> msgspec.Struct:
        return writer.whole(await _whole(request, stream, timer))

    return await in_one_piece(whole(), stream, writer, silence)


async def in_one_piece(
    answer: Coroutine[Any, Any, msgspec.Struct], source: Abortable, writer: Failing, silence: float
) -> Response:
    """A response with the body that `answer` makes of `source`, late or not; see `respond`."""
    work = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({work}, timeout=silence)
    except asyncio.CancelledError:
        work.cancel()
        raise
    if not work.done():
        return EventStream(_late(work, writer, silence), source, JsonResponse.media_type)
    try:
        return JsonResponse(work.result())
    except AnswerFailed as error:
        return JsonResponse(writer.failure(str(error)), status_code=500)


async def _late(work: asyncio.Future[msgspec.Struct], writer: Failing, silence: float) -> AsyncGenerator[bytes, None]:
    """An empty line whenever `silence` seconds pass, and then the body: white space may stand before any JSON."""
    try:
        while not work.done():
            yield b"\n"
            await asyncio.wait({work}, timeout=silence)
        try:
            body = work.result()
        except (AnswerFailed, EngineStopped) as error:
            body = writer.failure(str(error))
        yield msgspec.json.encode(body)
    finally:
        work.cancel()


def note(request: Request, stream: Stream, timer: RequestTimer) -> None:
    """Have what becomes of an answer stand in the log."""
    timer.prompt_tokens = len(stream.request.prompt)
    record = record_of(request.scope)
    record.timers.append(timer)
    record.answers.append(stream.request.id)


async def _events(
    request: Request, stream: Stream, writer: Writer, timer: RequestTimer, silence: float
) -> AsyncGenerator[bytes, None]:
    opened = False
    with closing(timer):
        async with aclosing(watch(stream, request.receive, silence)) as news:
            async for deltas in news:
                events = [] if deltas else [writer.ping()]
                for delta in deltas:
                    timer.delta(delta)
                    if delta.finish_reason == "error":
                        events.append(writer.failed(delta.error or FAILED))
                        continue
                    events += () if opened else writer.opening()
                    opened = True
                    events += writer.pieces(delta)
                if events:
                    yield b"".join(events)
        yield writer.ended()


async def _whole(request: Request, stream: Stream, timer: RequestTimer) -> Delta:
    """All deltas as one. Raises ClientDisconnect if the client leaves first, and what `joined` does."""
    parts: list[Delta] = []
    with closing(timer):
        async with aclosing(watch(stream, request.receive)) as news:
            async for deltas in news:
                for delta in deltas:
                    timer.delta(delta)
                parts += deltas
    return joined(parts)


def joined(parts: Sequence[Delta]) -> Delta:
    """The pieces of an answer as one. Raises AnswerFailed, and EngineStopped if it never began."""
    whole = join(parts)
    if whole.finish_reason == "error":
        raise AnswerFailed(whole.error or FAILED)
    if whole.finish_reason == "abort" and not whole.token_ids:
        raise EngineStopped(whole.error or "the server stopped before this request began; try again")
    return whole


async def watch(stream: Pieces[T], receive: Receive, silence: float | None = None) -> AsyncGenerator[Sequence[T], None]:
    """Pieces as they come, all that are there at once; none whenever `silence` seconds pass without one.

    Raises ClientDisconnect as soon as the client leaves. However it ends, the request is aborted if still running.
    """
    loop = asyncio.get_running_loop()
    gone = asyncio.ensure_future(_disconnected(receive))
    gone.add_done_callback(lambda _: stream.news.set())
    timer: asyncio.TimerHandle | None = None
    try:
        while not stream.done:
            if silence is not None:
                timer = loop.call_later(silence, stream.news.set)
            await stream.news.wait()
            stream.news.clear()
            if timer is not None:
                timer.cancel()
            if gone.done():
                raise ClientDisconnect
            yield stream.take()
    finally:
        stream.abort()
        gone.cancel()


async def while_there(awaited: Awaitable[T], receive: Receive) -> T:
    """The result of some work, which is cancelled when the client leaves first: ClientDisconnect."""
    work, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(_disconnected(receive))
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in both:
            task.cancel()


class EventStream(StreamingResponse):
    """What comes piece by piece of a running request, which is aborted if it ends early.

    A client that leaves ends it quietly, and is noted as one that left.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], stream: Abortable, media_type: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=media_type, headers=headers)
        self._events, self._stream = events, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await self.stream_response(send)
        except (ClientDisconnect, OSError):
            record_of(scope).status = CLIENT_GONE
        finally:
            # Events that were never begun cannot do this themselves.
            self._stream.abort()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
