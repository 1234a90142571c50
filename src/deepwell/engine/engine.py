"""The engine beside an event loop: one thread steps the core, streams carry the pieces back."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import msgspec

from deepwell.engine.core import EngineConfig, EngineCore, EngineStats
from deepwell.engine.pauses import Pauses
from deepwell.engine.runner import Backend
from deepwell.engine.types import NOTHING, Delta, FinishReason, OnEnd, Request, Usage, compact
from deepwell.errors import EngineStopped, OverLimit, QueueFull
from deepwell.weights.tokenizer import Tokenizer

__all__ = ["AsyncEngine", "EngineConfig", "EngineStats", "Place", "Stream"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

NOBODY = 0
"""The account of requests of which nobody said whose they are."""
SHARE = 0.75
"""How much of the room one account may have that is alone."""
PIECES = 64
"""Pieces of an answer that wait for their reader one by one."""

Prepare = Callable[[Request], Request]
"""What is done to a request last of all before it is queued."""

_Command = Request | str | None
"""To the engine's thread: add a request, abort an id, or end."""


class Stream:
    """The pieces of one answer, for one reader on the event loop. The last has `finish_reason` and `usage`.

    Cancelling a wait for the next piece aborts the request: to put a time limit on it, wait for `news` and take what is
    there. Leaving the `async with` block, or `aclose`, aborts too, unless the answer is complete.

    Neither the engine nor other streams wait for a slow reader: what it has not read is kept, joined to one piece
    wherever many would wait, so that little more than the text itself is held.

    `news` is set when a piece comes, and cleared by the reader; `done` once all were taken.
    """

    def __init__(self, request: Request, commands: queue.SimpleQueue[_Command]) -> None:
        self.request = request
        self.news = asyncio.Event()
        self.done = False
        self._commands = commands
        self._pieces: deque[Delta] = deque()
        self._most = PIECES
        self._followers: list[Stream] = []
        self._started = self._begun = self._ended = self._aborted = False

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
        if self.done:
            raise StopAsyncIteration
        try:
            while not self._pieces:
                self.news.clear()
                await self.news.wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        delta = self._pieces.popleft()
        self.done = delta.finish_reason is not None
        return delta

    def take(self) -> list[Delta]:
        """All pieces that have come and were not taken yet."""
        pieces = list(self._pieces)
        self._pieces.clear()
        self.done = self._ended
        return pieces

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
        self._pieces.append(delta)
        if len(self._pieces) > self._most:
            joined = compact(self._pieces)
            self._pieces = deque([joined])
            self._most = max(PIECES, len(joined.token_ids) // 8)  # each token is joined a few times, and no more
        self.news.set()


class Place:
    """Room for one request of an account, held while it is read, rendered and encoded; on the event loop only.

    A context manager: leaving it without `submit` gives the room back. Leaving with an error after `submit` aborts the
    request, since nobody will read it then.
    """

    def __init__(self, engine: AsyncEngine, account: int, priority: int, prepare: Prepare) -> None:
        self._engine, self.account, self.priority, self.prepare = engine, account, priority, prepare
        self._held = True
        self._stream: Stream | None = None

    def another(self) -> Place:
        """One more place for the same client. Raises what `AsyncEngine.place` does."""
        return self._engine.place(self.account, self.priority, self.prepare)

    def submit(self, request: Request, after: Stream | None = None) -> Stream:
        """Fill the place, for its account. Raises RequestError, EngineStopped, or what its `prepare` does, and then the
        place is still held.

        A request `after` another waits for that one's first piece, and finds the prompt that they share in the cache.
        """
        if not self._held:
            raise RuntimeError("this place was filled or given back before")
        self._engine.check(request)
        request = msgspec.structs.replace(request, account=self.account, priority=self.priority)
        self._stream = self._engine._fill(self.prepare(request), after)
        self._held = False
        return self._stream

    def close(self) -> None:
        """Give the room back. Nothing happens if a request is in it, or the second time."""
        if self._held:
            self._held = False
            self._engine._give_back(self)

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
        self.hidden = backend.hidden
        self._core = EngineCore(backend, tokenizer, self.config, on_end=self._ended)
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._places = 0
        self._held: Counter[tuple[int, int]] = Counter()
        """Places that are held or filled, by account and priority."""
        self._listeners: list[OnEnd] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty = asyncio.Event()
        self._pauses = Pauses()
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

    def check_room(self, account: int = NOBODY, priority: int = 0) -> None:
        """Raise what `place` would now.

        Requests of lower priority do not count. Of the room there is, an account has its share: an equal one while
        others have requests too, and SHARE of it when it is alone, so that the next one finds some. Half of the room is
        for whoever comes first.
        """
        self.check_open()
        room = self.config.max_running + self.config.max_waiting
        ahead = Counter[int]()
        for (one, other), count in self._held.items():
            if other >= priority:
                ahead[one] += count
        taken = ahead.total()
        if taken >= room:
            pause = self._pauses.seconds(taken, time.monotonic())
            raise QueueFull(f"the queue is full: {taken} requests are live; try again shortly", pause)
        if account == NOBODY or 2 * taken < room:
            return
        accounts = len({*ahead, account})
        share = max(1, int(room * SHARE) if accounts == 1 else room // accounts)
        if ahead[account] >= share:
            others = "" if accounts == 1 else f" while {accounts - 1} others wait"
            raise OverLimit(f"an account may have {share} requests at one time{others}; try again shortly", "share")

    def place(self, account: int = NOBODY, priority: int = 0, prepare: Prepare = lambda request: request) -> Place:
        """Take room for one request of an account, among the running and the waiting.

        `prepare` is given the request that fills it, when nothing else can be wrong with it any more, to give it a
        meter or refuse it. Raises QueueFull, OverLimit for an account that has its share of the room, or EngineStopped,
        at once.
        """
        self.check_room(account, priority)
        self._places += 1
        self._held[account, priority] += 1
        return Place(self, account, priority, prepare)

    def check(self, request: Request) -> None:
        """Raise RequestError or EngineStopped unless the request may fill a place."""
        self.check_open()
        self._core.check(request, self._streams.keys())

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises RequestError, QueueFull, OverLimit or EngineStopped at once."""
        with self.place(request.account, request.priority) as place:
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
        """The request of a place, checked."""
        self._loop = asyncio.get_running_loop()
        stream = self._streams[request.id] = Stream(request, self._commands)
        self._places -= 1
        self._empty.clear()
        stream.start(after)
        return stream

    def _give_back(self, place: Place) -> None:
        self._places -= 1
        self._leave(place.account, place.priority)

    def _leave(self, account: int, priority: int) -> None:
        self._held[account, priority] -= 1
        if not self._held[account, priority]:
            del self._held[account, priority]

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
            self._held.clear()

    def _deliver(self, pieces: list[tuple[str, Delta]]) -> None:
        for id, delta in pieces:
            self._streams[id].deliver(delta)
            if delta.finish_reason is not None:
                request = self._streams.pop(id).request
                self._pauses.note(time.monotonic())
                self._leave(request.account, request.priority)
        if not self._streams:
            self._empty.set()

    def _fail_rest(self, message: str) -> None:
        """End what the engine's thread had not come to when it failed. Called when no more can be submitted."""
        for stream in self._streams.values():
            self._ended(stream.request, NOTHING, "error")
        usage = {id: Usage(len(stream.request.prompt), 0, 0) for id, stream in self._streams.items()}
        self._deliver([(id, Delta(finish_reason="error", usage=usage[id], error=message)) for id in usage])
