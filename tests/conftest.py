"""Shared by all tests: two threads at most, and imports of the helper modules beside the tests."""

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for folder in ("", "model", "weights"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# The same examples in every run, and no time limit on one: a busy machine is no failure.
settings.register_profile("deepwell", deadline=None, derandomize=True)
settings.load_profile("deepwell")
