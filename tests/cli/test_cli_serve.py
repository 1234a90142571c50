"""`deepwell serve`: what it prints is true, it is ready within two seconds, small, and it ends cleanly."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_calls import COMMAND, deepwell

from deepwell import __version__
from deepwell.ops import native


@contextmanager
def serving(*args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and what it printed until it was ready."""
    command = [*COMMAND, "serve", *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        printed = ""
        while "\ntry " not in printed:
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
    with serving(str(model_folder), "--host", "0.0.0.0", "--port", "0", "--name", "mine") as (_, printed):
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
