"""What this machine gives a process: processor, usable cores, memory, limits of its container. Linux first."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deepwell.loading import cgroups


class Machine(msgspec.Struct, frozen=True):
    """Sizes are bytes. `cpu_limit` (cores) and `memory_limit` are the container's (cgroups.py), `address_limit` the
    process's own for what it maps (`ulimit -v`); None if unlimited."""

    cpu: str
    architecture: str
    cores: int
    usable_cores: int
    cpu_limit: float | None
    memory: int | None
    memory_available: int | None
    memory_limit: int | None
    address_limit: int | None


def inspect_machine() -> Machine:
    memory = _table(Path("/proc/meminfo"))
    return Machine(
        cpu=_table(Path("/proc/cpuinfo")).get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        cpu_limit=cgroups.cpu_limit(),
        memory=_kib(memory.get("MemTotal")),
        memory_available=_kib(memory.get("MemAvailable")),
        memory_limit=cgroups.memory_limit(),
        address_limit=_address_limit(),
    )


def default_threads(machine: Machine) -> int:
    """Cores this process may use: its affinity, cut by the container's limit."""
    return min(machine.usable_cores, math.ceil(machine.cpu_limit or machine.usable_cores))


def free_memory(machine: Machine) -> int:
    """Bytes this process may still take: what the system can give, within the limits on it."""
    return min((left for left, _ in _left(machine)), default=os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize())


def what_limits(machine: Machine) -> str:
    """Which limit, not the system's free memory, is what bounds `free_memory`; "" if none does."""
    return min(_left(machine), default=(0, ""))[1]


def _left(machine: Machine) -> Iterator[tuple[int, str]]:
    """What there is left of everything that bounds memory, in bytes, and the name of the limit that says so."""
    if machine.memory_available is not None:
        yield machine.memory_available, ""
    if machine.memory_limit is not None:
        yield max(0, machine.memory_limit - resident_bytes()), "the limit of this container"
    if machine.address_limit is not None:
        yield max(0, machine.address_limit - mapped_bytes()), "the limit of this process (ulimit -v)"


def resident_bytes() -> int:
    """Resident memory of this process now; where /proc is missing, its peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def mapped_bytes() -> int:
    """Addresses that this process has taken, in bytes; where /proc is missing, those of its resident memory."""
    statm = _text(Path("/proc/self/statm"))
    return int(statm.split()[0]) * resource.getpagesize() if statm else resident_bytes()


def process_seconds() -> float:
    """Seconds since this process was started; since Python noticed, where /proc is missing."""
    stat = _text(Path("/proc/self/stat"))
    if stat is None:
        return time.process_time()
    # Field 22, counted after the command's name, which may hold spaces: start in clock ticks after boot.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _address_limit() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _table(path: Path) -> dict[str, str]:
    """Lines `key : value` of a /proc file; the first of each key."""
    table: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(":")
        table.setdefault(key.strip(), value.strip())
    return table


def _kib(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
