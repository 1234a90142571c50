"""Ctrl-C while an answer is computed: the first one stops it at the next step, the second one leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

EXIT_INTERRUPTED = 130


class Stopped(Exception):
    """Ctrl-C was pressed; what was under way has ended after the step at hand."""


class Interrupts(AbstractContextManager["Interrupts"]):
    """Within it, the first Ctrl-C makes `check` raise `Stopped`; the second one ends the process at once.

    Python calls handlers of signals in the main thread, between its own steps, and one of the model may take long. So a
    thread waits for the second one. For the main thread alone.
    """

    def __enter__(self) -> Interrupts:
        self._pressed = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = signal.signal(signal.SIGINT, self._press)
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._writer)
        self._watcher.join()
        os.close(self._reader)

    def check(self) -> None:
        """Between two steps. Raises Stopped."""
        if self._pressed:
            raise Stopped

    def _press(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True

    def _watch(self) -> None:
        presses = 0
        while numbers := os.read(self._reader, 64):
            presses += numbers.count(signal.SIGINT)
            if presses > 1:
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a bar hides the cursor
                os._exit(EXIT_INTERRUPTED)
