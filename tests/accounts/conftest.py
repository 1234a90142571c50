"""A database for each test, of each kind that there is, and helper modules beside the tests."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepwell.accounts import Database, open_database

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A PostgreSQL of this run's own, reached through a socket in the folder."""
    bin = _postgres_programs()
    # Sockets have short names, and PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder, user = Path(name), None
        if os.getuid() == 0:
            user = "nobody"
            shutil.chown(folder, user)
        subprocess.run(
            [bin / "initdb", "-D", folder / "data", "-U", "tests", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(folder)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [bin / "postgres", "-D", folder / "data", *options], stderr=log, user=user, cwd=folder
            )
        try:
            _wait_for(folder / ".s.PGSQL.5432", server)
            yield folder
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.sqlite'}"
    import psycopg

    folder, name = request.getfixturevalue("cluster"), f"test_{time.time_ns()}"
    with psycopg.connect(f"host={folder} user=tests dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"postgresql://tests@/{name}?host={folder}"


@pytest.fixture
def database(url: str, tmp_path: Path) -> Iterator[Database]:
    made = open_database(url, environ={"XDG_DATA_HOME": str(tmp_path)})
    yield made
    made.close()


def _postgres_programs() -> Path:
    """Where Debian and others keep them; .ci/packages installs them."""
    found = [Path(path).resolve().parent for path in (shutil.which("postgres"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in found if (folder / "initdb").exists()), None) or pytest.fail(
        "these tests need PostgreSQL (Debian: apt-get install postgresql)", pytrace=False
    )


def _wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    for _ in range(600):
        assert server.poll() is None, (socket.parent / "log").read_text()
        try:
            psycopg.connect(f"host={socket.parent} user=tests dbname=postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("PostgreSQL does not start")
