"""`deepwell models`: the list, one in detail, folders and files of one's own, and JSON of all of it."""

import json
import shutil
from pathlib import Path

import gguf_files
import pytest
from cli_calls import deepwell
from gguf import GGMLQuantizationType

from deepwell.cli import models
from deepwell.cli.main import main
from deepwell.model import account
from deepwell.model.published import published
from deepwell.weights import embedded_path
from deepwell.weights.source import open_source

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GB, in a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(models, "free_memory", lambda machine: 16 * 10**9)


def test_list(capsys: Capture) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()) for line in shown.splitlines() if line}
    assert all(model.name in lines for model in published().values())
    assert lines["DeepSeek-V3"].startswith(
        "DeepSeek-V3 671.0B 36.6B 163,840 1,342.3 GB 713.3 GB 378.7 GB 68.6 KiB 1.4% DeepSeek -"
    )
    assert (
        "DeepSeek-V2-Lite 15.7B 2.5B 163,840 31.4 GB 16.7 GB 9.1 GB 30.4 KiB 11.2% DeepSeek Q6_K, "
        in lines["DeepSeek-V2-Lite"]
    )
    assert "14.9 GiB of memory are free here." in shown
    assert "DeepSeek-Prover-V2-7B: not compared with the released config.json: rope_scaling" in shown
    assert lines["SmolLM2-135M-Instruct:Q4_K_M"] == "SmolLM2-135M-Instruct:Q4_K_M 105.0 MB Apache-2.0 yes"


@pytest.mark.parametrize("columns", [40, 60, 70, 80, 100, 120])
def test_narrow_terminals_get_fewer_columns(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(published()) + 1]
    if columns >= 60:
        assert not any("…" in line for line in lines), "nothing is cut off"
        assert all(word in lines[0] for word in ("model", "total", "fits here as"))
    assert ("int4" in lines[0]) == (columns >= 70)
    assert all(len(line) <= columns for line in lines)


def test_list_as_json(capsys: Capture) -> None:
    assert main(["models", "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert told.keys() == {model.name for model in published().values()}
    v3 = told["DeepSeek-V3"]
    assert (v3["family"], v3["published_as"], v3["context"]) == ("deepseek_v3", "float8", 163840)
    assert v3["free_bytes"] == 16 * 10**9
    assert not any(one["fits"] for one in v3["precisions"])
    full = told["DeepSeek-Coder-1.3B"]["precisions"][0]
    assert (full["precision"], full["cache_dtype"], full["fits"]) == ("float32", "float32", True)
    assert (full["weight_bytes"], full["kv_bytes_per_token"]) == (1346471936 * 4, 24 * 2 * 2048 * 4)
    assert 0 < full["context"] == full["cache_tokens"] < 16384


def test_one_in_detail(capsys: Capture) -> None:
    assert main(["models", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "parameters  7,615,616,512 (7.6B), 7.1B active",
        "context     131,072 tokens",
        "files       15.2 GB as bfloat16",
        "57,344 bytes a token in bfloat16, 14.3% of plain MHA's 401,408",
        "int8, Q8_0",
        "does not fit",
    ):
        assert text in shown
    assert main(["models", "DeepSeek-R1"]) == 0
    shown = capsys.readouterr().out
    assert "prediction modules 11.6B more" in shown
    assert "Block FP8 files are kept as bfloat16" in shown


def test_a_folder_needs_its_config_alone(tmp_path: Path, capsys: Capture) -> None:
    shutil.copy(embedded_path() / "config.json", tmp_path)
    assert main(["models", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    source = open_source(embedded_path())
    assert told["name"] == tmp_path.name
    assert told["total_params"] == account(source.config).total_params
    assert all(one["context"] == 1024 for one in told["precisions"])


def test_names_of_files_do_not_steer_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    folder.mkdir()
    assert main(["models", str(folder)]) == 2
    assert main(["generate", str(folder), "x"]) == 2
    shutil.copy(embedded_path() / "config.json", folder)
    assert main(["models", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert shown.out.startswith("model       a�[2Jb")


def test_a_file_says_how_it_is_kept(tmp_path: Path, capsys: Capture) -> None:
    packed = str(tmp_path / "m.deepwell")
    assert main(["convert", str(embedded_path()), packed, "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["models", packed, "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["precisions"]
    assert main(["models", str(embedded_path()), "--json"]) == 0
    [int8] = [one for one in json.loads(capsys.readouterr().out)["precisions"] if one["precision"] == "int8"]
    assert (here[0]["precision"], here[0]["weight_bytes"]) == ("int8", int8["weight_bytes"])
    names = [one["precision"] for one in here]
    assert len(set(names)) == len(names), "each precision stands there once"


def test_a_gguf_file_says_how_it_is_kept(tmp_path: Path, capsys: Capture) -> None:
    _, file = gguf_files.save("qwen2-wide", tmp_path, quantise=lambda name: GGMLQuantizationType.Q8_0)
    assert main(["models", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["family"]) == (file.name, "qwen2")
    kept, others = told["precisions"][0], told["precisions"][1:]
    assert kept["precision"] == "q8_0"
    assert kept["weight_bytes"] == next(one for one in others if one["precision"] == "int8")["weight_bytes"]


def test_a_training_preset(capsys: Capture) -> None:
    assert main(["models", "nano-dense"]) == 0
    assert "deepseek_v3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no config.json; a model folder holds that beside"),
        ("{", "config.json: is no valid JSON"),
        ("[]", "config.json: holds no JSON object"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2' is not supported; supported are llama, "),
        (
            '{"model_type": "deepseek_v4"}',
            "model_type 'deepseek_v4' is DeepSeek-V4 or later: Deepwell knows its prompt format, but cannot run its",
        ),
    ],
)
def test_bad_folders(content: str | None, reason: str, tmp_path: Path, capsys: Capture) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["models", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("model-q8.gguf", "give the file itself: {}/model-q8.gguf"),
        ("one/config.json", "folders in it have: {}/one"),
        ("x.safetensors.incomplete", "a download into it is not finished"),
    ],
)
def test_folders_that_are_no_model_but_near_one(inside: str, reason: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).touch()
    assert main(["models", str(tmp_path)]) == 2
    assert reason.format(tmp_path) in capsys.readouterr().err


def test_v4_is_named(capsys: Capture) -> None:
    assert main(["models", "deepseek-ai/DeepSeek-V4-Flash"]) == 2
    assert "is DeepSeek-V4 or later" in capsys.readouterr().err


def test_unknown_name_and_help() -> None:
    called = deepwell("models", "deepseek-v2-light")
    assert called.returncode == 2
    assert "did you mean DeepSeek-V2-Lite" in called.stderr
    assert "what fits here" in deepwell("models", "--help").stdout
