"""`deepwell generate`: the same tokens as the engine gives, as text or JSON, from an argument or standard input."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import COMMAND, Terminal, deepwell

from deepwell.chat import render_fim, render_text
from deepwell.cli.hub import names_model
from deepwell.cli.main import main
from deepwell.cli.terminal import visible
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.engine.types import Delta
from deepwell.loading.load import LoadedModel, load_model
from deepwell.weights import embedded_path


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


def test_a_model_alone_is_the_model_and_the_pipe_the_prompt(model_folder: Path, tmp_path: Path) -> None:
    packed = str(tmp_path / "m.deepwell")
    assert main(["convert", str(model_folder), packed]) == 0
    given = deepwell("generate", str(model_folder), "The quick", "--max-tokens", "4")
    for model in (str(model_folder), packed):
        piped = deepwell("generate", model, "--max-tokens", "4", input="The quick")
        assert (piped.returncode, piped.stdout) == (0, given.stdout)


@pytest.mark.parametrize("name", ["nothing.gguf", "./nothing.deepwell"])
def test_a_model_alone_that_is_not_there_is_no_prompt(name: str) -> None:
    done = deepwell("generate", name, input="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"deepwell: {Path(name)}: ")


def test_a_model_where_the_text_should_be_is_refused(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(model_folder), str(model_folder)]) == 2
    assert "the text to continue is missing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["and/or", "main.py", "import os\n./x", "a word.gguf", "tests"])
def test_texts_are_no_models(text: str) -> None:
    assert not names_model(text)


def test_no_text_at_all_is_a_sentence() -> None:
    done = deepwell("generate", input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "deepwell: there is no text to continue: give one, or send one through a pipe\n"


def test_a_terminal_is_asked_for_the_prompt(model_folder: Path) -> None:
    with Terminal("generate", str(model_folder), "--max-tokens", "4") as terminal:
        terminal.wait_for("type the text to continue")
        terminal.type("The quick\n\x04")
        terminal.wait_for("[cut at 4 tokens: --max-tokens]")
        assert terminal.process.wait(30) == 0


def test_an_answer_goes_on_until_the_context_is_full(
    model: LoadedModel, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model_folder), "The quick", "--context", "128"]) == 0
    said, told = capsys.readouterr()
    prompt = render_text("The quick", model.tokenizer)
    assert said == expected(model, prompt, max_tokens=128 - len(prompt))
    assert told == f"[cut at {128 - len(prompt)} tokens: the context is full]\n"


@pytest.mark.parametrize("json", [False, True])
def test_ctrl_c_ends_with_130_and_what_was_said(
    json: bool, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = EngineCore.step

    def pressed(core: EngineCore) -> list[tuple[str, Delta]]:
        steps.append(len(steps))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(core)

    monkeypatch.setattr(EngineCore, "step", pressed)
    assert main(["generate", str(model_folder), "The quick", *(["--json"] if json else [])]) == 130
    said, told = capsys.readouterr()
    assert len(steps) == 3
    assert ('"finish_reason":"abort"' in said, told) == ((True, "") if json else (False, "[stopped]\n"))


def test_standard_input_that_is_not_utf8(model_folder: Path) -> None:
    command = [*COMMAND, "generate", str(model_folder), "-"]
    done = subprocess.run(command, input=b"abc\xff", capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.decode() == "deepwell: standard input is not UTF-8: byte 3 is 0xff\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x" * 4000], "the prompt has 4,001 tokens; at most 511 fit"),
        (["x", "--context", "100000"], "context is 100000; this model allows 1 to 512"),
        (["x", "--stop", ""], "--stop: must be a list, each a text of 1 to 1024 characters"),
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


@pytest.mark.parametrize(
    "command", [["generate", "MODEL", "def", "--max-tokens", "1"], ["convert", "MODEL", "OUT.gguf"]]
)
def test_what_was_assumed_of_a_model_is_said_in_one_line(command: list[str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_path(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["num_nextn_predict_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    args = [arg.replace("MODEL", str(folder)).replace("OUT", str(tmp_path / "out")) for arg in command]
    said = deepwell(*args)
    assert said.returncode == 0
    assert said.stderr.count("deepwell: note: config.json has no num_nextn_predict_layers: ") == 1
