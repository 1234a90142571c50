"""Every command that takes a MODEL takes ORG/NAME of a hub: as a shell runs it, against a hub on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf_files
import pytest
from cli_calls import COMMAND, deepwell
from hub_server import FakeHub, Fault

from deepwell.cli import rm
from deepwell.cli.main import main

ASK = ("The quick", "--max-tokens", "8", "--json", "--threads", "1")


class Shell:
    """Commands run with a hub and a home for its files."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        self.env.pop("COLUMNS", None)  # of whoever runs the tests
        self.env["XDG_CACHE_HOME"] = str(home.with_name("cache"))
        self.env.pop("HF_TOKEN", None)

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return deepwell(*args, env=self.env | env)

    def start(self, *args: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*COMMAND, *args], env=self.env, **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def shell(model_folder: Path, tmp_path: Path) -> Iterator[Shell]:
    with FakeHub() as hub:
        hub.put("org/tiny-v3", model_folder)
        yield Shell(hub, tmp_path / "home")


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_answer_is_that_of_the_local_folder(shell: Shell, model_folder: Path) -> None:
    local = answer(shell.run("generate", str(model_folder), *ASK))
    assert shell.hub.asked == []
    first = shell.run("generate", "org/tiny-v3", *ASK)
    assert answer(first) == local
    size = sum((model_folder / name).stat().st_size for name in os.listdir(model_folder)) / 1e6
    place = shell.home / "hub" / "models--org--tiny-v3"
    assert first.stderr == f"deepwell: fetching org/tiny-v3: {size:.1f} MB, no licence stated, into {place}\n"
    shell.hub.down()
    second = shell.run("generate", "org/tiny-v3", *ASK)
    assert answer(second) == local, "from then on it needs no hub"
    assert "using what was fetched before, commit aaaaaaaaaaaa" in second.stderr
    third = shell.run("generate", "org/tiny-v3", *ASK, HF_HUB_OFFLINE="1")
    assert (answer(third), third.stderr) == (local, "")


def test_serve(shell: Shell) -> None:
    process = shell.start("serve", "org/tiny-v3", "--port", "0", "--threads", "1")
    try:
        assert process.stdout is not None
        printed = ""
        while "\npage " not in printed:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            printed += line
        assert "serves tiny-v3: " in printed
        page = re.search(r"^page +(\S+)$", printed, re.M)
        assert page
        with urllib.request.urlopen(page[1] + "v1/models", timeout=10) as listed:
            assert json.load(listed)["data"][0]["id"] == "tiny-v3"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_pull_prints_where_it_lies_and_what_is_newer(shell: Shell) -> None:
    done = shell.run("pull", "org/tiny-v3")
    place = Path(done.stdout.removesuffix("\n"))
    assert done.returncode == 0
    assert place == shell.home / "hub" / "models--org--tiny-v3" / "snapshots" / ("a" * 40)
    assert (place / "config.json").is_file()
    shell.hub.commits["org/tiny-v3"] = "b" * 40
    assert shell.run("pull", "org/tiny-v3").stdout == f"{place.parent / ('b' * 40)}\n"
    shell.hub.down()
    failed = shell.run("pull", "org/tiny-v3@v1")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "cannot be reached" in failed.stderr.splitlines()[-1]


def test_two_processes_may_fetch_one_model_at_once(shell: Shell, model_folder: Path) -> None:
    both = [shell.start("pull", "org/tiny-v3") for _ in range(2)]
    places = set()
    for process in both:
        told, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        places.add(told)
    assert len(places) == 1
    place = Path(places.pop().removesuffix("\n"))
    for file in model_folder.iterdir():
        assert (place / file.name).read_bytes() == file.read_bytes()
    assert not list((shell.home / "hub").rglob("*.incomplete"))


def test_models_tells_of_what_was_fetched_and_asks_nobody(shell: Shell) -> None:
    unknown = shell.run("models", "org/tiny-v3")
    assert unknown.returncode == 2
    assert "those that `deepwell pull` has fetched" in unknown.stderr
    assert shell.hub.asked == []
    assert shell.run("pull", "org/tiny-v3").returncode == 0
    asked = len(shell.hub.asked)
    told = answer(shell.run("models", "org/tiny-v3", "--json"))
    assert (told["name"], told["family"]) == ("org/tiny-v3", "deepseek_v3")
    assert len(shell.hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "said"),
    [("tests", "on this machine already"), ("nothing", "is no file or folder here and no name of a model")],
)
def test_pull_of_what_is_no_hubs(shell: Shell, name: str, said: str) -> None:
    done = shell.run("pull", name)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_packed_file_and_the_commands_that_write_files(shell: Shell, model_folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "tiny.deepwell"
    done = shell.run("convert", "org/tiny-v3", str(packed), "--dtype", "int8")
    assert done.returncode == 0, done.stderr
    shell.hub.put("org/packed", {"tiny.deepwell": packed.read_bytes()})
    local = answer(shell.run("generate", str(packed), *ASK))
    assert answer(shell.run("generate", "org/packed:tiny.deepwell", *ASK)) == local


def test_a_split_gguf_model_by_its_quantisation(shell: Shell, tmp_path: Path) -> None:
    gguf_files.save("v3", tmp_path / "saved", split_max_tensors=20)
    shards = sorted((tmp_path / "saved").glob("*.gguf"))
    assert len(shards) > 1
    files = {f"Q8_0/{shard.name.replace('v3', 'tiny-Q8_0')}": shard.read_bytes() for shard in shards}
    shell.hub.put("org/gguf", files | {"tiny-Q4_0.gguf": b"another"})
    local = answer(shell.run("generate", str(shards[0]), *ASK))
    fetched = answer(shell.run("generate", "org/gguf:q8_0", *ASK))
    assert fetched == local | {"model": "tiny-Q8_0"}
    assert sorted(shell.hub.fetched()) == sorted(files)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on_with_the_same_command(shell: Shell, model_folder: Path, how: int) -> None:
    halves = (model_folder / "model.safetensors").stat().st_size // 2
    shell.hub.faults["store:"] = [Fault(stall=halves)]
    process = shell.start("pull", "org/tiny-v3")
    parts: list[Path] = []

    def half_there() -> bool:
        parts[:] = shell.home.rglob("*.incomplete")
        return any(part.stat().st_size == halves for part in parts)

    until(half_there)
    process.send_signal(how)
    process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    shell.hub.asked.clear()
    done = shell.run("pull", "org/tiny-v3")
    assert done.returncode == 0, done.stderr
    assert [one.range for one in shell.hub.asked if one.where == "store"] == [f"bytes={halves}-"]
    fetched = Path(done.stdout.strip()) / "model.safetensors"
    assert fetched.read_bytes() == (model_folder / "model.safetensors").read_bytes()


def test_two_at_once_fetch_it_once(shell: Shell) -> None:
    both = [shell.start("pull", "org/tiny-v3") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(shell.hub.paths("store")) == 1
    assert len(shell.hub.fetched()) == len(set(shell.hub.fetched()))


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_token_is_found_and_never_shown(shell: Shell, place: str) -> None:
    shell.hub.needs_token = "hf_secret"
    refused = shell.run("pull", "org/tiny-v3")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stderr
    if place == "file":
        shell.home.mkdir(exist_ok=True)
        (shell.home / "token").write_text("hf_secret\n")
    shell.hub.faults["/config.json"] = [Fault(500)]
    done = shell.run("pull", "org/tiny-v3", **({"HF_TOKEN": "hf_secret"} if place == "environment" else {}))
    assert done.returncode == 0, done.stderr
    assert "trying again in 1 s" in done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    assert {one.token for one in shell.hub.asked if one.where == "store"} == {None}


def test_a_name_that_is_nowhere_is_one_sentence(shell: Shell) -> None:
    for args in (("generate", "x"), ("bench",), ("chat", "x"), ("serve",)):
        done = shell.run(args[0], "org/none", *args[1:])
        assert done.returncode == 2
        assert done.stderr == (
            f"deepwell: org/none is neither a file nor a folder here, and {shell.hub.endpoint} has no model org/none "
            "(404); check the name: capitals count\n"
        )


def test_a_model_of_this_machine_loads_no_hub_library(model_folder: Path) -> None:
    code = (
        "import sys; from deepwell.cli.main import main; "
        f"main(['generate', {str(model_folder)!r}, 'x', '--max-tokens', '1']); "
        "print(sorted({'huggingface_hub', 'httpx2', 'tqdm', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("[]\n")


def test_a_moved_home_keeps_working(shell: Shell) -> None:
    """Links inside are relative."""
    shell.run("pull", "org/tiny-v3")
    moved = shell.home.with_name("moved")
    shutil.move(shell.home, moved)
    done = shell.run("generate", "org/tiny-v3", *ASK, HF_HOME=str(moved), HF_HUB_OFFLINE="1")
    assert answer(done)["model"] == "tiny-v3"


def test_a_short_name_is_fetched_told_of_listed_and_removed(shell: Shell, tmp_path: Path) -> None:
    _, file = gguf_files.save("v3", tmp_path / "saved")
    repo, name = "bartowski/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct-Q4_K_M.gguf"
    shell.hub.put(repo, {name: file.read_bytes(), name.replace("Q4_K_M", "Q8_0"): b"another"})
    done = shell.run("generate", "smollm2-135m-instruct", *ASK)
    assert answer(done)["model"] == name.removesuffix(".gguf")
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    where = shell.home / "hub" / f"models--{repo.replace('/', '--')}"
    assert f"deepwell: fetching {repo}:Q4_K_M: {size}, Apache-2.0 licence, into {where}\n" in done.stderr
    assert shell.hub.fetched() == [name]
    [here, embedded] = json.loads(shell.run("list", "--json").stdout)
    assert (here["name"], here["where"], here["kind"], here["partial"]) == (f"{repo}:Q4_K_M", "hub", "Q4_K_M", False)
    assert (embedded["name"], embedded["where"]) == ("", "embedded")
    assert f"{repo}:Q4_K_M" in shell.run("list").stdout
    assert f"{repo}:Q4_K_M" in shell.run("list", "--names").stdout.split()
    listed = [line.split() for line in shell.run("models").stdout.splitlines() if "SmolLM2-135M" in line]
    assert listed == [["SmolLM2-135M-Instruct:Q4_K_M", "105.0", "MB", "Apache-2.0", "yes", "yes"]]
    assert answer(shell.run("models", "SmolLM2-135M-Instruct", "--json"))["family"] == "deepseek_v3"
    assert answer(shell.run("generate", f"{repo}:Q4_K_M", *ASK, HF_HUB_OFFLINE="1")) == json.loads(done.stdout)
    unasked = shell.run("rm", "SmolLM2-135M-Instruct")
    assert (unasked.returncode, where.exists()) == (2, True)
    assert "say --yes" in unasked.stderr
    removed = shell.run("rm", "SmolLM2-135M-Instruct", "--yes")
    assert (removed.returncode, removed.stdout.split(";")[0]) == (0, f"freed {size}")
    assert not where.exists()


def test_a_path_of_that_name_comes_first(shell: Shell, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "DeepSeek-R1")
    done = subprocess.run([*COMMAND, "generate", "DeepSeek-R1", *ASK], cwd=tmp_path, env=shell.env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert shell.hub.asked == []


@pytest.mark.parametrize("command", ["serve", "chat", "bench", "pull", "rm"])
def test_a_name_that_nothing_has_says_what_is_like_it(shell: Shell, command: str) -> None:
    done = shell.run(command, "smollm2-135m")
    assert done.returncode == 2
    assert "did you mean SmolLM2-135M-Instruct:Q4_K_M? " in done.stderr
    assert shell.hub.asked == []


@pytest.mark.parametrize("name", ["org", "org/tiny", "org/tiny-v3:x.gguf", "../tiny-v3", "tests", "DeepSeek-R1"])
def test_rm_takes_whole_names_of_what_is_here(shell: Shell, name: str) -> None:
    assert shell.run("pull", "org/tiny-v3").returncode == 0
    done = shell.run("rm", name, "--yes")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    if name == "org/tiny":
        assert "did you mean org/tiny-v3?" in done.stderr
    assert "org/tiny-v3" in shell.run("list").stdout


@pytest.mark.parametrize(("typed", "left"), [("n", True), ("", True), ("y", False)])
def test_rm_asks_on_a_terminal(
    typed: str, left: bool, shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run("pull", "org/tiny-v3").returncode == 0
    monkeypatch.setattr(rm, "hub_cache", lambda: shell.home / "hub")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)
    assert main(["rm", "org/tiny-v3"]) == (1 if left else 0)
    assert "org/tiny-v3 (safetensors, " in capsys.readouterr().out
    assert (shell.home / "hub" / "models--org--tiny-v3").exists() == left


def test_rm_of_packed_copies(shell: Shell, model_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "deepwell" / "packed"
    cache.mkdir(parents=True)
    packed = cache / f"{'a' * 32}.deepwell"
    assert shell.run("convert", str(model_folder), str(packed), "--dtype", "int8").returncode == 0
    (cache / f"{'b' * 32}.deepwell").write_bytes(b"broken")
    mine = tmp_path / "mine.deepwell"
    mine.write_bytes(b"mine")
    (cache / "link.deepwell").symlink_to(mine)
    kinds = {one["name"]: one["kind"] for one in json.loads(shell.run("list", "--json").stdout)}
    assert kinds["a" * 32].startswith("int8 of a deepseek_v3 of ")
    assert kinds["b" * 32] == "unreadable"
    assert shell.run("rm", "--packed", "aaa", "--yes").returncode == 2
    assert packed.exists()
    assert shell.run("rm", "--packed", "a" * 32, "--yes").returncode == 0
    assert not packed.exists()
    done = shell.run("rm", "--packed", "--yes")
    assert "freed 0.0 MB" in done.stdout
    assert sorted(file.name for file in cache.iterdir()) == ["link.deepwell"]
    assert mine.read_bytes() == b"mine"
    assert "nothing was here" in shell.run("rm", "--packed", "--yes").stdout
