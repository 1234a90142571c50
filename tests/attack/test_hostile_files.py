"""Model folders in which a file is something else: a device, a pipe, a folder, a link to nowhere, noise.

Each is a sentence, or left out where a model can do without; nothing hangs, and nothing is read without a bound.
DEEPWELL_SEED chooses the noise.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from seeds import rounds

from deepwell.cli.main import main
from deepwell.errors import DeepwellError
from deepwell.loading.convert import prepare
from deepwell.weights.source import open_source
from deepwell.weights.tokenizer import TOOL_TEMPLATE_FILE

ROUNDS = 40
NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    TOOL_TEMPLATE_FILE,
)


def sparse(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)


STANDS_FOR: dict[str, Callable[[Path], object]] = {
    "a device": lambda place: place.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to itself": lambda place: place.symlink_to(place.name),
    "a terabyte": sparse,
}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A file that never ends, or never begins, fails the test and does not hang it."""

    def late(*_: object) -> None:
        raise TimeoutError("20 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / TOOL_TEMPLATE_FILE).parent.mkdir()
    return tmp_path / "model"


def read_all(path: Path) -> None:
    source = open_source(path)
    source.tokenizer()
    str(source.advice)
    prepare(path, "safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", STANDS_FOR)
def test_a_file_of_a_folder_that_is_none(what: str, name: str, folder: Path) -> None:
    place, copied = folder / name, name not in ("config.json", "model.safetensors", "model.safetensors.index.json")
    place.unlink(missing_ok=True)
    STANDS_FOR[what](place)
    with pytest.raises((DeepwellError, OSError)) as refused:
        read_all(folder)
    assert place.name in str(refused.value)
    assert main(["convert", str(folder), str(folder.parent / "out")]) == (0 if what == "a folder" and copied else 2)


@pytest.mark.parametrize("name", ["model.gguf", "model.deepwell", "model"])
@pytest.mark.parametrize("what", STANDS_FOR)
def test_a_model_file_that_is_none(what: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    STANDS_FOR[what](tmp_path / name)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_noise_in_a_file(name: str, folder: Path) -> None:
    whole = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
    for chance in rounds(ROUNDS):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(min(len(raw), 4096) + 1)
            raw[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        (folder / name).write_bytes(raw[: chance.choice((len(raw), chance.randrange(len(raw) + 1)))])
        with suppress(DeepwellError):
            read_all(folder)


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def deepwell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it who is no root."""
    command = [*WITHOUT_RIGHTS, sys.executable, "-m", "deepwell", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=kept | environment
    )


def is_a_sentence(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 2 and done.stderr.startswith("deepwell: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["", *NAMES[:3], "tokenizer.json"])
def test_what_may_not_be_read_is_a_sentence(place: str, folder: Path) -> None:
    (folder / place).chmod(0)
    done = deepwell("generate", folder, "text", HOME=str(folder.parent))
    (folder / place).chmod(0o700)
    assert is_a_sentence(done), done.stderr
    assert str(folder / place) in done.stderr
    assert "ermission denied" in done.stderr


def test_the_kernels_run_with_no_home_and_with_homes_that_are_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    homes = ({}, {"HOME": ""}, {"HOME": "/dev/null"}, {"HOME": "relative"}, {"HOME": "/proc/nowhere"})
    for environment in (*homes, {"XDG_CACHE_HOME": str(tmp_path / "file"), "HOME": str(tmp_path / "file")}):
        done = deepwell("generate", folder, "text", "--max-tokens", 1, **environment)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_text_that_begins_like_somebody_elses_home_is_a_text(folder: Path) -> None:
    done = deepwell("generate", folder, "~nobody-of-this-name says", "--max-tokens", 1)
    assert done.returncode == 0, done.stderr
    done = deepwell("generate", "~nobody-of-this-name/model.gguf", "text")
    assert is_a_sentence(done), done.stderr


def test_memory_that_is_not_there_is_a_sentence(folder: Path) -> None:
    for limit in (300, 700, 1200):
        code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit << 20}, {limit << 20}))\n"
        code += "import sys; from deepwell.cli.main import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "generate", str(folder), "text", "--max-tokens", "1"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        assert "Traceback" not in done.stderr, (limit, done.stderr[-1500:])
