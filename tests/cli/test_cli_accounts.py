"""`deepwell keys` and `deepwell usage`, as who runs a server uses them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import deepwell

from deepwell.accounts import Clock, Keys, Ledger, Platform, Row, open_database
from deepwell.cli.main import main


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "accounts.sqlite")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_key_is_printed_alone_and_works(tmp_path: Path) -> None:
    made = deepwell("keys", "add", "ada", env={"XDG_DATA_HOME": str(tmp_path), "PATH": ""})
    assert made.returncode == 0, made.stderr
    [secret] = made.stdout.splitlines()
    assert secret not in made.stderr
    database = open_database(str(tmp_path / "deepwell" / "accounts.sqlite"))
    assert Platform(database).caller(secret).name == "ada"
    assert "ada has no money yet; where tokens cost something, `deepwell keys top-up ada 20` comes first" in made.stderr
    assert (tmp_path / "deepwell").stat().st_mode & 0o077 == 0


def test_keys_from_the_first_to_the_last_word(capsys: pytest.CaptureFixture[str], place: str) -> None:
    at = ("--database", place)
    told = ("--models", "a,b", "--expires", "30d", "--budget", "0.5", "--requests-per-minute", "60")
    assert run(capsys, "keys", "add", "ada", *told, "--role", "admin", *at)[0] == 0
    code, out, _ = run(capsys, "keys", "list", "--json", *at)
    [key] = json.loads(out)
    assert (key["role"], key["models"], key["limits"]["budget"]) == ("admin", ["a", "b"], 500_000)
    assert key["limits"]["requests_per_minute"] == 60
    assert key["expires"] - key["created"] == pytest.approx(30 * 86_400_000_000, abs=5e6)
    assert "hash" not in key
    assert run(capsys, "keys", "limit", "ada", "--models", "*", "--requests-per-minute", "0", *at)[0] == 0
    [key] = json.loads(run(capsys, "keys", "list", "--json", *at)[1])
    assert (key["models"], key["limits"]["requests_per_minute"]) == (None, None)
    assert key["limits"]["budget"] == 500_000
    for line in (["grant", "ada", "10", "--expires", "2d"], ["top-up", "ada", "5"], ["adjust", "ada", "-7.25"]):
        code, _, err = run(capsys, "keys", *line, *at)
        assert code == 0, err
    assert "ada has 7.75 USD: 10.00 granted, -2.25 topped up" in err
    assert "7.75 USD" in run(capsys, "keys", "list", *at)[1]
    assert "no money" not in run(capsys, "keys", "add", "ada", *at)[2]
    assert run(capsys, "keys", "revoke", "1", *at)[0] == 0
    assert "revoked" in run(capsys, "keys", "list", *at)[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["keys", "add"], "keys add needs NAME"),
        (["keys", "ad", "ada"], "must be one of add, adjust, grant"),
        (["keys", "list", "--role", "admin"], "--role is nothing that keys list takes"),
        (["keys", "add", "ada", "5"], "AMOUNT is nothing that keys add takes"),
        (["keys", "add", " "], "an account's name is 1 to 200 printable characters"),
        (["keys", "add", "a\x1b[2Jb"], "an account's name is"),
        (["keys", "add", "ada", "--budget", "nan"], "--budget must be a number with six decimals at most, not 'nan'"),
        (["keys", "add", "ada", "--budget", "-1"], "--budget must be from 0.00"),
        (["keys", "add", "ada", "--expires", "yesterday"], "--expires: must be a span such as 30d"),
        (["keys", "add", "ada", "--expires", "2020-01-01"], "--expires: 2020-01-01 is in the past"),
        (["keys", "add", "ada", "--concurrent", "-1"], "--concurrent: must be an integer from 0"),
        (["keys", "add", "ada", "--currency", "usd"], "--currency: must be a currency of three capital letters"),
        (["keys", "grant", "nobody", "5"], "there is no account 'nobody'"),
        (["keys", "grant", "nobody", "1e400"], "AMOUNT must be from 0.000001"),
        (["keys", "revoke", "7"], "there is no key '7'"),
        (["usage", "--json", "--csv"], "exclude each other"),
        (["usage", "--by", "hours"], "--by: must be a list, each one of account, day"),
        (["usage", "--account", "nobody"], "there is no account 'nobody'"),
        (["usage", "--database", "mysql://x/y"], "mysql is not supported; sqlite and postgresql are"),
        (["usage", "--database", "sqlite://"], "SQLite needs a file"),
    ],
)
def test_wrong_use_is_one_sentence(capsys: pytest.CaptureFixture[str], place: str, line: list[str], said: str) -> None:
    code, out, err = run(capsys, *line, *([] if "--database" in line else ["--database", place]))
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.fixture
def used(place: str) -> str:
    database = open_database(place)
    _, key = Keys(database, Clock(lambda: 1)).add("ada")
    day = 86_400_000_000
    rows = [
        Row(
            f"r{n}", key.account, key.id, "m", "chat", day * n, day * n + 3_000_000, 500_000, 3_000_000, 30, 10, 5, 0,
            "stop", 1, 2, 3, "USD", 7,
        )
        for n in range(3)
    ]  # fmt: skip
    Ledger(database).append(rows, 1)
    database.close()
    return place


def test_usage_as_json_csv_parquet_and_table(
    capsys: pytest.CaptureFixture[str], used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    at = ("--database", used)
    sums = json.loads(run(capsys, "usage", "--json", *at)[1])
    assert [(one["day"], one["model"], one["cost"]) for one in sums] == [(n * 86_400_000_000, "m", 7) for n in range(3)]
    table = list(csv.DictReader(io.StringIO(run(capsys, "usage", "--csv", *at)[1])))
    assert [{name: str(value) for name, value in one.items()} for one in sums] == table
    [whole] = json.loads(run(capsys, "usage", "--json", "--by", "account", *at)[1])
    assert (whole["account"], whole["hit"], whole["hit_rate"]) == ("ada", 90, 0.75)
    rows = json.loads(run(capsys, "usage", "--rows", "--json", *at)[1])
    assert [one["id"] for one in rows] == ["r0", "r1", "r2"]
    assert len(json.loads(run(capsys, "usage", "--rows", "--json", "--since", "1970-01-02", *at)[1])) == 2
    assert json.loads(run(capsys, "usage", "--rows", "--json", "--since", "1d", *at)[1]) == []
    assert run(capsys, "usage", "--rows", "--parquet", str(tmp_path / "u.parquet"), *at)[0] == 0
    found = pyarrow.parquet.read_table(tmp_path / "u.parquet")
    assert found.column("cost").to_pylist() == [7, 7, 7]
    assert str(found.schema.field("started").type) == "timestamp[us, tz=UTC]"
    assert (
        found.cast(
            pyarrow.schema([(f.name, "int64") if "time" in str(f.type) else f for f in found.schema])
        ).to_pylist()
        == rows
    )
    monkeypatch.setenv("COLUMNS", "250")
    assert "0.000007" in run(capsys, "usage", *at)[1]
    assert "r2" in run(capsys, "usage", "--rows", *at)[1]


def test_usage_check_says_what_does_not_add_up(capsys: pytest.CaptureFixture[str], used: str) -> None:
    import sqlite3

    at = ("--database", used)
    assert run(capsys, "usage", "--check", *at)[:2] == (0, "everything adds up\n")
    with sqlite3.connect(used) as connection:
        connection.execute("UPDATE requests SET cost = cost + 1, from_topped_up = from_topped_up + 1 WHERE id = 'r1'")
    code, out, _ = run(capsys, "usage", "--check", *at)
    assert code == 1
    assert out == "account 1: topped_up is -0.000021 USD, and adds up to -0.000022\n"


def test_usage_counts_in_what_a_killed_server_left(capsys: pytest.CaptureFixture[str], used: str) -> None:
    """The journal of a process that is gone is read before anything is added up; of a living one nothing is taken."""
    at = ("--database", used)
    with subprocess.Popen([sys.executable, "-c", _LIVE, used], stdout=subprocess.PIPE) as server:
        assert server.stdout
        server.stdout.readline()
        assert len(json.loads(run(capsys, "usage", "--rows", "--json", *at)[1])) == 3
        server.kill()
    _, out, err = run(capsys, "usage", "--rows", "--json", *at)
    assert "1 interrupted requests were written down" in err
    [last] = [one for one in json.loads(out) if one["id"] == "live"]
    assert (last["reason"], last["output"]) == ("interrupted", 5)
    assert len(json.loads(run(capsys, "usage", "--rows", "--json", *at)[1])) == 4


_LIVE = """
import sys, time
from deepwell.accounts import Keys, Platform, open_database
database = open_database(sys.argv[1])
platform = Platform(database)
caller = platform.caller(Keys(database).add("eve")[0])
platform.open(caller, id="live", model="m", kind="chat", prompt_tokens=1).progress(0, 1, 5)
print("counted", flush=True)
time.sleep(60)
"""
