"""Answers the lines of batches by the application's own endpoints, behind everybody who waits for an answer.

What a line was answered is on the disk before the next step: a batch whose server was killed goes on with the lines
that have no answer yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from starlette.types import ASGIApp

from deepwell.errors import BadKey, DeepwellError, NotFound, RequestError
from deepwell.json_lines import append_line, append_lines, read_lines
from deepwell.server.batches.ask import ask
from deepwell.server.batches.objects import (
    OVER,
    Answered,
    Asked,
    Batch,
    BatchFault,
    BatchFaults,
    LineAnswer,
    LineError,
    RequestCounts,
    Status,
)
from deepwell.server.batches.store import Kept, Store
from deepwell.server.body import decode

AT_ONCE = 4
"""Lines of all batches that are in the engine together, and lines of one batch that are under way: one whose key may
ask no more for a while waits alone."""
RETRY_SECONDS = 1.0
"""Before a line is asked again that found no room."""
LATER = (429, 503, 529)
SWEEP_SECONDS = 3600.0
"""Between two looks for what is kept no longer."""
EXPIRED = LineError("batch_expired", "the batch expired before this request was answered")

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Run:
    """A batch at work."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.counts = kept.batch.request_counts
        self.cancelled = kept.batch.status == "cancelling"
        self.room = asyncio.Semaphore(AT_ONCE)

    @property
    def batch(self) -> Batch:
        return replace(self.kept.batch, request_counts=self.counts)

    def done(self, number: int) -> str:
        """The id of a line's answer."""
        return f"batch_req_{self.kept.batch.id.removeprefix('batch_')}_{number}"


class Worker:
    """The batches of one server that are not over. On one event loop; what blocks is done in a thread of its own."""

    def __init__(
        self, store: Store, app: ASGIApp, now: Callable[[], int], callers: Callable[[int], Any] = lambda key: None
    ) -> None:
        """`app` has the endpoints, `now` gives seconds since 1970, `callers` the holder of a key (raises BadKey)."""
        self.store, self.now = store, now
        self._app, self._callers = app, callers
        self._disk = ThreadPoolExecutor(1, "deepwell-batches")
        self._room = asyncio.Semaphore(AT_ONCE)
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    async def io(self, work: Callable[..., T], *args: Any) -> T:
        """Do something with the store. Raises Unavailable where another server has it."""

        def opened() -> T:
            self.store.open()
            return work(*args)

        return await asyncio.get_running_loop().run_in_executor(self._disk, opened)

    async def start(self) -> None:
        """Go on with what an earlier server has left, if there was one."""
        if self.store.folder.exists():
            try:
                for kept in await self.io(self.store.unfinished, self.now()):
                    self.begin(kept)
            except (DeepwellError, OSError) as error:
                _log.warning("batches are not gone on with: %s", error)
        self._sweeping = asyncio.ensure_future(self._sweep())

    async def stop(self) -> None:
        """Leave what is not answered to the next server."""
        tasks = [task for _, task in self._runs.values()] + [task for task in (self._sweeping,) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._disk.shutdown()
        self.store.close()

    def begin(self, kept: Kept) -> None:
        """Have a batch answered."""
        run = Run(kept)
        self._runs[kept.batch.id] = run, asyncio.ensure_future(self._run(run))

    def state(self, kept: Kept) -> Batch:
        """A batch as it is now."""
        found = self._runs.get(kept.batch.id)
        return found[0].batch if found else kept.batch

    async def cancel(self, kept: Kept) -> Batch:
        """End a batch soon: lines on their way are still answered."""
        found = self._runs.get(kept.batch.id)
        if found is None or found[0].kept.batch.status in OVER:
            return self.state(kept)
        run, _ = found
        if not run.cancelled:
            run.cancelled = True
            await self._become(run, "cancelling", cancelling_at=self.now())
        return run.batch

    async def _sweep(self) -> None:
        """Remove what is kept no longer, now and every hour, if there is anything at all."""
        while True:
            if self.store.folder.exists():
                try:
                    await self.io(self.store.sweep, self.now())
                except (DeepwellError, OSError) as error:
                    _log.warning("old files and batches are not removed: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _run(self, run: Run) -> None:
        try:
            await self._answer(run)
        except (DeepwellError, OSError) as error:
            _log.warning("batch %s failed: %s", run.kept.batch.id, error)
            fault = BatchFault(code="batch_failed", message=str(error))
            with suppress(DeepwellError, OSError):
                await self._become(run, "failed", failed_at=self.now(), errors=BatchFaults(data=[fault]))
        except Exception:
            _log.exception("batch %s stopped; it goes on when the server starts again", run.kept.batch.id)
        finally:
            if run.kept.batch.status in OVER:
                self._runs.pop(run.kept.batch.id, None)

    async def _answer(self, run: Run) -> None:
        kept = run.kept
        path = self.store.content(kept.account, kept.batch.input_file_id)
        total, answered, failed = await self.io(self._progress, kept, path)
        run.counts = RequestCounts(total, len(answered), len(failed))
        if not run.cancelled:
            await self._become(run, "in_progress", in_progress_at=kept.batch.in_progress_at or self.now())
        tasks: set[asyncio.Task[None]] = set()
        try:
            for number, asked in await self.io(_left, run, path, answered | failed):
                await run.room.acquire()
                if self._is_over(run):
                    break
                task = asyncio.ensure_future(self._line(run, number, asked))
                tasks.add(task)
                task.add_done_callback(lambda _: run.room.release())
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        await self._finish(run)

    def _progress(self, kept: Kept, path: Path) -> tuple[int, set[str], set[str]]:
        """How many lines there are, and the ids of answers that are there."""
        if not path.exists():
            raise NotFound(f"the input file {kept.batch.input_file_id} is gone")
        output, faults = (
            {line.id for line in read_lines(self.store.content(kept.account, id), Answered)}
            for id in (kept.output, kept.faults)
        )
        return sum(1 for _ in _lines(path)), output, faults

    async def _line(self, run: Run, number: int, asked: Asked | LineError) -> None:
        kept = run.kept
        answer = Answered(id=run.done(number), custom_id=asked.custom_id if isinstance(asked, Asked) else None)
        if isinstance(asked, LineError):
            answer = replace(answer, error=asked)
        else:
            said = await self._said(run, answer.id, asked)
            if said is None:
                return
            answer = replace(answer, response=said)
        good = answer.response is not None and answer.response.status_code == 200
        await self.io(append_line, self.store.content(kept.account, kept.output if good else kept.faults), answer)
        counts = run.counts
        run.counts = RequestCounts(counts.total, counts.completed + good, counts.failed + (not good))

    async def _said(self, run: Run, id: str, asked: Asked) -> LineAnswer | None:
        """What the endpoint answers once there is room; None if the batch has ended meanwhile."""
        while True:
            async with self._room:
                if self._is_over(run):
                    return None
                try:
                    caller = await self.io(self._callers, run.kept.key)
                except BadKey as error:
                    return LineAnswer(401, id, {"error": {"message": str(error)}})
                said = await ask(self._app, asked.url, bytes(asked.body), id, caller)
            if said.status_code not in LATER:
                return said
            await asyncio.sleep(RETRY_SECONDS)

    def _is_over(self, run: Run) -> bool:
        """Whether no more lines of a batch are begun."""
        return run.cancelled or self.now() >= run.kept.batch.expires_at

    async def _finish(self, run: Run) -> None:
        kept = run.kept
        now = self.now()
        if run.cancelled:
            last: Status = "cancelled"
        else:
            answered = run.counts.completed + run.counts.failed == run.counts.total
            last = "completed" if answered else "expired"
        if last == "expired":
            await self.io(self._give_up, run)
        await self._become(run, kept.batch.status if run.cancelled else "finalizing", finalizing_at=now)
        for id, name in ((kept.output, "output"), (kept.faults, "error")):
            if await self.io(self.store.content(kept.account, id).exists):
                named = f"{kept.batch.id}_{name}.jsonl"
                await self.io(self.store.publish, kept.account, id, named, "batch_output", now)
        await self._become(
            run,
            last,
            output_file_id=kept.output if run.counts.completed else None,
            error_file_id=kept.faults if run.counts.failed else None,
            **{f"{last}_at": now},
        )

    def _give_up(self, run: Run) -> None:
        """Write down of every line that has no answer that there will be none."""
        kept = run.kept
        path = self.store.content(kept.account, kept.batch.input_file_id)
        total, answered, failed = self._progress(kept, path)
        lost = []
        for number, asked in _left(run, path, answered | failed):
            name = asked.custom_id if isinstance(asked, Asked) else None
            error = EXPIRED if isinstance(asked, Asked) else asked
            lost.append(Answered(id=run.done(number), custom_id=name, error=error))
        append_lines(self.store.content(kept.account, kept.faults), lost)
        run.counts = RequestCounts(total, len(answered), len(failed) + len(lost))

    async def _become(self, run: Run, status: Status, **fields: Any) -> None:
        batch = replace(run.kept.batch, status=status, request_counts=run.counts, **fields)
        run.kept = replace(run.kept, batch=batch)
        await self.io(self.store.keep, run.kept)


def _lines(path: Path) -> list[bytes]:
    return list(lines_of(path.read_bytes()))


def _left(run: Run, path: Path, answered: set[str]) -> list[tuple[int, Asked | LineError]]:
    """The numbers of the lines that have no answer, and what they ask. Takes long where there are many."""
    names: set[str] = set()
    asked = [(number, _read(line, run.kept.batch.endpoint, names)) for number, line in enumerate(_lines(path))]
    return [(number, one) for number, one in asked if run.done(number) not in answered]


def _read(line: bytes, endpoint: str, names: set[str]) -> Asked | LineError:
    """What a line asks, or why it cannot be; its name joins `names`."""
    try:
        asked = decode(line, Asked)
        body = msgspec.json.decode(asked.body, type=dict[str, msgspec.Raw])
    except (RequestError, msgspec.DecodeError) as error:
        return LineError("invalid_line", str(error))
    if asked.url != endpoint:
        return LineError("invalid_url", f"url is {asked.url[:80]!r}; this batch is for {endpoint}")
    if bytes(body.get("stream", msgspec.Raw(b"null"))) not in (b"null", b"false"):
        return LineError("invalid_request", "stream is not allowed in a batch")
    if asked.custom_id in names:
        return LineError("duplicate_custom_id", f"custom_id {asked.custom_id[:80]!r} stands in an earlier line too")
    names.add(asked.custom_id)
    return asked


def lines_of(data: bytes) -> Iterator[bytes]:
    """The lines of a file's content that are not blank."""
    return (line for line in BytesIO(data) if line.strip())
