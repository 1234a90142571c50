"""What this machine gives a process: processor, usable cores, memory, limits of its container. Linux first."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from pathlib import Path

import msgspec

_CGROUP = Path("/sys/fs/cgroup")


class Machine(msgspec.Struct, frozen=True):
    """Sizes are bytes. `cpu_limit` (cores) and `memory_limit` are the container's (cgroup), None if unlimited."""

    cpu: str
    architecture: str
    cores: int
    usable_cores: int
    cpu_limit: float | None
    memory: int | None
    memory_available: int | None
    memory_limit: int | None


def inspect_machine() -> Machine:
    memory = _table(Path("/proc/meminfo"))
    return Machine(
        cpu=_table(Path("/proc/cpuinfo")).get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        cpu_limit=_cpu_limit(),
        memory=_kib(memory.get("MemTotal")),
        memory_available=_kib(memory.get("MemAvailable")),
        memory_limit=_memory_limit(),
    )


def default_threads(machine: Machine) -> int:
    """Cores this process may use: its affinity, cut by the container's limit."""
    return min(machine.usable_cores, math.ceil(machine.cpu_limit or machine.usable_cores))


def free_memory(machine: Machine) -> int:
    """Bytes this process may still take: what the system can give, within the container's limit."""
    left = [machine.memory_available, _left_in_container(machine)]
    return min((n for n in left if n is not None), default=os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize())


def limited_by_container(machine: Machine) -> bool:
    """Whether the container's limit, not the system's free memory, is what bounds `free_memory`."""
    left = _left_in_container(machine)
    return left is not None and (machine.memory_available is None or left < machine.memory_available)


def _left_in_container(machine: Machine) -> int | None:
    return None if machine.memory_limit is None else max(0, machine.memory_limit - resident_bytes())


def resident_bytes() -> int:
    """Resident memory of this process now; where /proc is missing, its peak so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def process_seconds() -> float:
    """Seconds since this process was started; since Python noticed, where /proc is missing."""
    stat = _text(Path("/proc/self/stat"))
    if stat is None:
        return time.process_time()
    # Field 22, counted after the command's name, which may hold spaces: start in clock ticks after boot.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _cpu_limit() -> float | None:
    quota, period = (_text(_CGROUP / "cpu.max") or "max 100000").split()
    if quota == "max":  # no limit, or cgroup v1
        quota = _text(_CGROUP / "cpu/cpu.cfs_quota_us") or "-1"
        period = _text(_CGROUP / "cpu/cpu.cfs_period_us") or "100000"
    return int(quota) / int(period) if int(quota) > 0 else None


def _memory_limit() -> int | None:
    text = _text(_CGROUP / "memory.max") or _text(_CGROUP / "memory/memory.limit_in_bytes") or "max"
    # cgroup v1 writes "no limit" as a number near 2^63.
    return int(text) if text != "max" and int(text) < 2**60 else None


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
