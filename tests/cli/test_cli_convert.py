"""`deepwell convert`: the new file is whole or not there, and nothing is lost by accident."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deepwell.cli.main import EXIT_INTERRUPTED, main
from deepwell.errors import CheckpointError
from deepwell.loading import convert
from deepwell.weights import embedded_path
from deepwell.weights.source import open_source

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
        (model_folder, Path("."), "has no name of its own"),
        (model_folder, tmp_path.parent, "exists; --force writes it anew"),
        (model_folder, model_folder, "is the source itself"),
        (model_folder, config, "is a file; name the folder to write"),
    ):
        assert main(["convert", str(source), str(out)]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before_writing(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for name in ("x.deepwell", "x.gguf", "x"):
        assert main(["convert", str(model_folder), str(tmp_path / name)]) == 2
        assert "0.0 GB of disk are free: 0.0 GB are missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_there_and_back(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, back = tmp_path / "x.gguf", tmp_path / "back"
    assert main(["convert", str(model_folder), str(file), "--dtype", "q8_0"]) == 0
    assert main(["convert", str(file), str(back), "--shard-gb", "0.0002"]) == 0
    assert f"deepwell serve {back}" in capsys.readouterr().out
    assert open_source(file).stored == "q8_0"
    assert open_source(back).stored == "bfloat16"
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 1
    assert sorted(tmp_path.iterdir()) == [back, file]


def test_what_is_not_as_asked_is_told(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model_folder), str(tmp_path / "x.gguf"), "--dtype", "q4_k"]) == 0
    assert re.search(r"q4_k was asked for; of \d+ matrices .*\d+ became q5_0 \(rows of no", capsys.readouterr().out)
    assert main(["convert", str(model_folder), str(tmp_path / "x.foo"), "--dtype", "q4_k"]) == 2
    assert "x.foo is to be a folder of safetensors; NAME.gguf and NAME.deepwell" in capsys.readouterr().err


def test_the_kind_of_file_may_be_said(model_folder: Path, tmp_path: Path) -> None:
    for kind, is_folder in (("gguf", False), ("packed", False), ("safetensors", True)):
        out = tmp_path / f"V2.5-{kind}"
        assert main(["convert", str(model_folder), str(out), "--to", kind]) == 0
        assert out.is_dir() == is_folder
        assert open_source(out).config.family == "deepseek_v3"


def test_only_a_model_folder_is_replaced(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["convert", str(model_folder), str(out)]) == 0, "an empty folder is as good as none"
    assert main(["convert", str(model_folder), str(out)]) == 2
    assert "exists; --force writes it anew" in capsys.readouterr().err
    before = (out / "config.json").stat().st_ino
    assert main(["convert", str(model_folder), str(out), "--force"]) == 0
    assert (out / "config.json").stat().st_ino != before
    for precious in (out / "thesis.tex", out / "more"):
        precious.mkdir() if precious.name == "more" else precious.write_text("years of work")
        assert main(["convert", str(model_folder), str(out), "--force"]) == 2
        assert f"holds {precious.name}, which a model folder does not" in capsys.readouterr().err
        assert precious.exists()
        precious.rmdir() if precious.is_dir() else precious.unlink()
    (tmp_path / "link").symlink_to(out)
    assert main(["convert", str(model_folder), str(tmp_path / "link"), "--force"]) == 2
    assert "is a link to a folder; name the folder itself" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("target", ["packed", "gguf", "safetensors"])
def test_devices_and_pipes_are_never_replaced(
    target: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for out in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        before = out.stat()
        assert main(["convert", str(model_folder), str(out), "--force", "--to", target]) == 2
        assert "is a device, a pipe or a socket, which is never replaced" in capsys.readouterr().err
        assert (out.stat().st_mode, out.stat().st_ino) == (before.st_mode, before.st_ino)


def test_a_source_that_lacks_a_tensor(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    shutil.copytree(model_folder, source)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, source / "model.safetensors")
    assert main(["convert", str(source), str(tmp_path / "x.gguf")]) == 2
    assert "tensor model.layers.1.mlp.experts.3.up_proj.weight is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


SLOW_WRITE = """
import sys, time
from deepwell.weights import tensor_stream
from deepwell.weights.gguf import writer as gguf_writer
encode = tensor_stream.encode
def slow(kind, rows, *rest):
    print("writing", flush=True)
    time.sleep(0.2)
    return encode(kind, rows, *rest)
tensor_stream.encode = slow
from deepwell.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["x.gguf", "folder"])
def test_interrupting_leaves_nothing(name: str, model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_WRITE, "convert", str(model_folder), str(tmp_path / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        (part,) = tmp_path.iterdir()
        assert part.name.endswith(".part")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.gguf", "folder", "x.deepwell"])
def test_a_disk_that_fills_up_is_one_sentence(
    name: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(full))
    assert main(["convert", str(model_folder), str(tmp_path / name)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {tmp_path / name}: No space left on device: 0.00" in told
    assert told.endswith(f"GB were still to be written; free some of {tmp_path}, or name a place on another disk")
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit_is_met_while_writing(model_folder: Path, tmp_path: Path) -> None:
    """A real error of the system, halfway through a tensor."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000));" + SLOW_WRITE
    limited = limited.replace("time.sleep(0.2)", "pass")
    command = [sys.executable, "-c", limited, "convert", str(model_folder), str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert f"deepwell: cannot write {tmp_path / 'x.gguf'}: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_licences_and_the_template_for_tools_go_with_a_folder_and_modules_are_missed(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(embedded_path(), source)
    beside = (
        "LICENSE",
        "LICENSE-CODE",
        "MODEL_LICENSE.txt",
        "license.md",
        "NOTICE",
        "additional_chat_templates/tool_use.jinja",
    )
    (source / "additional_chat_templates").mkdir()
    for name in beside:
        (source / name).write_text(name)
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["convert", str(source), str(out), "--force"]) == 0
        assert [(out / name).read_text() for name in beside] == list(beside)
    assert "left out" not in capsys.readouterr().err
    (out / "additional_chat_templates" / "thesis").mkdir()
    assert main(["convert", str(source), str(out), "--force"]) == 2
    assert "holds additional_chat_templates/thesis, which" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "x.gguf")]) == 0
    assert "the multi-token prediction module is left out" in capsys.readouterr().err
