"""The engine beside an event loop: one thread steps the core, streams carry the pieces back."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import msgspec

from deepwell.engine.core import EngineConfig, EngineCore, EngineStats
from deepwell.engine.runner import Backend
from deepwell.engine.types import NOTHING, Delta, FinishReason, OnEnd, Request, Usage
from deepwell.errors import EngineStopped, QueueFull
from deepwell.weights.tokenizer import Tokenizer

__all__ = ["AsyncEngine", "EngineConfig", "EngineStats", "Place", "Stream"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_Command = Request | str | None
"""To the engine's thread: add a request, abort an id, or end."""


class Stream:
    """The pieces of one answer, for one reader on the event loop. The last has `finish_reason` and `usage`.

    Cancelling a wait for the next piece aborts the request: wrap the wait in a task (asyncio.wait) to put a time limit
    on it. Leaving the `async with` block, or `aclose`, aborts too, unless the answer is complete.
    """

    def __init__(self, request: Request, commands: queue.SimpleQueue[_Command]) -> None:
        self.request = request
        self._commands = commands
        self._pieces: asyncio.Queue[Delta] = asyncio.Queue()
        self._followers: list[Stream] = []
        self._started = self._begun = self._ended = self._aborted = self._read = False

    def start(self, after: Stream | None = None) -> None:
        """Have the request computed, once; if `after` is given, as soon as the first piece of that one has come."""
        if after is not None and not after._begun:
            after._followers.append(self)
        elif not self._started:
            self._started = True
            self._commands.put(self.request)

    def abort(self) -> None:
        """End the request soon; its last piece then says "abort". Nothing happens if it has ended."""
        if not (self._ended or self._aborted):
            self.start()
            self._aborted = True
            self._commands.put(self.request.id)

    async def aclose(self) -> None:
        self.abort()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        if self._read:
            raise StopAsyncIteration
        try:
            delta = await self._pieces.get()
        except asyncio.CancelledError:
            self.abort()
            raise
        self._read = delta.finish_reason is not None
        return delta

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def deliver(self, delta: Delta) -> None:
        """Called by the engine, on the event loop."""
        self._begun = True
        while self._followers:
            self._followers.pop(0).start()
        self._ended = delta.finish_reason is not None
        self._pieces.put_nowait(delta)


class Place:
    """Room for one request, held while it is read, rendered and encoded; on the event loop only.

    A context manager: leaving it without `submit` gives the room back. Leaving with an error after `submit` aborts the
    request, since nobody will read it then.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._held = True
        self._stream: Stream | None = None

    def another(self) -> Place:
        """One more place for the same client. Raises QueueFull or EngineStopped at once."""
        return self._engine.place()

    def submit(self, request: Request, after: Stream | None = None) -> Stream:
        """Fill the place. Raises RequestError or EngineStopped, and then the place is still held.

        A request `after` another waits for that one's first piece, and finds the prompt that they share in the cache.
        """
        if not self._held:
            raise RuntimeError("this place was filled or given back before")
        self._stream = self._engine._fill(request, after)
        self._held = False
        return self._stream

    def close(self) -> None:
        """Give the room back. Nothing happens if a request is in it, or the second time."""
        if self._held:
            self._held = False
            self._engine._give_back()

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None and self._stream is not None:
            self._stream.abort()


class AsyncEngine:
    """Many requests at once over one model. Every method but `stats` belongs to one event loop."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._core = EngineCore(backend, tokenizer, self.config, on_end=self._ended)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._places = 0
        self._listeners: list[OnEnd] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty = asyncio.Event()
        self._refusal: str | None = "the engine has not been started"

    @property
    def vocab_size(self) -> int:
        """The width of the logits."""
        return self._core.vocab_size

    @property
    def refusal(self) -> str | None:
        """Why `submit` refuses every request; None while it takes them."""
        return self._refusal

    def start(self) -> None:
        """Start the engine's thread. Raises EngineStopped if it was started before."""
        if self._thread is not None:
            raise EngineStopped("an engine can be started only once")
        self._refusal = None
        self._thread = threading.Thread(target=self._serve, name="deepwell-engine", daemon=True)
        self._thread.start()

    def tell_ends(self, listener: OnEnd) -> None:
        """Have `listener` told of every request's end from now on."""
        self._listeners.append(listener)

    def check_open(self) -> None:
        """Raise EngineStopped unless requests are taken. Any thread may call this."""
        if self._refusal is not None:
            raise EngineStopped(self._refusal)

    def check_room(self) -> None:
        """Raise QueueFull or EngineStopped if `place` would now."""
        self.check_open()
        taken = len(self._streams) + self._places
        if taken >= self.config.max_running + self.config.max_waiting:
            raise QueueFull(f"the queue is full: {taken} requests are live; try again shortly")

    def place(self) -> Place:
        """Take room for one request, among the running and the waiting. Raises QueueFull or EngineStopped at once."""
        self.check_room()
        self._places += 1
        return Place(self)

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises RequestError, QueueFull or EngineStopped at once."""
        with self.place() as place:
            return place.submit(request)

    async def stop(self) -> None:
        """Refuse new requests, let the live ones finish for `drain_seconds`, abort the rest, end the thread."""
        self._refusal = self._refusal or "the engine is stopping and takes no more requests"
        if self._thread is None:
            return
        if self._streams:
            try:
                await asyncio.wait_for(self._empty.wait(), self.config.drain_seconds)
            except TimeoutError:
                for stream in self._streams.values():
                    stream.abort()
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def stats(self) -> EngineStats:
        """A snapshot; places that are held and requests on their way to the engine's thread count as waiting."""
        stats = self._core.stats()
        waiting = max(stats.waiting, len(self._streams) - stats.running) + self._places
        return msgspec.structs.replace(stats, waiting=waiting)

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked. For an idle or stopped engine."""
        self._core.check_integrity()

    def _fill(self, request: Request, after: Stream | None = None) -> Stream:
        """The request of a place. Raises RequestError or EngineStopped."""
        self.check_open()
        self._core.check(request, self._streams.keys())
        self._loop = asyncio.get_running_loop()
        stream = self._streams[request.id] = Stream(request, self._commands)
        self._places -= 1
        self._empty.clear()
        stream.start(after)
        return stream

    def _give_back(self) -> None:
        self._places -= 1

    def _ended(self, request: Request, usage: Usage, reason: FinishReason) -> None:
        for listener in self._listeners:
            try:
                listener(request, usage, reason)
            except Exception:
                _log.exception("the end of request %s could not be noted", request.id)

    def _serve(self) -> None:
        """The thread: obey commands, step, and wait for a command when there is nothing to do."""
        try:
            while self._obey():
                self._post(self._core.step())
        except Exception as error:
            _log.exception("the engine's thread failed")
            self._refusal = f"the engine failed: {type(error).__name__}: {error}"
            self._post(self._core.fail(self._refusal))
            self._call(self._fail_rest, self._refusal)

    def _obey(self) -> bool:
        """Carry out all commands that are there; when idle, wait for one. False at the end."""
        while not self._commands.empty() or not self._core.live:
            command = self._commands.get()
            if command is None:
                return False
            if isinstance(command, Request):
                self._add(command)
            elif (last := self._core.abort(command)) is not None:
                self._post([(command, last)])
        return True

    def _add(self, request: Request) -> None:
        """Whatever a request does to the engine on its way in ends that request alone."""
        try:
            self._core.add(request)
        except Exception as error:
            _log.exception("request %s could not be taken in", request.id)
            self._ended(request, NOTHING, "error")
            usage = Usage(len(request.prompt), 0, 0)
            last = Delta(finish_reason="error", usage=usage, error=f"{type(error).__name__}: {error}")
            self._post([(request.id, last)])

    def _post(self, pieces: list[tuple[str, Delta]]) -> None:
        if pieces:
            self._call(self._deliver, pieces)

    def _call(self, function: Callable[[_T], None], argument: _T) -> None:
        """Run a function on the event loop. If that is closed, nobody is left to read, so everything is aborted."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            _log.warning("the event loop is closed; %d requests are aborted", len(self._core.live))
            for id in list(self._core.live):
                self._core.abort(id)
            self._streams.clear()

    def _deliver(self, pieces: list[tuple[str, Delta]]) -> None:
        for id, delta in pieces:
            self._streams[id].deliver(delta)
            if delta.finish_reason is not None:
                del self._streams[id]
        if not self._streams:
            self._empty.set()

    def _fail_rest(self, message: str) -> None:
        """End what the engine's thread had not come to when it failed. Called when no more can be submitted."""
        for stream in self._streams.values():
            self._ended(stream.request, NOTHING, "error")
        usage = {id: Usage(len(stream.request.prompt), 0, 0) for id, stream in self._streams.items()}
        self._deliver([(id, Delta(finish_reason="error", usage=usage[id], error=message)) for id in usage])
