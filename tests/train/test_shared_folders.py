"""Runs that share a cache or a folder, in processes of their own: none harms another, and no damage goes unnoticed."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from deepwell.errors import CheckpointError, DeepwellError
from deepwell.files import locked
from deepwell.train import run
from deepwell.train.cache import kept
from deepwell.train.checkpoint import NAME, load_run, load_state
from deepwell.train.config import TrainConfig
from deepwell.train.corpus import Corpus
from deepwell.train.dataset import RowStream
from deepwell.train.finish import EVALUATION, read_evaluation
from deepwell.train.loop import LOG, Metrics, make_optimizer
from deepwell.train.picture import read_log
from deepwell.train.stages import NAME as STAGES
from deepwell.train.stages import read_stages, sha256_of
from deepwell.train.trainee import Trainee

RUN = """
import os, signal, sys
from pathlib import Path
import msgspec, pytest
sys.path.insert(0, sys.argv[1])
from toy import toy_run
from deepwell.train.corpus import build_corpus
from deepwell.train.run import train
folder, out, stop, write = Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6]
config = toy_run(folder, build_corpus(Path(sys.argv[2])), pytest.MonkeyPatch())
if write:
    import deepwell.files as files
    real = os.replace
    def die_before(part, path):
        if Path(path).match(write):
            os.kill(os.getpid(), signal.SIGKILL)
        real(part, path)
    files.os.replace = files.os.rename = die_before
print("ready", flush=True)
sys.stdin.readline()
def on_step(step, metrics):
    if step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
train(msgspec.structs.replace(config, out=folder / out, save_minutes=0.0 if stop else 5.0), on_step)
"""


@pytest.fixture
def begin(stdlib: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A run in a process of its own, ready to begin; killed after step `stop`, or before `write` gets its name."""

    def begun(out: str, stop: int = 0, write: str = "") -> subprocess.Popen[str]:
        here = Path(__file__).parent
        command = [sys.executable, "-c", RUN, *map(str, (here, stdlib, tmp_path, out, stop, write))]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return begun


def go(*processes: subprocess.Popen[str]) -> list[int]:
    """Let them begin at the same moment; their exit codes."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(code > 0 for code in codes), errors
    return codes


@pytest.mark.slow
def test_two_runs_at_once_on_one_cache_both_end_right(
    whole_run: TrainConfig, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    """As one alone does, and each entry of the cache was built by one of them."""
    assert go(begin("one"), begin("two")) == [0, 0]
    entries = [path.name for path in (tmp_path / "cache").iterdir()]
    assert not [name for name in entries if name.endswith(".part")]
    weights = [load_file(out / NAME) for out in (tmp_path / "one", tmp_path / "two", whole_run.out)]
    for key, tensor in weights[2].items():
        assert torch.equal(tensor, weights[0][key])
        assert torch.equal(tensor, weights[1][key])
    for entry in whole_run.cache.iterdir():
        assert (tmp_path / "cache" / entry.name).read_bytes() == entry.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("write", ["*.bin", "checkpoint.*", "run/model"])
def test_a_run_killed_in_the_middle_of_a_write_goes_on(
    toy_config: TrainConfig, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]], write: str
) -> None:
    assert go(begin("run", write=write)) == [-signal.SIGKILL]
    assert list(tmp_path.rglob("*.part"))
    assert run.train(toy_config).finished
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_run_killed_between_steps_goes_on(
    toy_config: TrainConfig, whole_run: TrainConfig, tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    assert go(begin("run", stop=7)) == [-signal.SIGKILL]
    assert run.train(toy_config).finished
    ours, theirs = load_file(toy_config.out / NAME), load_file(whole_run.out / NAME)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [line.step for line in read_log(toy_config.out / LOG)] == [3, 6, 9, 12]


def test_two_runs_in_one_folder_are_refused(toy_config: TrainConfig) -> None:
    with locked(toy_config.out / run.LOCK), pytest.raises(DeepwellError, match="another run is at work") as error:
        run.train(toy_config)
    assert str(toy_config.out) in str(error.value)
    assert "--out" in str(error.value)
    assert not (toy_config.out / STAGES).exists()


@pytest.mark.slow
def test_one_of_two_runs_in_one_folder_ends_right(tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [begin("run"), begin("run")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1]
    assert "another run is at work in this folder" in max(errors, key=len)
    assert [line.step for line in read_log(tmp_path / "run" / LOG)] == [3, 6, 9, 12]


def test_a_flipped_byte_in_the_cache_is_found_and_the_file_made_anew(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rows() -> RowStream:
        return RowStream(corpus, tokenizer, context=64, fim_rate=0.5, test_share=0.5, seed=1, cache=tmp_path / "cache")

    right = rows().rows(0, 100)
    files = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert {path.suffix for path in files} == {".bin", ".json", ".sha256"}
    for file in files:
        whole = file.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            caplog.clear()
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert (rows().rows(0, 100) == right).all()
            assert "made anew" in caplog.text
            assert file.read_bytes() == whole


def test_a_flipped_byte_in_a_cached_tokenizer_is_found(
    toy_config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = run.prepare_corpus(toy_config)
    right = run.prepare_tokenizer(toy_config, run.preset("toy"), corpus).to_str()
    (file,) = toy_config.cache.glob("tokenizer-*.json")
    file.write_bytes(file.read_bytes().replace(b'"single_word":false', b'"single_word":true', 1))
    with caplog.at_level(logging.WARNING):
        assert run.prepare_tokenizer(toy_config, run.preset("toy"), corpus).to_str() == right
    assert str(file) in caplog.text


def test_what_the_cache_holds_is_not_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = []

    def make() -> dict[str, bytes]:
        made.append(1)
        return {"a.bin": b"a", "a.json": b"{}"}

    for _ in range(3):
        paths = kept(tmp_path, "a", ("a.bin", "a.json"), make)
    assert [path.read_bytes() for path in paths] == [b"a", b"{}"]
    (tmp_path / "a.sha256").unlink()
    kept(tmp_path, "a", ("a.bin", "a.json"), make)
    assert len(made) == 2
    assert caplog.text == "", "what an interrupted run has left is nothing to warn of"


def test_a_flipped_byte_in_a_checkpoint_is_an_error_or_changes_nothing(toy_config: TrainConfig) -> None:
    run.train(msgspec.structs.replace(toy_config, minutes=1e-6))
    path, trainee = toy_config.out / NAME, Trainee(run.preset("toy"), toy_config.seed)
    whole, state, right = path.read_bytes(), load_state(toy_config.out), load_file(path)
    first = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(0, first, 41), *range(first, len(whole), 9973), len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = load_state(toy_config.out)
            load_run(toy_config.out, trainee.weights, make_optimizer(trainee, toy_config))
        except CheckpointError:
            continue
        assert at < first, "the digest covers every tensor"
        assert found is not None
        assert state is not None
        assert msgspec.structs.replace(found, sha256=state.sha256) == state
        assert all(torch.equal(weight, right[f"weight.{key}"]) for key, weight in trainee.weights.items())


def test_damaged_measurements_of_another_run_are_refused(whole_run: TrainConfig, tmp_path: Path) -> None:
    other = Path(shutil.copytree(whole_run.out, tmp_path / "other"))
    assert read_evaluation(other) is not None
    path = other / EVALUATION
    path.write_bytes(path.read_bytes().replace(b'"held_out_bytes": 1', b'"held_out_bytes": 2'))
    assert sha256_of(path) not in [stage.outputs.get(EVALUATION) for stage in read_stages(other)]
    with pytest.raises(CheckpointError, match=r"evaluation\.json: is damaged"):
        read_evaluation(other)


@pytest.mark.parametrize("name", [LOG, STAGES])
def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(toy_config: TrainConfig, name: str) -> None:
    config = msgspec.structs.replace(toy_config, minutes=1e-6, log_steps=1)
    path = config.out / name
    run.train(config)
    for cut in (1, 2, 30):
        whole = path.read_bytes()
        last = whole[:-1].rpartition(b"\n")[2]
        path.write_bytes(whole + last[: len(last) // cut - 1])
        run.train(config)
    assert [line.step for line in read_log(config.out / LOG)] == [1, 2, 3, 4]
    assert [stage.metrics["step"] for stage in read_stages(config.out) if stage.stage == "pretrain"] == [1, 2, 3, 4]


def test_damage_inside_the_log_is_named_and_not_a_traceback(toy_config: TrainConfig) -> None:
    config = msgspec.structs.replace(toy_config, minutes=1e-6, log_steps=1)
    run.train(config)
    run.train(config)
    path = config.out / LOG
    path.write_bytes(path.read_bytes().replace(b'{"step":1,', b'{"step":"one",', 1))
    with pytest.raises(DeepwellError, match=r"metrics\.jsonl: line 1 is damaged"):
        run.train(config)
    assert [msgspec.json.decode(line, type=Metrics).step for line in path.read_bytes().splitlines()[1:]] == [2]
