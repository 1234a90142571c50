"""A server of the embedded model with accounts, as a process of its own, for the benchmarks that put load on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from deepwell.accounts import Database, Keys, Ledger, Platform, Row, open_database

PRICES = """
[models."*"]
hit = 0.1
miss = 1
output = 4
"""


class AccountsServer:
    """Its database and prices lie in `folder`; each account of `names` has a key and a thousand dollars."""

    def __init__(self, folder: Path, names: Sequence[str] = ("ada",), *options: str) -> None:
        self.folder, self.options = folder, options
        self.url = str(folder / "accounts.sqlite")
        (folder / "prices.toml").write_text(PRICES, encoding="utf-8")
        self.address = ""
        self.process: subprocess.Popen[str] | None = None
        self.secrets: dict[str, str] = {}
        with self.database() as database:
            for name in names:
                self.secrets[name], key = Keys(database).add(name)
                Ledger(database).move(key.account, "USD", "top_up", 1000 * 10**6, 1)

    def start(self) -> str:
        """Start it, and wait until it answers; its address."""
        where = ["--port", "0", "--database", self.url, "--prices", str(self.folder / "prices.toml")]
        command = [sys.executable, "-m", "deepwell", "serve", *where, "--log", "none", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("page "):
                self.address = line.split()[1].rstrip("/")
            if line.startswith("try "):
                return self.address
        raise SystemExit("the server did not start")

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """SIGTERM: what runs may end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[name]}"}

    @contextmanager
    def database(self) -> Iterator[Database]:
        database = open_database(self.url)
        try:
            yield database
        finally:
            database.close()

    def audited(self) -> dict[str, Row]:
        """The ledger's rows by request, after what killed processes left is taken over. Ends the program if the ledger
        does not add up."""
        with self.database() as database:
            Platform(database).close()
            if faults := Ledger(database).audit():
                raise SystemExit(f"the ledger does not add up: {faults}")
            return {row.id: row for row in Ledger(database).rows()}


class Heard:
    """What a client heard of one streamed answer: its `id`, `tokens` that came, and the `usage` if it came to that."""

    def __init__(self) -> None:
        self.id: str | None = None
        self.tokens = 0
        self.usage: dict[str, int] | None = None
        self.status: int | None = None

    async def listen(self, client: httpx.AsyncClient, body: dict[str, object], headers: dict[str, str]) -> None:
        """Ask for a completion with `logprobs`, which tell tokens apart, and hear until it ends or breaks."""
        try:
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                self.status = answer.status_code
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        self._hear(json.loads(line[6:]))
        except httpx.HTTPError:
            pass

    def _hear(self, chunk: dict[str, object]) -> None:
        self.id = str(chunk.get("id") or self.id)
        for choice in chunk.get("choices") or ():  # type: ignore[attr-defined]
            self.tokens += len((choice.get("logprobs") or {}).get("tokens", ()))
        self.usage = chunk.get("usage") or self.usage  # type: ignore[assignment]
