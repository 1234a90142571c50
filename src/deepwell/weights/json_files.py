"""JSON files beside weights, which a stranger wrote: read up to a size, and each error names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from deepwell.errors import CheckpointError
from deepwell.files import read_bounded

MAX_JSON_BYTES = 64 << 20


def read_json(file: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """A parsed JSON file. CheckpointError if it is missing, larger than `limit` bytes, or broken."""
    try:
        raw = read_bounded(file, limit)
    except OSError as e:
        raise CheckpointError(f"{file}: cannot be read: {e.strerror or e}") from e
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{file}: is no valid JSON: {e}") from e


def read_object(file: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """As `read_json`, of a file that must hold a JSON object."""
    found = read_json(file, limit)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds no JSON object")
    return found
