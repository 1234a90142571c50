"""What clients read and write of files and batches. Times are in seconds since 1970."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
"""What a batch's requests may ask."""
WINDOW = 24 * 3600
"""Seconds that a batch has, "24h" in its words."""

Purpose = Literal["batch", "batch_output"]
Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
OVER: tuple[Status, ...] = ("completed", "failed", "expired", "cancelled")


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file's card. `bytes` is its length; it is kept until `expires_at`."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of DELETE /v1/files/{id}."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/batches."""

    input_file_id: Annotated[str, Meta(description="the id of a file of purpose batch")]
    endpoint: Annotated[
        str, Meta(description=f"one of {', '.join(ENDPOINTS)}", extra_json_schema={"enum": [*ENDPOINTS]})
    ]
    completion_window: Annotated[str, Meta(description='"24h"', extra_json_schema={"enum": ["24h"]})]
    metadata: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]] | None,
        Meta(description="an object of up to 16 texts, of up to 512 characters each"),
    ] = None


class RequestCounts(msgspec.Struct, frozen=True):
    """Of a batch's lines: those that are answered, and those whose answer is an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchFault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch could not begin."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchFaults(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchFault]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as clients see it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchFaults | None = None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a batch's file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True):
    code: str
    message: str


class LineAnswer(msgspec.Struct, frozen=True):
    """What the endpoint said."""

    status_code: int
    request_id: str
    body: Any


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a batch's output, or of its errors: an answer, or why there is none."""

    id: str
    custom_id: str | None
    response: LineAnswer | None = None
    error: LineError | None = None
