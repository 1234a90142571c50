"""The limits on a process are seen wherever they are set: in its control group, in one above, on itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from deepwell.loading import cgroups, machine

V2 = ("0::/system.slice/job.service\n", "35 24 0:30 / {top} rw - cgroup2 cgroup2 rw,nsdelegate\n")
V1 = (
    "5:memory:/slurm/job_7/step_0\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/user.slice\n",
    "31 30 0:28 / {top} rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / {top}/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / {top}/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "34 31 0:31 / {top}/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n",
)
HOST = ("0::/docker/abc/inner\n", "35 24 0:30 /docker/abc {top} ro - cgroup2 cgroup rw\n")
"""A container that sees the host's names: its own group is at the mount's root."""
ELSEWHERE = ("0::/../other\n", "35 24 0:30 / {top} ro - cgroup2 cgroup rw\n")
BOTH = (V1[0] + "0::/\n", V1[1] + "36 31 0:38 / {top}/unified rw - cgroup2 cgroup2 rw\n")
JOB = "system.slice/job.service"


@pytest.mark.parametrize(
    ("tree", "files", "cpus", "memory"),
    [
        (V2, {f"{JOB}/cpu.max": "150000 100000\n", f"{JOB}/memory.max": "1073741824\n"}, 1.5, 2**30),
        (V2, {f"{JOB}/cpu.max": "max 100000\n", f"{JOB}/memory.max": "max\n"}, None, None),
        (V2, {f"{JOB}/memory.max": str(2**32), "system.slice/memory.max": str(2**31)}, None, 2**31),
        (V2, {f"{JOB}/memory.max": str(2**30), "memory.max": str(2**31), f"{JOB}/memory.high": "max"}, None, 2**30),
        (V2, {f"{JOB}/memory.max": str(2**32), f"{JOB}/memory.high": str(2**29)}, None, 2**29),
        (V2, {"system.slice/cpu.max": "50000 100000", f"{JOB}/cpu.max": "200000 100000"}, 0.5, None),
        (V2, {"cpu.max": "100000 50000\n", "memory.max": str(2**33)}, 2.0, 2**33),
        (V2, {"system.slice/other.service/memory.max": "1"}, None, None),
        (V2, {}, None, None),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.0, None),
        (V1, {"cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "-1"}, None, None),
        (
            V1,
            {
                "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
                "memory/slurm/job_7/step_0/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/slurm/job_7/memory.limit_in_bytes": str(2**29),
                "memory/memory.limit_in_bytes": str(2**63 - 4096),
            },
            3.0,
            2**29,
        ),
        (BOTH, {"memory/slurm/memory.limit_in_bytes": str(2**28), "unified/memory.max": "max"}, None, 2**28),
        (HOST, {"memory.max": str(2**30), "inner/memory.max": str(2**29)}, None, 2**29),
        (ELSEWHERE, {"memory.max": str(2**30)}, None, 2**30),
        (("", ""), {"memory.max": "1"}, None, None),
    ],
)
def test_limits_of_a_control_group_and_all_above_it(
    tree: tuple[str, str], files: dict[str, str], cpus: float | None, memory: int | None, tmp_path: Path
) -> None:
    proc, top = tmp_path / "proc", tmp_path / "cgroup"
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    proc.mkdir()
    (proc / "cgroup").write_text(tree[0])
    (proc / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/a rw\n" + tree[1].format(top=top))
    assert (cgroups.cpu_limit(proc), cgroups.memory_limit(proc)) == (cpus, memory)


def test_threads_are_those_of_the_quota() -> None:
    here = msgspec.structs.replace(machine.inspect_machine(), usable_cores=8, cpu_limit=None)
    assert machine.default_threads(here) == 8
    assert machine.default_threads(msgspec.structs.replace(here, cpu_limit=1.5)) == 2


def test_a_limit_of_addresses_is_a_sentence_and_no_traceback() -> None:
    """`ulimit -v`: what would not fit is refused, by its name, before anything is read."""
    code = (
        "import resource; from deepwell.cli import generate, main; from deepwell.loading import load, machine\n"
        "limit = machine.mapped_bytes() + (40 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "raise SystemExit(main.main(['generate', '--dtype', 'float32', '--max-tokens', '1', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "within the limit of this process (ulimit -v)" in done.stderr
