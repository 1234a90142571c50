"""Tab completion: the scripts are run by their shells, where these are there, and read for every command and flag."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shells import offered_by_fish, offered_by_zsh

from deepwell.cli import completion
from deepwell.cli.commands import GROUPS
from deepwell.cli.main import main
from deepwell.settings import options_of


def complete(*words: str, home: str = "/nonexistent") -> list[str]:
    """What bash offers after `words`; the last one is being typed."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"{completion.bash()}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n_deepwell\n"
    done = subprocess.run(
        ["bash", "-uc", script + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HOME": home},
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_parses() -> None:
    subprocess.run(["bash", "-n"], input=completion.bash(), text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("deepwell", "se"), ["serve"]),
        (("deepwell", "serve", "--po"), ["--port"]),
        (("deepwell", "serve", "--dtype", "int"), ["int4", "int8"]),
        (("deepwell", "serve", "--port", "80", "--dtype", "f"), ["float32"]),
        (("deepwell", "completion", "z"), ["zsh"]),
        (("deepwell", "doctor", "--"), ["--limits", "--json", "--help"]),
        (("deepwell", "bench", "--co"), ["--context", "--compare", "--config"]),
        (("deepwell", "models", "DeepSeek-V2-L"), ["DeepSeek-V2-Lite", "DeepSeek-V2-Lite:Q4_K_M"]),
        (("deepwell", "serve", "Smol"), ["SmolLM2-135M-Instruct:Q4_K_M", "SmolLM2-360M-Instruct:Q8_0"]),
        (("deepwell", "convert", "--dtype", "int8", "Qwen3"), ["Qwen3-0.6B:Q8_0"]),
        (("deepwell", "serve", "--port", "Qwen3"), []),
        (("deepwell", "models", "--"), ["--json", "--help"]),
        (("deepwell", "nonsense", "x"), []),
    ],
)
def test_bash_offers(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize("offered_by", [offered_by_zsh, offered_by_fish])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("deepwell se", {"serve"}),
        ("deepwell serve --po", {"--port"}),
        ("deepwell serve --dtype int", {"int4", "int8"}),
        ("deepwell serve --port 80 --dtype f", {"float32"}),
        ("deepwell completion z", {"zsh"}),
        ("deepwell doctor --", {"--limits", "--json", "--help"}),
        ("deepwell models DeepSeek-V2-L", {"DeepSeek-V2-Lite", "DeepSeek-V2-Lite:Q4_K_M"}),
        ("deepwell serve Smol", {"SmolLM2-135M-Instruct:Q4_K_M", "SmolLM2-360M-Instruct:Q8_0"}),
        ("deepwell serve --port Qwen3", set()),
        ("deepwell nonsense x", set()),
        ("deepwell ", {*GROUPS}),
    ],
)
def test_zsh_and_fish_offer(
    offered_by: Callable[[str, Path], list[str]], line: str, offered: set[str], tmp_path: Path
) -> None:
    shell = "zsh" if offered_by is offered_by_zsh else "fish"
    assert shutil.which(shell), f"install {shell} (.ci/packages does)"
    assert set(offered_by(line, tmp_path)) == offered


def test_bash_offers_all_commands() -> None:
    assert complete("deepwell", "") == [*GROUPS, "--help", "--version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command_and_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command, group in GROUPS.items():
        assert command in script
        for option in options_of(command, group):
            if not option.argument:
                assert (f"-l {option.flag[2:]}" if shell == "fish" else option.flag) in script
    assert script.count("deepwell list --names") >= 1
    assert script.count("'") % 2 == 0


def test_names_come_without_the_loader() -> None:
    """Every Tab runs this."""
    code = (
        "import sys; from deepwell.cli.main import main; main(['list', '--names']); "
        "print(sorted({'numpy', 'tokenizers', 'httpx2', 'rich', 'deepwell._native'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    names = done.stdout.splitlines()
    assert names[-1] == "[]"
    assert {"DeepSeek-R1", "SmolLM2-135M-Instruct:Q4_K_M"} <= set(names)


def test_names_of_files_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand the words that they are given to offer."""
    snapshot = tmp_path / "hub" / "models--org--odd" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name in ("x-Q4_0$(touch run).gguf", "y-Q4_0`touch run`.gguf", "z-Q8_0.gguf"):
        (snapshot / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert complete("deepwell", "serve", "org/", home=str(tmp_path)) == ["org/odd:Q8_0"]
    assert not (tmp_path / "run").exists()


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "SHELL: must be one of bash, fish, zsh, not 'tcsh'" in capsys.readouterr().err
