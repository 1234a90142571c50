"""`deepwell generate`: the same tokens as the engine gives, as text or JSON, from an argument or standard input."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import COMMAND, deepwell

from deepwell.chat import render_fim, render_text
from deepwell.cli.main import main
from deepwell.cli.terminal import visible
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.loading.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


def expected(model: LoadedModel, prompt: tuple[int, ...], **sampling: object) -> str:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12} | sampling)  # type: ignore[arg-type]
    core = EngineCore(model.runner, model.tokenizer)
    return "".join(delta.text for delta in core.generate(Request(id="x", prompt=prompt, sampling=params)))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["generate", *args]) == 0
    return capsys.readouterr().out


def test_text_is_what_the_engine_says(
    model: LoadedModel, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, str(model_folder), "The quick", "--max-tokens", "12")
    assert said == expected(model, render_text("The quick", model.tokenizer)) != ""


def test_json(model: LoadedModel, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(run(capsys, str(model_folder), "The quick", "--max-tokens", "12", "--json"))
    prompt = render_text("The quick", model.tokenizer)
    assert answer == {
        "model": "tiny-v3",
        "text": expected(model, prompt),
        "finish_reason": "length",
        "usage": {"prompt_tokens": len(prompt), "cached_tokens": 0, "completion_tokens": 12},
    }


def test_fill_in_the_middle(model: LoadedModel, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, str(model_folder), "def add(", "--fim-suffix", "return", "--max-tokens", "12")
    assert said == expected(model, render_fim("def add(", "return", model.tokenizer))


def test_sampling_flags_reach_the_engine(
    model: LoadedModel, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"temperature": 0.9, "top_p": 0.8, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 5}
    args = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    said = run(capsys, str(model_folder), "The quick", "--max-tokens", "12", *args)
    prompt = render_text("The quick", model.tokenizer)
    assert said == expected(model, prompt, **flags)
    assert said != expected(model, prompt), "sampling has an effect"
    stop = said[4:6]
    assert (
        run(capsys, str(model_folder), "The quick", "--max-tokens", "12", *args, "--stop", stop) == said.split(stop)[0]
    )


def test_without_a_model_the_embedded_one_answers(capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(run(capsys, "import os\nimport sys\n\n\ndef main(", "--max-tokens", "8", "--json"))
    assert answer["model"] == "deepwell"
    assert "):" in answer["text"], "it has learnt how a function is opened"


def test_standard_input(model_folder: Path) -> None:
    piped = deepwell("generate", str(model_folder), "-", "--max-tokens", "4", "--json", input="深度\n")
    given = deepwell("generate", str(model_folder), "深度\n", "--max-tokens", "4", "--json")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout == given.stdout


def test_standard_input_that_is_not_utf8(model_folder: Path) -> None:
    command = [*COMMAND, "generate", str(model_folder), "-"]
    done = subprocess.run(command, input=b"abc\xff", capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.decode() == "deepwell: standard input is not UTF-8: byte 3 is 0xff\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x" * 4000], "the prompt has"),
        (["x", "--context", "100000"], "context is 100000; this model allows 1 to 512"),
        (["x", "--stop", ""], "stop text must have"),
    ],
)
def test_what_does_not_fit_is_said(
    args: list[str], said: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model_folder), *args]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_control_characters_do_not_steer_a_terminal(model_folder: Path) -> None:
    """On a pseudo-terminal, an answer of a random model holds no escape characters; in a pipe it is as it is."""
    assert visible("a\x1b[2Jb\r\n\tc\x00\x9b深") == "a�[2Jb�\n\tc��深"
    reader, writer = pty.openpty()
    code = "from deepwell.cli.terminal import show; show('a' + chr(27) + '[2J' + chr(10))"
    subprocess.run([sys.executable, "-c", code], stdout=writer, check=True, timeout=60)
    os.close(writer)
    assert os.read(reader, 100).decode().strip() == "a�[2J"
