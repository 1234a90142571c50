"""`deepwell serve`: what it prints is true, it is ready within two seconds, small, and it ends cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_calls import COMMAND, deepwell

from deepwell import __version__
from deepwell.accounts import Keys, Prices, open_database
from deepwell.accounts.database import data_folder
from deepwell.cli import serve as serve_command
from deepwell.cli.model import TOY, load
from deepwell.errors import ConfigError
from deepwell.loading.load import LoadedModel
from deepwell.model.accounting import account
from deepwell.ops import native
from deepwell.options import ChatFormat, ServeOptions
from deepwell.server import Server, ServerLimits, Service, Site, listen
from deepwell.weights import embedded_path
from deepwell.weights.source import open_source


@contextmanager
def serving(*args: str, until: str = "\ntry ") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and what it printed until it was ready."""
    command = [*COMMAND, "serve", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        printed = ""
        while until not in printed:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            printed += line
        yield process, printed
    finally:
        process.kill()
        process.communicate()


def test_what_it_prints_works(model_folder: Path) -> None:
    with serving(str(model_folder), "--port", "0", "--dtype", "int8", "--threads", "1") as (process, printed):
        assert f"deepwell {__version__} serves tiny-v3: int8, {native.isa()}, 1 threads" in printed
        assert ", prompt format deepseek-v3\n" in printed
        page = re.search(r"^page +(\S+)$", printed, re.M)
        curl = re.search(r"^try +(curl .*)$", printed, re.M)
        assert page
        assert curl
        with urllib.request.urlopen(page[1], timeout=10) as answer:
            assert b"<html" in answer.read()
        answered = subprocess.run(["bash", "-c", curl[1]], capture_output=True, text=True, check=True, timeout=60)
        body = json.loads(answered.stdout)
        assert (body["model"], body["object"]) == ("tiny-v3", "text_completion")
        assert body["usage"]["completion_tokens"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_model_that_chats_is_asked_a_question(model_folder: Path) -> None:
    with serving(str(model_folder), "--port", "0", "--threads", "1", "--chat-format", "deepseek-v3") as (_, printed):
        curl = re.search(r"^try +(curl .*)$", printed, re.M)
        assert curl
        asked = curl[1].replace('"messages"', '"max_tokens": 8, "messages"')  # tiny-v3 has no end
        answered = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(answered.stdout)["object"] == "chat.completion"


def test_who_names_no_model_is_told_what_the_embedded_one_is() -> None:
    with serving("--port", "0", until="\nnote ") as (_, printed):
        assert re.search(
            r"^note +this is the embedded model, a toy of 3.8 million parameters: .*does not chat", printed, re.M
        )
        assert "deepwell serve SmolLM2-135M-Instruct" in printed
    counted = account(open_source(embedded_path()).config).total_params
    assert f"{counted / 1e6:.1f} million" in TOY


def test_the_embedded_model_takes_under_200_megabytes() -> None:
    """How fast it starts is measured by benchmarks/startup.py."""
    with serving("--port", "0") as (process, printed):
        assert f"deepwell {__version__} serves deepwell: " in printed
        assert re.search(r"ready [\d.]+ s after the start", printed)
        resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert resident
        assert int(resident[1]) * 1024 < 200e6


def test_serving_loads_no_torch_and_no_transformers(model_folder: Path) -> None:
    code = "import sys, deepwell.cli.serve; print({'torch', 'transformers', 'rich', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_a_chosen_name_and_every_network(model_folder: Path) -> None:
    with serving(str(model_folder), "--host", "0.0.0.0", "--open", "--port", "0", "--name", "mine", "--name", "b") as (
        _,
        printed,
    ):
        assert " serves mine, b: " in printed
        assert "sampled with temperature 1, unless a request says otherwise (the model's files advise" in printed
        assert re.search(r"^page +http://127\.0\.0\.1:\d+/$", printed, re.M), "an address that a browser can open"
        assert '"model": "mine"' in printed


def test_a_port_in_use_is_one_sentence(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = deepwell("serve", str(model_folder), "--port", str(port))
    assert done.returncode == 2
    assert re.fullmatch(rf"deepwell: cannot listen on 127\.0\.0\.1 port {port}: .*in use.*\n", done.stderr)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_model_is_one_sentence(broken: str, model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.name != broken else b'{"half": ')
    done = deepwell("serve", str(tmp_path), "--port", "0")
    assert done.returncode == 2
    assert broken in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_a_format_whose_tokens_the_model_lacks_is_refused_at_once(model_folder: Path, command: str) -> None:
    done = deepwell(command, str(model_folder), "--chat-format", "deepseek-v4", "--threads", "1")
    assert done.returncode == 2
    assert "deepseek-v4 needs <｜latest_reminder｜>" in done.stderr
    assert "those whose tokens it has are deepseek-llm, deepseek-coder, deepseek-v2.5, " in done.stderr


def test_a_taken_port_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = deepwell("serve", str(tmp_path / "no-model"), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert done.stderr.startswith("deepwell: cannot listen on 127.0.0.1")


def test_who_connects_while_the_model_is_loaded_is_answered_afterwards(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process: the address is known from the listening socket, long before it is printed."""
    listeners: list[socket.socket] = []
    answers: list[bytes] = []

    def listening(host: str, port: int) -> socket.socket:
        listeners.append(listen(host, port))
        return listeners[0]

    def loading(options: ServeOptions) -> LoadedModel:
        early = socket.create_connection(listeners[0].getsockname(), timeout=30)
        early.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reader.append(threading.Thread(target=read, args=(early,)))
        reader[0].start()
        return load(options)

    def read(connection: socket.socket) -> None:
        with connection:
            answers.append(connection.recv(4096))
            servers[0].should_exit = True

    def noted(service: Service, listener: socket.socket, *more: Any) -> None:
        servers.append(Server(service, listener, *more))
        servers[0].run()

    reader: list[threading.Thread] = []
    servers: list[Server] = []
    monkeypatch.setattr(serve_command, "listen", listening)
    monkeypatch.setattr(serve_command, "load", loading)
    monkeypatch.setattr(serve_command, "serve", noted)
    assert serve_command.run(ServeOptions(model=model_folder, port=0, threads=1, pack_cache=0)) == 0
    reader[0].join(10)
    assert answers[0].startswith(b"HTTP/1.1 200 OK")


def test_every_option_of_serve_arrives(model_folder: Path) -> None:
    options = ServeOptions(
        model=model_folder,
        name=("one", "two", "three"),
        token_budget=33,
        max_running=3,
        max_waiting=4,
        max_tokens=5,
        strict=True,
        max_body_mb=0.5,
        keep_alive_seconds=6.0,
        drain_seconds=7.0,
        threads=1,
        pack_cache=0,
    )
    service = serve_command.service_of(load(options), options)
    assert service.names == ("one", "two", "three")
    limits = ServerLimits(max_body_bytes=2**19, keep_alive_seconds=6.0, max_tokens=5, strict=True)
    assert service.limits == limits
    config = service.engine.config
    assert (config.token_budget, config.max_running, config.max_waiting, config.drain_seconds) == (33, 3, 4, 7.0)


def test_no_setting_of_the_server_is_without_an_option() -> None:
    changed = ServeOptions(max_tokens=5, strict=True, max_body_mb=0.5, keep_alive_seconds=6.0)
    before, after = (msgspec.structs.asdict(serve_command.limits_of(options)) for options in (ServeOptions(), changed))
    assert before == msgspec.structs.asdict(ServerLimits()), "the options have the settings' own defaults"
    assert [field for field in before if before[field] == after[field]] == []


def test_what_stands_around_the_endpoints_has_its_options() -> None:
    given = {"host": "localhost", "base_path": "/x", "log": "none", "log_format": "json"}
    options = ServeOptions(**given, allow_host=("a.example",), allow_origin=("https://b.example",), data_dir="/y")
    site = Site(**given, allow_hosts=("a.example",), allow_origins=("https://b.example",), data=Path("/y"))
    assert serve_command.site_of(options) == site
    kept = Site(data=data_folder(os.environ))
    assert serve_command.site_of(ServeOptions()) == kept, "the options have the settings' own defaults"


@pytest.mark.parametrize(("log", "lines"), [("requests", 2), ("errors", 1), ("none", 0)])
def test_requests_are_logged_as_wished(model_folder: Path, log: str, lines: int) -> None:
    with serving(
        str(model_folder), "--port", "0", "--threads", "1", "--log", log, "--name", "one", "--name", "two"
    ) as (
        process,
        printed,
    ):
        page = re.search(r"^page +(\S+)$", printed, re.M)
        assert page
        with urllib.request.urlopen(page[1] + "v1/models", timeout=10) as answer:
            assert [card["id"] for card in json.load(answer)["data"]] == ["one", "two"]
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(page[1] + "nowhere", timeout=10)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=20)[1]
        assert len(re.findall(r"^[\d-]+ [\d:]+ 127\.0\.0\.1 GET /\S+ (?:200|404) ", errors, re.M)) == lines


@pytest.mark.parametrize(
    ("template", "chat_format", "chats"),
    [(None, "auto", False), ("<｜User｜>{{ messages }}<｜Assistant｜>", "auto", True), (None, "deepseek-v3", True)],
)
def test_a_model_chats_if_it_shows_so_or_is_told_so(
    model_folder: Path, tmp_path: Path, template: str | None, chat_format: ChatFormat, chats: bool
) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    if template:
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    options = ServeOptions(model=tmp_path, chat_format=chat_format, threads=1, pack_cache=0)
    assert serve_command.service_of(load(options), options).chats is chats


def test_the_embedded_model_does_not_claim_to_chat() -> None:
    options = ServeOptions(threads=1, pack_cache=0)
    service = serve_command.service_of(load(options), options)
    assert (service.chats, service.format.name) == (False, "deepseek-v3")


def test_other_machines_are_answered_when_a_key_exists_or_all_may_ask(tmp_path: Path) -> None:
    database = str(tmp_path / "accounts.sqlite")
    args = ["serve", "--port", "0", "--host", "0.0.0.0", "--database", database]
    refused = deepwell(*args)
    assert refused.returncode == 2
    assert "there is no API key yet: make one with `deepwell keys add NAME`" in refused.stderr
    with serving(*args[1:], "--open"):
        pass
    made = open_database(database)
    secret, _ = Keys(made).add("ada")
    made.close()
    with serving(*args[1:]) as (_, printed):
        address = re.search(r"^page +(\S+)/$", printed, re.M)
        curl = re.search(r"^try +(curl .*)$", printed, re.M)
        assert address
        assert curl
        assert f"\nkeys  who asks needs one; {address[1]}/admin makes them, {address[1]}/books adds up\n" in printed
        shell = ["bash", "-c", f"KEY={secret}; {curl[1]}"]
        assert '"text_completion"' in subprocess.run(shell, capture_output=True, text=True, timeout=60).stdout
        asked = urllib.request.Request(address[1] + "/v1/models")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked, timeout=10)
        asked.add_header("Authorization", f"Bearer {secret}")
        assert urllib.request.urlopen(asked, timeout=10).status == 200


def test_a_served_name_without_a_price_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text("[models.deepsek]\nmiss = 1\noutput = 2\n")
    prices = Prices.read(table)
    with pytest.raises(ConfigError, match=r'no price for deepwell; add \[models."deepwell"\]'):
        serve_command.check_priced(prices, ("deepwell",), table)
    serve_command.check_priced(prices, ("deepsek",), table)
    serve_command.check_priced(Prices(), ("deepwell",), None)
    table.write_text('[models."*"]\nmiss = 0\noutput = 0\n')
    serve_command.check_priced(Prices.read(table), ("deepwell",), table)


def test_a_folder_that_cannot_hold_accounts_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = deepwell("serve", "--port", "0", "--database", str(tmp_path / "file" / "accounts.sqlite"))
    assert refused.returncode == 2
    assert "cannot keep accounts in " in refused.stderr
    assert refused.stderr.endswith("; name another place with --database\n")
