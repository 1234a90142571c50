"""The command in a process of its own, as a shell would run it, or as a person uses it on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

COMMAND = (sys.executable, "-m", "deepwell.cli.main")


def deepwell(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120, **options)


class Terminal:
    """A command on a pseudo-terminal, killed at the end."""

    def __init__(self, *args: str, term: str = "dumb", command: Sequence[str] = COMMAND) -> None:
        self.screen, other = pty.openpty()
        environment = {**os.environ, "TERM": term, "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*command, *args],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env=environment,
        )
        os.close(other)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)
        os.close(self.screen)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def press_ctrl_c_until(self, text: str) -> None:
        """Once as a rule; Python's input() overlooks a signal that comes just before it begins to wait."""
        for _ in range(30):
            self.process.send_signal(signal.SIGINT)
            with suppress(TimeoutError):
                return self.wait_for(text, 2)
        raise TimeoutError(text)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until `text` appears after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} did not appear: {self.seen!r}")
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 4096).decode("utf-8", "replace")
        self.seen = self.seen.partition(text)[2]
