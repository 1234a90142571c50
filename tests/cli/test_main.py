"""The command line as a person meets it: help, errors in one sentence, exit codes, start-up time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import COMMAND, deepwell

from deepwell import __version__
from deepwell.cli import docs
from deepwell.cli.commands import GROUPS
from deepwell.cli.main import main
from deepwell.options import GenerateOptions
from deepwell.settings import options_of

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "tokenizers", "starlette", "uvicorn", "rich", "torch", "transformers")


def test_version() -> None:
    done = deepwell("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"deepwell {__version__}\n", "")


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "deepwell", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"deepwell {__version__}\n")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in GROUPS)
    assert "examples:" in shown


def test_no_command_is_a_mistake_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", GROUPS)
def test_help_of_a_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert f"deepwell {command}" in shown.split("Examples:")[1], "an example calls the command"
    for option in options_of(command, GROUPS[command]):
        assert (option.name.upper() if option.argument else option.flag) in shown
        assert " ".join(option.help.rstrip(".").split()) in shown


def test_help_takes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["help", "convert"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: deepwell convert ")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sreve"]) == 2
    assert capsys.readouterr().err.startswith(
        "deepwell: 'sreve' is not a command; did you mean serve? commands are serve, "
    )


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (
        (["serve", "--prot", "1"], "--prot is no option of serve; did you mean --port? "),
        (["serve", "a", "b"], "'b' is one argument too many for serve; "),
        (["serve", "--port"], "argument --port: expected one argument; "),
    ):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"deepwell: {said}")
        assert len(err.splitlines()) == 1


def test_a_wrong_value_is_one_sentence_without_traceback() -> None:
    done = deepwell("serve", "--port", "x")
    assert done.returncode == 2
    assert done.stderr == "deepwell: --port: must be an integer from 0 to 65535, not 'x'\n"
    assert done.stdout == ""


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = deepwell("generate", str(tmp_path / "nothing"), "x")
    assert done.returncode == 2
    assert str(tmp_path / "nothing") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_config_flag_and_variable(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[serve]\nport = 'x'\n")
    said = f"deepwell: {config}: [serve] port: must be an integer from 0 to 65535, not 'x'\n"
    assert deepwell("serve", "--config", str(config)).stderr == said
    assert deepwell("serve", env={**os.environ, "DEEPWELL_CONFIG": str(config)}).stderr == said


def test_arguments_and_flags_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GenerateOptions] = []

    class Stub:
        @staticmethod
        def run(options: GenerateOptions) -> int:
            seen.append(options)
            return 0

    monkeypatch.setattr("deepwell.cli.main.import_module", lambda name: Stub)
    for line in (["m", "--json", "p"], ["--json", "m", "p"], ["m", "p", "--json"]):
        assert main(["generate", *line]) == 0
        assert (str(seen[-1].model), seen[-1].prompt, seen[-1].json) == ("m", "p", True)
    main(["generate", "-", "--stop", "a", "--stop", "b"])
    assert (seen[-1].model, seen[-1].prompt, seen[-1].stop) == (None, "-", ("a", "b"))


def test_kernels_that_do_not_load_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> object:
        raise ImportError("cannot import name '_native' from 'deepwell'")

    monkeypatch.setattr("deepwell.cli.main.import_module", missing)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deepwell: the kernels do not load: cannot import name '_native'")
    assert error.endswith("; `deepwell doctor` says what to do\n")


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepwell.cli.main.import_module", interrupted)
    assert main(["doctor"]) == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    """`deepwell completion fish | true`: the output is longer than nothing and nobody reads it."""
    script = f"{sys.executable} -c 'import sys; from deepwell.cli.main import main; sys.exit(main())' completion fish"
    done = subprocess.run(
        ["bash", "-c", f"{{ sleep 0.2; {script}; echo $? >&2; }} | true"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "141"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("completion bash > /dev/full", "cannot read or write: No space left on device"),
        ("--help > /dev/full", "cannot read or write: No space left on device"),
        ("completion bash >&-", "standard output is closed; to drop what is printed, send it to /dev/null"),
        ("completion bash >&- 2>&-", ""),
        ("train --out /dev/null/run", "/dev/null/run: Not a directory"),
        ("train --out {tmp}/run --cache /dev/null/cache", "/dev/null/cache: Not a directory"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(line: str, said: str, tmp_path: Path) -> None:
    line = line.format(tmp=tmp_path)
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} {line}"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (2, f"deepwell: {said}\n" if said else "")


def test_closed_input_is_empty_input(tmp_path: Path) -> None:
    line = f"{' '.join(COMMAND)} generate - <&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("deepwell: ")


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def greedy(name: str) -> object:
        raise MemoryError

    monkeypatch.setattr("deepwell.cli.main.import_module", greedy)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "deepwell: there is not enough memory; `deepwell doctor` shows the limits on it\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from deepwell.cli.main import main; main(['--help']); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_documentation_is_made_from_the_options() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == docs.render(), "run: make docs"
