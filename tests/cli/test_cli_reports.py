"""`deepwell doctor` and `deepwell bench`: reports that a person and a program can read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from cli_calls import deepwell

from deepwell import __version__
from deepwell.bench import limits
from deepwell.cli import doctor, extras
from deepwell.cli.main import main
from deepwell.cli.model import slowness
from deepwell.errors import DeepwellError
from deepwell.loading import machine
from deepwell.model.accounting import account
from deepwell.model.config import from_hugging_face
from deepwell.ops import native
from deepwell.weights import embedded_path


def test_doctor_reports_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["deepwell"] == __version__
    assert report["native"] == {"isa": native.isa(), "available_isas": native.available_isas(), "error": None}
    assert report["embedded_model"] == str(embedded_path())
    assert report["machine"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert report["machine"]["memory"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert report["extras"]["train"] == {"missing": [], "install": f"{sys.executable} -m pip install 'deepwell[train]'"}
    assert report["extras"].keys() == {"train"}, "an extra that no command uses is not said to be installed"


def test_doctor_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("deepwell", "python", "processor", "memory", "native", "torch", "embedded model", "extra train"):
        assert f"\n{name} " in "\n" + shown


def test_doctor_names_missing_packages_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "torch" else installed(name))
    found = doctor.examine({}).extras
    assert found["train"].missing == ["torch"]
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "extra train     missing torch" in shown
    assert f"\n! For extra train: {sys.executable} -m pip install 'deepwell[train]'\n" in shown, "in one line"


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (None, "deepwell"),
        ('{"url": "file:///a%20b/deepwell", "dir_info": {"editable": true}}', "--editable '/a b/deepwell'"),
        ('{"url": "file:///tmp/deepwell.whl", "archive_info": {}}', "/tmp/deepwell.whl"),
    ],
)
def test_the_remedy_installs_from_where_this_deepwell_came(
    origin: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: origin))
    assert extras.reinstall() == f"{sys.executable} -m pip install --force-reinstall --no-deps {said}"


def test_a_missing_package_is_named_with_the_running_interpreters_pip() -> None:
    with pytest.raises(DeepwellError) as refused, extras.needing("train", "training"):
        raise ModuleNotFoundError(name="torch")
    assert str(refused.value) == (
        f"training needs torch, which is not installed: {sys.executable} -m pip install 'deepwell[train]'"
    )


def test_doctor_tells_known_from_unknown_variables() -> None:
    report = doctor.examine({"DEEPWELL_PORT": "1", "DEEPWELL_PROT": "2", "DEEPWELL_TRAIN_SEED": "3", "PORT": "4"})
    assert report.settings == {"DEEPWELL_PORT": "1", "DEEPWELL_TRAIN_SEED": "3"}
    assert report.ignored_settings == ["DEEPWELL_PROT"]


@pytest.mark.parametrize(
    ("change", "found", "said"),
    [
        ({"cpu_limit": 1.5, "usable_cores": 8}, doctor.Native("avx512", ["avx512"]), "may use 1.5 of 8 cores"),
        ({}, doctor.Native("avx2", ["avx2", "scalar"]), "AVX-512 computes prompts faster"),
        ({}, doctor.Native("scalar", ["avx2", "scalar"]), "DEEPWELL_ISA holds scalar although avx2"),
        ({}, doctor.Native(None, [], "no such file"), "apt-get install g++"),
        ({}, doctor.Native(None, ["avx2"], "DEEPWELL_ISA: 'sse9' is not available"), "'sse9' is not available; unset"),
        ({"memory_limit": 2**28}, doctor.Native("avx512", ["avx512"]), "Only 256 MiB of memory"),
    ],
)
def test_advice(change: dict[str, object], found: doctor.Native, said: str) -> None:
    here = msgspec.structs.replace(machine.inspect_machine(), cpu_limit=None, memory_limit=None, address_limit=None)
    changed = msgspec.structs.replace(here, **change)
    assert any(said in line for line in doctor._advice(changed, found, Path()))
    assert not any(said in line for line in doctor._advice(here, doctor.Native("avx512", ["avx512"]), Path()))


def test_bench(model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(limits, "_QUICK_READ_BYTES", 1 << 24)
    sizes = ["--prompt-tokens", "100,300", "--decode-tokens", "5", "--streams", "16,3", "--depths", "200"]
    sizes += ["--measure", "load,prefill,decode,streams,depth", "--repeats", "2", "--dtype", "int8"]
    assert main(["bench", str(model_folder), *sizes, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "tiny-v3"
    assert report["accounting"] == msgspec.to_builtins(
        account(from_hugging_face(json.loads((model_folder / "config.json").read_text())), "int8", depth=64, kv_bytes=2)
    )
    results = {(result["measure"], result["size"]): result for result in report["results"]}
    wanted = [("load", 0), ("prefill", 100), ("prefill", 300), ("decode", 1), ("streams", 16), ("streams", 3)]
    assert list(results) == [*wanted, ("depth", 200)]
    for result in results.values():
        assert len(result["runs"]) == 2
        assert min(result["runs"]) > 0
    decode = results["decode", 1]
    shares = [rate / limit for rate, limit in zip(decode["runs"], decode["limit"], strict=True)]
    assert decode["fraction"] == pytest.approx(sum(shares) / 2 * report["accounting"]["weight_bytes_per_token"])
    assert results["streams", 3]["fraction"] is None
    assert report["seconds_to_first_token"] == pytest.approx(100 / results["prefill", 100]["median"])
    assert report["resident_bytes"] > report["load_seconds"] > 0
    assert main(["bench", str(model_folder), *sizes, "--no-limits"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in ("prefill, 300 tokens", "decode, 1 stream", "KV cache"))
    assert "decode, 16 streams" in shown
    assert "decode at depth 200" in shown
    assert "%" not in shown
    assert "guessed ahead (--speculate auto)" in shown
    assert report["speculate"] == "auto"
    assert (
        main(["bench", str(model_folder), *sizes[:-6], "--measure", "load", "--no-limits", "--speculate", "off"]) == 0
    )
    assert "guessed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (["--prompt-tokens", "512"], "need a context of 513 tokens; this model has 512"),
        (["--measure", "depth", "--depths", "460"], "need a context of 525 tokens; this model has 512"),
        (["--measure", "streams", "--streams", "512"], "512 streams need room for 131072 tokens; the KV cache holds"),
    ],
)
def test_bench_says_what_does_not_fit(
    sizes: list[str], said: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(model_folder), *sizes]) == 2
    assert said in capsys.readouterr().err


def test_without_vector_instructions_it_runs_and_warns(model_folder: Path) -> None:
    """In a process of its own: the instruction set is chosen once."""
    args = ("generate", str(model_folder), "abc", "--max-tokens", "4")
    fast, slow = deepwell(*args), deepwell(*args, env=os.environ | {"DEEPWELL_ISA": "scalar"})
    assert (slow.returncode, slow.stdout) == (0, fast.stdout), "every instruction set gives the same bits"
    assert "warning" not in fast.stderr
    assert slow.stderr.startswith("deepwell: warning: ")
    assert "many times slower" in slow.stderr


def test_the_warning_says_what_to_do() -> None:
    assert slowness("avx2", ["avx512", "avx2", "scalar"]) is None
    assert slowness("scalar", ["avx2", "scalar"]) == (
        "DEEPWELL_ISA=scalar computes many times slower than avx2, which this processor has: unset it"
    )
    assert "no AVX2, AVX-512 or NEON" in (slowness("scalar", ["scalar"]) or "")


@pytest.mark.parametrize("command", ["generate", "bench", "serve"])
def test_an_unknown_instruction_set_is_named(command: str) -> None:
    prompt = ("abc",) if command == "generate" else ()
    done = deepwell(command, *prompt, env=os.environ | {"DEEPWELL_ISA": "sse9"})
    assert done.returncode == 2
    available = ", ".join(native.available_isas())
    assert done.stderr == (
        f"deepwell: DEEPWELL_ISA: instruction set 'sse9' is not available; this machine has: {available}\n"
    )


def test_doctor_survives_an_unknown_instruction_set() -> None:
    done = deepwell("doctor", "--json", env=os.environ | {"DEEPWELL_ISA": "sse9"})
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["native"]["available_isas"] == native.available_isas()
    assert any("DEEPWELL_ISA: instruction set 'sse9' is not available" in line for line in report["advice"])
