"""The thread that writes requests into the ledger: all that have ended meanwhile in one transaction."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile

from deepwell.accounts.clock import Clock
from deepwell.accounts.meter import FRESH_SECONDS, Meter
from deepwell.errors import LedgerDown

_GROUP = 256
"""Rows of one transaction at most."""
_PAUSE = 0.2
"""Seconds between tries while the database does not answer."""

_log = logging.getLogger(__name__)


class Writer:
    """Has what is put into it written, in order, however long the database needs."""

    def __init__(self, write: Callable[[Sequence[Meter]], None], tick: Callable[[], None], clock: Clock) -> None:
        """`write` writes a group, whole or not at all, and raises LedgerDown if another try may help; `tick` is called
        every `FRESH_SECONDS` or so. Both are called from one thread."""
        self._write = write
        self._tick = tick
        self._clock = clock
        self._waiting: deque[Meter] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.failing_since: int | None = None
        """When the database stopped answering, by the clock that never goes back; None if it answers."""
        self.rejected = 0
        """Rows that the database will not have. They stay in the journal."""
        self._thread = threading.Thread(target=self._run, name="deepwell-ledger", daemon=True)
        self._thread.start()

    def put(self, meter: Meter) -> None:
        with self._changed:
            self._waiting.append(meter)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, `seconds` at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def close(self, seconds: float) -> bool:
        """Write what waits, as long as `seconds` allow, and stop; whether all is written."""
        written = self.flush(seconds)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        return written

    def _run(self) -> None:
        ticked = self._clock.elapsed()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping, FRESH_SECONDS)
                if self._stopping:
                    return
                group = [self._waiting[place] for place in range(min(_GROUP, len(self._waiting)))]
            done = self._try(group) if group else 0
            if self._clock.elapsed() - ticked > FRESH_SECONDS * 10**9:
                self._tick()
                ticked = self._clock.elapsed()
            with self._changed:
                for _ in range(done):
                    self._waiting.popleft()
                self._changed.notify_all()
                if done < len(group):
                    self._changed.wait_for(lambda: self._stopping, _PAUSE)

    def _try(self, group: Sequence[Meter]) -> int:
        """How many of the group, from its start, are done with; the others are to be tried again later."""
        try:
            self._write(group)
        except LedgerDown as error:
            if self.failing_since is None:
                self.failing_since = self._clock.elapsed()
                _log.error("%s; what is used waits", error)
            return 0
        except Exception:
            if len(group) > 1:
                return sum(1 for _ in takewhile(bool, (self._try([meter]) for meter in group)))
            self.rejected += 1
            _log.exception("the ledger will not have %r; it stays in the journal", group[0].row())
            return 1
        if self.failing_since is not None:
            self.failing_since = None
            _log.warning("the database answers again")
        return len(group)
