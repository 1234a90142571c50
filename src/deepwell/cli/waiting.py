"""Waits of more than a moment, told on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from deepwell.cli.terminal import visible

SILENT_SECONDS = 2.0
"""Shorter waits are not worth a word."""
LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


def counted(done: int, total: int) -> str:
    """Of tokens, steps, runs."""
    return f"{done:,}/{total:,}"


def sized(done: int, total: int) -> str:
    """Of bytes."""
    return f"{done / 1e9:.2f}/{total / 1e9:.2f} GB"


def percent(done: int, total: int) -> str:
    """Of what has no unit to speak of."""
    return f"{done / total:.0%}"


class Wait(AbstractContextManager["Wait"]):
    """A wait for `what`, from entering to leaving or `stop`. Call it with what is done and the total, where known.

    A thread of its own tells of it, so that nothing waits for the telling, and long steps are told of too.
    """

    def __init__(self, what: str, amount: Callable[[int, int], str] = counted) -> None:
        self.what = what
        self._amount = amount
        self._at = (0, 0)
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, name="wait", daemon=True)

    def __enter__(self) -> Wait:
        self._teller.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __call__(self, done: int, total: int) -> None:
        self._at = (done, total)

    def stop(self) -> None:
        """End it before leaving; nothing of it stays on a terminal."""
        self._over.set()
        self._teller.join()

    def _tell(self) -> None:
        if self._over.wait(SILENT_SECONDS):
            return
        if sys.stderr.isatty():
            self._bar()
            return
        while not self._over.is_set():
            print(f"deepwell: {visible(self._said())}", file=sys.stderr, flush=True)
            self._over.wait(LINE_SECONDS)

    def _said(self) -> str:
        done, total = self._at
        return f"{self.what} {self._amount(done, total)}" if total else self.what

    def _bar(self) -> None:
        # Imported here so that what is quick costs nothing more.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=False) as progress:
            task = progress.add_task("", total=None)
            while not self._over.is_set():
                done, total = self._at
                progress.update(task, description=visible(self._said()), completed=done, total=total or None)
                progress.refresh()
                self._over.wait(0.1)
