"""What the machine says of the energy its processors take (RAPL), hour by hour since the server started.

The counters are those of Linux's powercap, in microjoules; they begin anew when they are full, which takes under an
hour on a busy machine. Most systems let root alone read them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
HOUR = 3600
KEPT_HOURS = 24 * 366
SAMPLE_SECONDS = 20.0
"""Between two looks, far less than any counter takes to begin anew."""


class Energy:
    """The energy of this machine's processors. `sample` is called now and then; without a counter it does nothing."""

    def __init__(self, folder: Path = POWERCAP, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._counters = [counter for path in _packages(folder) if (counter := _Counter.read(path)) is not None]
        self._hours: dict[int, int] = {}

    @property
    def why_not(self) -> str | None:
        """Why there are no figures, in a sentence; None if there are."""
        if self._counters:
            return None
        return (
            "This machine does not report its energy, or not to this server: /sys/class/powercap is readable by root."
        )

    @property
    def microjoules(self) -> int:
        """Of all hours."""
        return sum(self._hours.values())

    def sample(self) -> None:
        """Add what was taken since the last call to the hour that it is."""
        if not self._counters:
            return
        hour = int(self._now()) // HOUR
        self._hours[hour] = self._hours.get(hour, 0) + sum(counter.taken() for counter in self._counters)
        while len(self._hours) > KEPT_HOURS:
            del self._hours[min(self._hours)]

    async def keep_sampling(self) -> None:
        """Until it is cancelled."""
        while self._counters:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def between(self, since: int, until: int) -> float | None:
        """Watt-hours from one moment to another, whole hours in seconds (UTC); None if nothing is known of them."""
        known = [taken for hour, taken in self._hours.items() if since <= hour * HOUR < until]
        return sum(known) / 3.6e9 if known else None


class _Counter:
    def __init__(self, path: Path, range: int, value: int) -> None:
        self._path, self._range, self._value = path, range, value

    @classmethod
    def read(cls, path: Path) -> _Counter | None:
        try:
            return cls(path, _number(path / "max_energy_range_uj"), _number(path / "energy_uj"))
        except (OSError, ValueError):
            return None

    def taken(self) -> int:
        """Microjoules since the last call."""
        try:
            value = _number(self._path / "energy_uj")
        except (OSError, ValueError):
            return 0
        before, self._value = self._value, value
        return value - before if value >= before else value + self._range - before


def _packages(folder: Path) -> list[Path]:
    """One counter a processor. Its parts are contained in it, and it in what counts the whole machine (psys)."""
    return sorted(path for path in folder.glob("*-rapl:*") if _text(path / "name").startswith("package"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(path.read_text())
