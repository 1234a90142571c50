"""`deepwell convert`: the new file is whole or not there, and nothing is lost by accident."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepwell.cli import convert
from deepwell.cli.main import EXIT_INTERRUPTED, main
from deepwell.errors import CheckpointError

Progress = Callable[[int, int], None]


def write_well(source: Path, out: Path, dtype: str, progress: Progress, importance: Path | None) -> None:
    progress(0, 100)
    out.write_text(f"{source.name} {dtype}")
    progress(100, 100)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    def use(write: Callable[..., None]) -> None:
        monkeypatch.setattr(convert, "write_packed", write)

    use(write_well)
    return use


def test_a_file_is_written(
    model_folder: Path, tmp_path: Path, writer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.deepwell"
    assert main(["convert", str(model_folder), str(out), "--dtype", "int8"]) == 0
    assert out.read_text() == "tiny-v3 int8"
    assert list(tmp_path.iterdir()) == [out]
    assert f"deepwell serve {out}" in capsys.readouterr().out


def test_an_existing_file_needs_force(
    model_folder: Path, tmp_path: Path, writer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.deepwell"
    out.write_text("precious")
    assert main(["convert", str(model_folder), str(out)]) == 2
    assert "exists; --force writes it anew" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main(["convert", str(model_folder), str(out), "--force"]) == 0
    assert out.read_text() == "tiny-v3 auto"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), EXIT_INTERRUPTED, ""),
        (CheckpointError("shard 2 is broken"), 2, "shard 2 is broken"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
    ],
)
def test_nothing_is_left_of_a_failure_and_the_old_file_stays(
    error: BaseException,
    code: int,
    said: str,
    model_folder: Path,
    tmp_path: Path,
    writer: Callable[[Callable[..., None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(source: Path, out: Path, dtype: str, progress: Progress, importance: Path | None) -> None:
        out.write_text("half")
        raise error

    writer(fail)
    out = tmp_path / "tiny.deepwell"
    out.write_text("precious")
    assert main(["convert", str(model_folder), str(out), "--force"]) == code
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    assert said in capsys.readouterr().err


def test_wrong_places_are_named(
    model_folder: Path, tmp_path: Path, writer: object, capsys: pytest.CaptureFixture[str]
) -> None:
    config = model_folder / "config.json"
    for source, out, said in (
        (tmp_path / "nowhere", tmp_path / "x", "nowhere does not exist"),
        (model_folder, tmp_path / "no" / "x", "the folder"),
        (model_folder, tmp_path, "is a folder; name the file"),
        (config, config, "is the source itself"),
    ):
        assert main(["convert", str(source), str(out)]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_writing(
    model_folder: Path,
    tmp_path: Path,
    writer: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main(["convert", str(model_folder), str(tmp_path / "x")]) == 2
    assert "of disk are free" in capsys.readouterr().err
