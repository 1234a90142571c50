"""/v1/files and /v1/batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from deepwell.accounts.database import ANONYMOUS
from deepwell.errors import RequestError, shown
from deepwell.server.batches.objects import (
    ENDPOINTS,
    OVER,
    WINDOW,
    Batch,
    BatchList,
    BatchRequest,
    FileDeleted,
    FileList,
    FileObject,
)
from deepwell.server.batches.store import MAX_OPEN, Kept, Store, new_id
from deepwell.server.batches.upload import Part, parts_of
from deepwell.server.batches.worker import Worker, lines_of
from deepwell.server.callers import caller_of
from deepwell.server.errors import JsonResponse
from deepwell.server.query import integer
from deepwell.server.service import Service

MAX_LINES = 50_000
MAX_FILENAME = 255
PAGE, MOST = 20, 100
"""Objects in a list where nobody says, and the most, also for who asks for up to LARGEST_PAGE, as OpenAI allows."""
LARGEST_PAGE = 10_000

Item = TypeVar("Item", Batch, FileObject)


def routes(prefix: str) -> list[Route]:
    """The endpoints below a prefix."""
    return [
        Route(f"{prefix}/files", upload, methods=["POST"]),
        Route(f"{prefix}/files", files),
        Route(f"{prefix}/files/{{id}}", file),
        Route(f"{prefix}/files/{{id}}", delete, methods=["DELETE"]),
        Route(f"{prefix}/files/{{id}}/content", content),
        Route(f"{prefix}/batches", create, methods=["POST"]),
        Route(f"{prefix}/batches", batches),
        Route(f"{prefix}/batches/{{id}}", batch),
        Route(f"{prefix}/batches/{{id}}/cancel", cancel, methods=["POST"]),
    ]


async def upload(request: Request) -> Response:
    """Keep a file of requests."""
    service: Service = request.app.state.service
    worker, account = _worker(request), _account(request)
    async with service.bodies.raw(request) as body:

        def add() -> FileObject:
            parts = parts_of(request.headers.get("content-type", ""), body)
            purpose = parts.get("purpose")
            if purpose is None or purpose.data != b"batch":
                raise RequestError('purpose must be "batch"', "purpose")
            data, name = _sent(parts.get("file"))
            return worker.store.add_file(account, data, name, worker.now())

        return JsonResponse(await worker.io(add))


async def files(request: Request) -> Response:
    """The caller's files, the newest first."""
    worker, account = _worker(request), _account(request)
    found: list[FileObject] = await worker.io(lambda: list(worker.store.files(account, worker.now())))
    purpose = request.query_params.get("purpose")
    page, more = _page(request, [one for one in found if purpose in (None, one.purpose)])
    return JsonResponse(FileList(data=page, first_id=_id(page, 0), last_id=_id(page, -1), has_more=more))


async def file(request: Request) -> Response:
    """One of them."""
    return JsonResponse(await _file(request))


async def delete(request: Request) -> Response:
    """Remove one."""
    worker = _worker(request)
    id = request.path_params["id"]
    await worker.io(worker.store.delete, _account(request), id, worker.now())
    return JsonResponse(FileDeleted(id=id))


async def content(request: Request) -> Response:
    """What is in one."""
    worker = _worker(request)
    card = await _file(request)
    return FileResponse(worker.store.content(_account(request), card.id), media_type="application/jsonl")


async def create(request: Request) -> Response:
    """Begin a batch."""
    service: Service = request.app.state.service
    worker, account = _worker(request), _account(request)
    asked = await service.bodies.read(request, BatchRequest)
    _check(asked)
    now = worker.now()
    given: FileObject = await worker.io(worker.store.file, account, asked.input_file_id, now)
    if given.purpose != "batch":
        raise RequestError("input_file_id names a file of answers; it must be one of purpose batch", "input_file_id")
    begun = Batch(
        id=new_id("batch_"),
        endpoint=asked.endpoint,
        input_file_id=given.id,
        completion_window=asked.completion_window,
        status="validating",
        created_at=now,
        expires_at=now + WINDOW,
        metadata=asked.metadata,
    )
    kept = Kept(batch=begun, account=account, key=_key(request), output=new_id("file-"), faults=new_id("file-"))
    await worker.io(_begin, worker.store, kept, now)
    worker.begin(kept)
    return JsonResponse(begun)


async def batches(request: Request) -> Response:
    """The caller's batches, the newest first."""
    worker = _worker(request)
    found: list[Kept] = await worker.io(worker.store.batches, _account(request), worker.now())
    page, more = _page(request, [worker.state(kept) for kept in found])
    return JsonResponse(BatchList(data=page, first_id=_id(page, 0), last_id=_id(page, -1), has_more=more))


async def batch(request: Request) -> Response:
    """One of them."""
    worker = _worker(request)
    return JsonResponse(worker.state(await _batch(request)))


async def cancel(request: Request) -> Response:
    """End one soon."""
    return JsonResponse(await _worker(request).cancel(await _batch(request)))


def _sent(file: Part | None) -> tuple[bytes, str]:
    """Content and name of a file of requests. Raises RequestError."""
    if file is None or file.filename is None:
        raise RequestError("file is missing; it must be a file of JSON lines", "file")
    count = sum(1 for _ in lines_of(file.data))
    if not 1 <= count <= MAX_LINES:
        raise RequestError(f"file has {count} lines; it may have 1 to {MAX_LINES}", "file")
    return file.data, file.filename[:MAX_FILENAME]


def _begin(store: Store, kept: Kept, now: int) -> None:
    """Write a new batch down, unless its account has too many."""
    open = sum(one.batch.status not in OVER for one in store.batches(kept.account, now))
    if open >= MAX_OPEN:
        raise RequestError(f"{open} batches are not over yet; an account may have {MAX_OPEN}")
    store.keep(kept)


def _check(asked: BatchRequest) -> None:
    if asked.endpoint not in ENDPOINTS:
        raise RequestError(f"endpoint {shown(asked.endpoint)} is unknown; allowed: {', '.join(ENDPOINTS)}", "endpoint")
    if asked.completion_window != "24h":
        raise RequestError('completion_window must be "24h"', "completion_window")
    if len(asked.metadata or {}) > 16:
        raise RequestError("metadata may have up to 16 texts", "metadata")


def _page(request: Request, items: Sequence[Item]) -> tuple[list[Item], bool]:
    """The items behind the one of the id `after`, `limit` at most, and whether there are more. Raises RequestError."""
    limit = min(MOST, integer(request, "limit", PAGE, 1, LARGEST_PAGE))
    begin, after = 0, request.query_params.get("after")
    if after:
        found = [place for place, item in enumerate(items) if item.id == after]
        if not found:
            raise RequestError(f"after names {shown(after)}, which is not in the list", "after")
        begin = found[0] + 1
    end = begin + limit
    return list(items[begin:end]), end < len(items)


def _id(page: Sequence[Item], place: int) -> str | None:
    return page[place].id if page else None


async def _file(request: Request) -> FileObject:
    worker = _worker(request)
    return await worker.io(worker.store.file, _account(request), request.path_params["id"], worker.now())


async def _batch(request: Request) -> Kept:
    worker = _worker(request)
    return await worker.io(worker.store.batch, _account(request), request.path_params["id"], worker.now())


def _worker(request: Request) -> Worker:
    worker: Worker | None = request.app.state.worker
    if worker is None:
        raise RequestError("this server keeps no files and no batches; it was started without --data-dir")
    return worker


def _account(request: Request) -> int:
    caller = caller_of(request)
    return caller.account if caller is not None else ANONYMOUS


def _key(request: Request) -> int:
    caller = caller_of(request)
    return caller.key if caller is not None else ANONYMOUS
