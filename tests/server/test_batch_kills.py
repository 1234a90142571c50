"""A batch whose server is killed with SIGKILL again and again is answered and billed once, line by line."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from serving import chat
from test_batches import CHAT, begin, line, read, upload

from deepwell.accounts import Keys, Ledger, open_database, recover

SERVER = Path(__file__).with_name("batch_server.py")
PAID = 10**9
LINES = 50


@contextmanager
def running(folder: Path, port: int, headers: dict[str, str]) -> Iterator[httpx.Client]:
    """A server process, killed at the end."""
    command = [sys.executable, str(SERVER), str(folder), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
                yield client
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_batch_survives_kills_and_each_line_is_answered_and_billed_once(tmp_path: Path) -> None:
    database = open_database(str(tmp_path / "accounts.sqlite"))
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", PAID, 1)
    headers, port, dice = {"Authorization": f"Bearer {secret}"}, free_port(), random.Random(7)
    with running(tmp_path, port, headers) as client:
        lines = [line(str(number), chat(max_tokens=10 + number)) for number in range(LINES)]
        batch = begin(client, upload(client, *lines)["id"]).json()
        time.sleep(0.4)
    for _ in range(3):
        with running(tmp_path, port, headers) as client:
            time.sleep(0.1 + dice.random() / 2)
            assert client.get(f"/v1/batches/{batch['id']}").json()["status"] == "in_progress"
    with running(tmp_path, port, headers) as client:
        while (over := client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
            time.sleep(0.05)
        assert over["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        answers = read(client, over["output_file_id"])
    recover(database)
    rows = {row.id: row for row in Ledger(database).rows()}
    assert sorted(int(one["custom_id"]) for one in answers) == list(range(LINES))
    assert rows.keys() == {one["id"] for one in answers}
    for one in answers:
        usage, row = one["response"]["body"]["usage"], rows[one["id"]]
        assert usage["completion_tokens"] == row.output == 10 + int(one["custom_id"])
        assert (row.hit + row.miss, row.kind, row.reason) == (usage["prompt_tokens"], "batch", "length")
    [balance] = Ledger(database).balances(key.account, 0)
    assert balance.total == PAID - sum(row.cost for row in rows.values())
    assert Ledger(database).audit() == []
    database.close()


def test_a_line_that_was_billed_but_not_written_down_is_billed_no_more(tmp_path: Path) -> None:
    """The kill came between the ledger's commit and the line on the disk: the line is asked again."""
    database = open_database(str(tmp_path / "accounts.sqlite"))
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", PAID, 1)
    headers, port = {"Authorization": f"Bearer {secret}"}, free_port()
    with running(tmp_path, port, headers) as client:
        batch = begin(
            client, upload(client, line("a", chat(max_tokens=5)), line("b", chat(max_tokens=400)))["id"]
        ).json()
        while not (before := list(Ledger(database).rows())):
            time.sleep(0.01)
    outputs = [path for path in tmp_path.rglob("file-*.jsonl") if CHAT not in path.read_text().partition("\n")[0]]
    for path in outputs:
        path.unlink()
    with running(tmp_path, port, headers) as client:
        while (over := client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
            time.sleep(0.05)
        assert {one["custom_id"] for one in read(client, over["output_file_id"])} == {"a", "b"}
    recover(database)
    rows = list(Ledger(database).rows())
    assert sorted(row.output for row in rows) == [5, 400]
    assert before[0] in rows
    database.close()
