"""The suite itself: no test of it can hang, and none depends on how it was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HANGING = """
import subprocess, threading

def test_child():
    with subprocess.Popen(["sleep", "1000"]) as child:
        child.wait()

def test_thread():
    threading.Event().wait()

def test_signals():
    assert subprocess.run(["sh", "-c", "kill -INT $$"]).returncode == -2
"""


def test_a_test_that_hangs_fails_and_signals_are_heard(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env=os.environ | {"DEEPWELL_TEST_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert "2 failed, 1 passed" in done.stdout
    assert done.stdout.count("took more than 1 s") >= 2
