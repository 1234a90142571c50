"""The database of accounts: its tables, and how it is opened. SQLite in a file, or PostgreSQL by URL.

Times are microseconds since 1970 (UTC), money is micro-units, tokens are counted one by one: all are 64-bit integers.
docs/accounts.md describes every column.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, Table, Text
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deepwell.errors import ConfigError, DeepwellError, LedgerDown

VERSION = "1"
"""Of the tables. Another one is refused."""
ANONYMOUS = 0
"""The account and key of requests without a key, while no key exists."""
_TABLES_LOCK = 0x6465657077656C6C
"""PostgreSQL's advisory lock under which tables are made."""

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")

about = Table("about", metadata, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

accounts = Table(
    "accounts",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("account", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("models", Text),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("concurrent", BigInteger),
    Column("budget", BigInteger),
    Column("budget_currency", Text),
    Column("budget_period", Text),
)

balances = Table(
    "balances",
    metadata,
    Column("account", ForeignKey("accounts.id"), primary_key=True),
    Column("currency", Text, primary_key=True),
    Column("granted", BigInteger, nullable=False),
    Column("topped_up", BigInteger, nullable=False),
)

movements = Table(
    "movements",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("account", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("currency", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("purse", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("id", ForeignKey("movements.id"), primary_key=True),
    Column("account", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("currency", Text, nullable=False),
    Column("expires", BigInteger),
    Column("remaining", BigInteger, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account", ForeignKey("accounts.id"), nullable=False),
    Column("key", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("ended", BigInteger, nullable=False),
    Column("first_us", BigInteger),
    Column("whole_us", BigInteger, nullable=False),
    Column("hit", BigInteger, nullable=False),
    Column("miss", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("price_hit", BigInteger, nullable=False),
    Column("price_miss", BigInteger, nullable=False),
    Column("price_output", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("from_granted", BigInteger, nullable=False),
    Column("from_topped_up", BigInteger, nullable=False),
    Index("requests_by_time", "started"),
    Index("requests_by_key", "key", "started"),
)


class Database:
    """An open database, for any number of threads. Errors of the server or the disk are LedgerDown."""

    def __init__(self, engine: Engine, live: Path) -> None:
        """`live` is the folder of what live requests have counted so far."""
        self._engine = engine
        self._writing = engine.execution_options(writes=True)
        self.live = live
        self.id = ""

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One state of the database, whatever others commit meanwhile. Raises LedgerDown."""
        with _named(self._engine), self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, committed at the end unless an error leaves it. Raises LedgerDown."""
        with _named(self._engine), self._writing.begin() as connection:
            yield connection

    def check(self) -> None:
        """That the tables are of this version; from then on `id` is the database's own. Raises DeepwellError."""
        with self.reading() as connection:
            known = {row.name: row.value for row in connection.execute(sql.select(about))}
        if known.get("version") != VERSION:
            version = known.get("version")
            raise DeepwellError(f"database: its tables are of version {version}, and this Deepwell knows {VERSION}")
        self.id = known["id"]

    def close(self) -> None:
        self._engine.dispose()


def data_folder(environ: Mapping[str, str]) -> Path:
    """Where the user's own data lies, by the XDG rules."""
    base = environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "deepwell"


def open_database(url: str = "", *, busy_seconds: float = 5.0, environ: Mapping[str, str] = os.environ) -> Database:
    """Open or make the database at a URL or path; of the user's data folder if `url` is empty.

    `busy_seconds` is how long a transaction waits for others. Raises ConfigError for a URL that cannot be, LedgerDown
    for a database that cannot be reached, DeepwellError for one of another version.
    """
    place = _place(url, environ)
    if place.drivername == "sqlite":
        engine, live = _sqlite(place, busy_seconds)
    else:
        named = hashlib.sha256(place.set(password=None).render_as_string().encode()).hexdigest()[:16]
        engine, live = _postgres(place, busy_seconds), data_folder(environ) / f"live-{named}"
    try:
        database = Database(engine, live)
        with database.reading() as connection:
            made = sql.inspect(connection).has_table(about.name)
        if not made:
            with database.writing() as connection:
                _make(connection)
        database.check()
        return database
    except BaseException:
        engine.dispose()
        raise


def _place(url: str, environ: Mapping[str, str]) -> URL:
    if "://" not in url:
        path = Path(url).expanduser() if url else data_folder(environ) / "accounts.sqlite"
        return URL.create("sqlite", database=str(path.absolute()))
    try:
        place = make_url(url)
    except ArgumentError:
        raise ConfigError("database: must be a path, sqlite:///PATH or postgresql://USER@HOST/NAME") from None
    if place.drivername in ("postgres", "postgresql"):
        place = place.set(drivername="postgresql+psycopg")
    if place.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(f"database: {place.drivername} is not supported; sqlite and postgresql are")
    if place.drivername == "sqlite" and place.database in (None, "", ":memory:"):
        raise ConfigError("database: SQLite needs a file, for a ledger outlives its process; write sqlite:///PATH")
    return place


def _sqlite(place: URL, busy_seconds: float) -> tuple[Engine, Path]:
    path = Path(place.database or "").absolute()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # SQLite gives its other files the rights of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = sql.create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": busy_seconds})

    @sql.event.listens_for(engine, "connect")
    def _settings(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, and not by the driver's guesses
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise DeepwellError(f"{path}: this file system cannot hold SQLite's write-ahead log; use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that writes takes its turn at once; one that reads waits for nobody.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine, path.with_name(path.name + ".live")


def _postgres(place: URL, busy_seconds: float) -> Engine:
    milliseconds = max(1, int(busy_seconds * 1000))
    try:
        return sql.create_engine(
            place,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 2, "options": f"-c lock_timeout={milliseconds} -c timezone=UTC"},
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise ConfigError("database: PostgreSQL needs psycopg: pip install 'deepwell[postgres]'") from None


def _make(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_TABLES_LOCK)))
    metadata.create_all(connection)
    if connection.scalar(sql.select(about.c.value)) is None:  # else another process has been quicker
        facts = {"version": VERSION, "id": secrets.token_hex(16)}
        connection.execute(about.insert(), [{"name": name, "value": value} for name, value in facts.items()])
        connection.execute(accounts.insert().values(id=ANONYMOUS, name="", created=0))


def insert_new(connection: Connection, table: Table, **values: object) -> bool:
    """Add a row, whoever else does so at the same time; False if there is one with its key or name already."""
    if connection.dialect.name == "postgresql":  # a tenth of a second to import, which SQLite's servers save
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(table).values(**values).on_conflict_do_nothing().inline()
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1


@contextmanager
def _named(engine: Engine) -> Iterator[None]:
    """Errors as sentences that name the database, and no password."""
    try:
        yield
    except PoolTimeout as error:
        raise LedgerDown("too many wait for the database at once") from error
    except DBAPIError as error:
        place = engine.url.set(password=None).render_as_string()
        reason = str(error.orig).strip().partition("\n")[0]
        if "file is not a database" in reason:
            raise DeepwellError(f"the database {place}: {reason}") from error
        if not isinstance(error, OperationalError) and not error.connection_invalidated:
            raise
        raise LedgerDown(f"the database {place} does not answer: {reason}") from error
