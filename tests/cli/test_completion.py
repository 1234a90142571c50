"""Tab completion: the bash script is run; the others are read for every command and flag."""

from __future__ import annotations

import subprocess

import pytest

from deepwell.cli import completion
from deepwell.cli.commands import GROUPS
from deepwell.cli.main import main
from deepwell.model.published import published
from deepwell.options import options_of


def complete(*words: str) -> list[str]:
    """What bash offers after `words`; the last one is being typed."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"{completion.bash()}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n_deepwell\n"
    done = subprocess.run(
        ["bash", "-uc", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
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
        (("deepwell", "models", "DeepSeek-V2-L"), ["DeepSeek-V2-Lite"]),
        (("deepwell", "models", "--"), ["--json", "--help"]),
        (("deepwell", "nonsense", "x"), []),
    ],
)
def test_bash_offers(words: tuple[str, ...], offered: list[str]) -> None:
    assert complete(*words) == offered


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
    assert all(model.name in script for model in published().values())
    assert script.count("'") % 2 == 0


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "SHELL: must be one of bash, fish, zsh, not 'tcsh'" in capsys.readouterr().err
