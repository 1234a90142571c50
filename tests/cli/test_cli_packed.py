"""A model converted by the command, and used by the others, says what its source says."""

from __future__ import annotations

import json
import time
from pathlib import Path

import gguf_files
import pytest
from cli_calls import deepwell
from gguf import GGMLQuantizationType

from deepwell.cli import model
from deepwell.cli.main import main
from deepwell.cli.model import kept_packed, load
from deepwell.loading import pack_cache
from deepwell.options import ChatOptions


def answer(path: Path | str, capsys: pytest.CaptureFixture[str], *flags: str) -> object:
    assert main(["generate", str(path), "def add(", "--max-tokens", "12", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_same_answer(kind: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model_folder
    if kind == "gguf":
        _, source = gguf_files.save("v2-lite", tmp_path, quantise=lambda name: GGMLQuantizationType.Q8_0)
    out = tmp_path / f"{source.stem}.deepwell"
    assert main(["convert", str(source), str(out)]) == 0
    assert f"deepwell serve {out}" in capsys.readouterr().out
    assert answer(out, capsys) == answer(source, capsys)
    assert main(["convert", str(out), str(tmp_path / "again.deepwell")]) == 0
    first, again = out.read_bytes(), (tmp_path / "again.deepwell").read_bytes()
    header = int.from_bytes(first[16:24], "little")
    assert again[64:header] == first[64:header]
    assert json.loads(again[header:]) == json.loads(first[header:])


def test_importance_needs_int4(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.deepwell"
    assert main(["convert", str(model_folder), str(out), "--importance", str(out), "--dtype", "int8"]) == 2
    assert "importance weighs what is quantised to int4, and dtype is int8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_packed_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "x.deepwell"
    file.write_bytes(bytes(10000))
    done = deepwell("generate", str(file), "abc")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"deepwell: {file}: begins with {bytes(8)!r}, not b'DEEPWELL': it is no packed file, or not finished"
    ]


def test_a_long_lived_command_writes_the_copy_that_the_next_start_uses(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pack_cache, "SMALLEST_BYTES", 0)  # every model counts as large
    wanted = answer(model_folder, capsys, "--pack-cache", "0")
    assert answer(model_folder, capsys) == wanted
    assert list(tmp_path.iterdir()) == []  # what ends soon writes nothing
    options = ChatOptions(model=model_folder)
    folder = tmp_path / "deepwell" / "packed"
    with kept_packed(load(options), options):
        end = time.monotonic() + 60
        while not list(folder.glob("*.deepwell")) and time.monotonic() < end:
            time.sleep(0.01)
    assert "writing a packed copy for the next start" in capsys.readouterr().err
    (copy,) = folder.iterdir()
    used = copy.stat().st_mtime_ns
    assert answer(model_folder, capsys) == wanted
    assert copy.stat().st_mtime_ns > used
    with kept_packed(load(options), options):
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("gigabytes", "limit"), [(0, None), (0.5, 500_000_000)])
def test_the_size_of_the_cache_is_an_option(gigabytes: float, limit: int | None) -> None:
    cache = model._cache(ChatOptions(pack_cache=gigabytes))
    assert (cache.limit if cache else None) == limit
