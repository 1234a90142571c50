"""A process may end while another of its threads is inside the kernels: it exits as it says, without a word."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEAVE = """
import atexit, sys, threading
import numpy as np
def last():
    _native.search_scales(rows, 4)  # the thread that ends the process still may
    print("done", flush=True)
atexit.register(last)
from deepwell import _native
rows, began = np.ones((256, 4096), np.float32), threading.Semaphore(0)
def work():
    while True:
        _native.search_scales(rows, 4)
        began.release()
for _ in range(int(sys.argv[1])):
    threading.Thread(target=work, daemon=True).start()
    began.acquire()
sys.exit(3)
"""


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_leaving_beside_a_thread_that_computes(threads: int) -> None:
    """Python 3.11 would unwind the stack of a thread that comes back too late, which C++ answers with abort()."""
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", LEAVE, str(threads)], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr, ended.stdout) == (3, "", "done\n")
