"""The record of a run: one JSON line per stage, from raw text to checkpoint, each naming its inputs and outputs."""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from deepwell.errors import CheckpointError
from deepwell.files import open_regular
from deepwell.json_lines import append_line, read_lines

NAME = "stages.jsonl"


class Stage(msgspec.Struct):
    """What a stage read and made (SHA-256 by name), and what it cost. Seconds, bytes and FLOPs are plain numbers."""

    stage: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_rss: int = 0
    metrics: dict[str, Any] = {}


@contextmanager
def stage(folder: Path, name: str, **known: Any) -> Iterator[Stage]:
    """Time a stage; when it ends well, append its line to the run's record."""
    record = Stage(name, **known)
    wall, cpu = time.monotonic(), time.process_time()
    yield record
    record.seconds = record.seconds or round(time.monotonic() - wall, 3)
    record.cpu_seconds = record.cpu_seconds or round(time.process_time() - cpu, 3)
    record.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    append_line(folder / NAME, record)


def read_stages(folder: Path) -> list[Stage]:
    """The stages recorded so far, oldest first. DeepwellError if the record is damaged."""
    return read_lines(folder / NAME, Stage)


def check_recorded(folder: Path, name: str) -> None:
    """CheckpointError if the file `name` of a run is not what its last stage that made it has recorded."""
    digests = [stage.outputs[name] for stage in read_stages(folder) if name in stage.outputs]
    if digests and digests[-1] != sha256_of(folder / name):
        raise CheckpointError(
            f"{folder / name}: is damaged: its digest is not the one in {NAME}; its `deepwell train` makes it anew"
        )


def sha256_of(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
