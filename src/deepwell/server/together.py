"""Several answers to one request: to a list of prompts, or different ones to the same; one response, in which each has
its number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing, contextmanager
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deepwell.engine.engine import Place, Stream
from deepwell.engine.types import Delta
from deepwell.server.answers import FAILED, EventStream, Writer, in_one_piece, joined, note, respond, watch
from deepwell.server.metrics import RequestTimer


class ManyWriter(Writer, Protocol):
    """A writer that can tell answers apart."""

    def opening(self, number: int = 0) -> Iterable[bytes]:
        """What comes before the first piece of the answer of that number."""
        ...

    def pieces(self, delta: Delta, number: int = 0) -> Iterable[bytes]:
        """The next piece of the answer of that number."""
        ...

    def wholes(self, deltas: Sequence[Delta]) -> msgspec.Struct:
        """The body with all answers, each in one piece."""
        ...


@contextmanager
def enough(place: Place, count: int) -> Iterator[list[Place]]:
    """`count` places of one client, the first of them `place`; those that are not filled are given back. Raises
    QueueFull if there are not as many, and EngineStopped."""
    with ExitStack() as stack:
        yield [place, *(stack.enter_context(place.another()) for _ in range(count - 1))]


class Together:
    """Streams as one: (number of the stream, piece), as they come. See Pieces."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams
        self.news = asyncio.Event()
        if any(stream.news.is_set() for stream in streams):
            self.news.set()
        for stream in streams:
            stream.news = self.news

    @property
    def done(self) -> bool:
        return all(stream.done for stream in self._streams)

    def take(self) -> list[tuple[int, Delta]]:
        """See Pieces."""
        return [(number, delta) for number, stream in enumerate(self._streams) for delta in stream.take()]

    def abort(self) -> None:
        """End all of them soon."""
        for stream in self._streams:
            stream.abort()


async def respond_together(
    request: Request,
    streams: Sequence[Stream],
    writer: ManyWriter,
    timers: Sequence[RequestTimer],
    streamed: bool,
    silence: float,
) -> Response:
    """As `answers.respond`, for one stream or several. One that fails fails them all."""
    if len(streams) == 1:
        return await respond(request, streams[0], writer, timers[0], streamed, silence)
    for stream, timer in zip(streams, timers, strict=True):
        note(request, stream, timer)
    together = Together(streams)
    if streamed:
        return EventStream(_events(request, together, writer, timers, silence), together, writer.media_type)

    async def wholes() -> msgspec.Struct:
        return writer.wholes(await _wholes(request, together, timers))

    return await in_one_piece(wholes(), together, writer, silence)


async def _wholes(request: Request, together: Together, timers: Sequence[RequestTimer]) -> list[Delta]:
    """Each answer's deltas as one. Raises ClientDisconnect if the client leaves first, and what `joined` does."""
    parts: list[list[Delta]] = [[] for _ in timers]
    with ExitStack() as stack:
        for timer in timers:
            stack.enter_context(closing(timer))
        async with aclosing(watch(together, request.receive)) as news:
            async for pieces in news:
                for number, delta in pieces:
                    timers[number].delta(delta)
                    parts[number].append(delta)
    return [joined(part) for part in parts]


async def _events(
    request: Request, together: Together, writer: ManyWriter, timers: Sequence[RequestTimer], silence: float
) -> AsyncGenerator[bytes, None]:
    opened: set[int] = set()
    with ExitStack() as stack:
        for timer in timers:
            stack.enter_context(closing(timer))
        async with aclosing(watch(together, request.receive, silence)) as news:
            async for pieces in news:
                events, failed = [] if pieces else [writer.ping()], False
                for number, delta in pieces:
                    timers[number].delta(delta)
                    if failed := delta.finish_reason == "error":
                        events.append(writer.failed(delta.error or FAILED))
                        break
                    events += () if number in opened else writer.opening(number)
                    opened.add(number)
                    events += writer.pieces(delta, number)
                if events:
                    yield b"".join(events)
                if failed:
                    break
        yield writer.ended()
