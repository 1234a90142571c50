"""Limits of the control groups that a process is in: those of containers, systemd's services, Slurm's jobs.

A limit of any group holds for all below it, so what counts is the least of the process's own group and its parents, as
far up as the mount shows them. cgroup v2 has one tree, v1 one for each controller; a machine may have both. `proc` is
the folder of the process in /proc.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROCESS = Path("/proc/self")
_UNLIMITED = 1 << 60
"""From here on a number says "no limit": cgroup v1 writes one near 2^63."""


def cpu_limit(proc: Path = _PROCESS) -> float | None:
    """Cores that the process may use; None if unlimited."""
    quotas = []
    for group in _groups("cpu", proc):
        words = (_text(group / "cpu.max") or "").split()
        words = words or [_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        quota, period = (_limit(word) for word in words)
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(proc: Path = _PROCESS) -> int | None:
    """Bytes that the process may take; None if unlimited. Over `memory.high` it is not killed, but stands still."""
    names = "memory.max", "memory.high", "memory.limit_in_bytes"
    limits = [_limit(_text(group / name) or "") for group in _groups("memory", proc) for name in names]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of the process's groups that may bound its use of `controller`, and of all above them."""
    member = dict(_memberships(proc))
    for root, point, name in _mounts(proc):
        if name not in ("", controller) or name not in member:
            continue
        group = member[name]
        # a mount of another branch, as where /proc is the host's and the mount the container's, shows its own root
        inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        yield point / inside
        yield from (point / above for above in inside.parents)


def _memberships(proc: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """The group of each controller; "" is the one of cgroup v2. Lines are `id:controllers:path`."""
    for line in (_text(proc / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        yield from ((name, PurePosixPath(path)) for name in controllers.split(","))


def _mounts(proc: Path) -> Iterator[tuple[PurePosixPath, Path, str]]:
    """The mounted trees: which group is at the mount's root, where that is, for which controller ("": cgroup v2).

    Lines are `id parent device root point options [tags] - type source options` (proc(5)).
    """
    for line in (_text(proc / "mountinfo") or "").splitlines():
        mount, _, system = line.partition(" - ")
        (_, _, _, root, point, *_), (kind, *_, options) = mount.split(), system.split()
        if kind in ("cgroup", "cgroup2"):
            names = options.split(",") if kind == "cgroup" else [""]
            yield from ((PurePosixPath(root), Path(point), name) for name in names)


def _limit(text: str) -> int | None:
    """A number of a control file; None for "max", for none, and for what stands for no limit."""
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None
