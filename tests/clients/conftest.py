"""The two servers that run.sh has started, by their addresses."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def embedded() -> str:
    """`deepwell serve` with the embedded model, which continues texts."""
    return os.environ["DEEPWELL_EMBEDDED"]


@pytest.fixture(scope="session")
def scripted() -> str:
    """A model that thinks, greets, and calls the tool `weather`, from a script."""
    return os.environ["DEEPWELL_SCRIPTED"]
