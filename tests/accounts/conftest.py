"""A database for each test, and helper modules beside the tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepwell.accounts import Database, open_database

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = open_database(str(tmp_path / "accounts.sqlite"))
    yield made
    made.close()
