"""One run of an engine in a process of its own: its output, how long it took, and how much memory it held."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from deepwell.errors import DeepwellError

_MOST_OUTPUT = 4 << 20
_TAIL = 4096
_ERRORS_KEPT = 64 << 10
_LINES_SHOWN = 6
_SAMPLE_SECONDS = 0.02


class RunFailed(DeepwellError):
    """An engine's process could not be started, ended badly, or printed something else than expected."""


class Finished(msgspec.Struct, frozen=True):
    """`seconds` from start to end; `peak_bytes` resident at most, mapped files included, None if it was too short.

    `output` is what it printed, `errors` the end of what it printed to standard error.
    """

    output: str
    errors: str
    seconds: float
    peak_bytes: int | None


def run(command: Sequence[str]) -> Finished:
    """Run to the end, in a folder of its own that is then removed: some engines write log files where they stand.

    Raises RunFailed with the process's last lines. The process ends with us, on Ctrl-C too.
    """
    with (
        tempfile.TemporaryDirectory(prefix="deepwell-bench-") as folder,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        begun = time.perf_counter()
        try:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        except OSError as error:
            raise RunFailed(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            peak = _watch(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - begun
        if process.returncode:
            said = _last_lines(errors) or _last_lines(output) or "it said nothing"
            raise RunFailed(f"{Path(command[0]).name} {_ending(process.returncode)}: {said}")
        if output.seek(0, 2) > _MOST_OUTPUT:
            raise RunFailed(f"{Path(command[0]).name} printed more than {_MOST_OUTPUT} bytes")
        output.seek(0)
        said = output.read().decode(errors="replace")
        return Finished(said, _tail(errors, _ERRORS_KEPT), seconds, peak)


def _watch(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end, and look now and then at the most memory it has held."""
    peak = None
    while True:
        peak = _peak_bytes(process.pid) or peak
        try:
            process.wait(_SAMPLE_SECONDS)
            return peak
        except subprocess.TimeoutExpired:
            continue


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def _last_lines(stream: IO[bytes]) -> str:
    return "\n".join(_tail(stream, _TAIL).strip().splitlines()[-_LINES_SHOWN:])


def _tail(stream: IO[bytes], size: int) -> str:
    stream.seek(max(0, stream.seek(0, 2) - size))
    return stream.read().decode(errors="replace")


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
