"""Shared by all tests: two threads at most, imports of the helper modules beside the tests, and a limit of time."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="deepwell-tests-")  # the user's own accounts are not for tests
for folder in ("", "model", "weights", "exactness", "ops"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# The same examples in every run, and no time limit on one: a busy machine is no failure.
settings.register_profile("deepwell", deadline=None, derandomize=True)
settings.load_profile("deepwell")

# Scripts start what they put into the background with signals ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)

SECONDS = float(os.environ.get("DEEPWELL_TEST_SECONDS", "300"))
"""What one test may take: some ten times what the longest needs. What cannot even be interrupted ends the run, with
the stacks of its threads, at pytest's own `faulthandler_timeout`."""


@contextmanager
def _limited() -> Iterator[None]:
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    with _limited():
        yield


pytest_runtest_call = pytest_runtest_teardown = pytest_runtest_setup


def _out_of_time(number: int, frame: FrameType | None) -> None:
    """What the test waits for is killed, so that leaving its `with` blocks does not wait for the same again."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    pytest.fail(f"took more than {SECONDS:g} s")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3-shaped checkpoint with a real tokenizer."""
    # Only here, because they import torch and transformers.
    from seeded import save

    from fakes import write_tiny_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-v3"
    save("v3", folder)
    return write_tiny_tokenizer(folder)
