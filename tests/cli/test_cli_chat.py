"""`deepwell chat`: turns, commands, several lines, and Ctrl-C in the middle of an answer."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_calls import COMMAND, deepwell
from rich.console import Console

from deepwell.chat import FORMATS, Message, detect, render_chat
from deepwell.chat import Conversation as Talk
from deepwell.chat.reading import Piece
from deepwell.cli.chat import Conversation, _obey, messages
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.engine.types import Delta
from deepwell.errors import RequestError
from deepwell.loading.load import LoadedModel, load_model
from deepwell.options import ChatOptions
from fakes import FakeRunner, reply, tiny_tokenizer
from toy_format import END_THINK, EOS, THINK, TOY, called, ids


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


def answer(model: LoadedModel, *turns: Message, max_tokens: int = 8) -> str:
    request = Request(
        id="x",
        prompt=render_chat(Talk(messages=turns), model.tokenizer, detect(model.tokenizer)),
        sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens),
    )
    return "".join(delta.text for delta in EngineCore(model.runner, model.tokenizer).generate(request))


def test_turns_build_on_each_other(model: LoadedModel) -> None:
    talk = Conversation(model, ChatOptions(max_tokens=8, system="Be brief."))
    system, first, second = Message.of("system", "Be brief."), Message.of("user", "Hi"), Message.of("user", "And?")
    said = "".join(delta.text for _, delta in talk.ask("Hi"))
    assert said == answer(model, system, first)
    again = "".join(delta.text for _, delta in talk.ask("And?"))
    assert again == answer(model, system, first, Message.of("assistant", said), second)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2


def test_retry_asks_the_last_question_again(model: LoadedModel) -> None:
    talk = Conversation(model, ChatOptions(max_tokens=8))
    list(talk.ask("Hi"))
    turns = list(talk.turns)
    assert talk.undo() == "Hi"
    assert talk.turns == []
    list(talk.ask("Hi"))
    assert talk.turns == turns
    talk.undo()
    with pytest.raises(RequestError, match="nothing has been asked"):
        talk.undo()


def test_a_stopped_answer_is_kept_and_the_next_one_works(model: LoadedModel) -> None:
    talk = Conversation(model, ChatOptions(max_tokens=40))
    stream = talk.ask("Hi")
    first = next(stream)[1].text
    stream.close()
    assert talk.turns == [Message.of("user", "Hi"), Message.of("assistant", first)]
    assert list(talk.ask("Go on"))[-1][1].finish_reason is not None


def test_a_conversation_over_the_context_is_refused_and_leaves_no_trace(model: LoadedModel) -> None:
    talk = Conversation(model, ChatOptions())
    with pytest.raises(RequestError, match="/new begins another"):
        next(talk.ask("x" * 3000))
    assert talk.turns == []


def test_several_lines_make_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one\\", "two", "", '"""', "a", "", "b\\", '"""', "last"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert list(messages(terminal=False)) == ["one\ntwo", "a\n\nb\\", "last"]


def test_commands(model_folder: Path, model: LoadedModel) -> None:
    typed = "Hi\n/help\n/nonsense\n/system Be kind.\n/history\n/new\n/retry\n/history\n/exit\nnot read\n"
    done = deepwell("chat", str(model_folder), "--max-tokens", "8", input=typed)
    said = answer(model, Message.of("user", "Hi"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(said + "\n/help ")
    assert "/nonsense is not a command; /help lists them\n" in done.stdout
    assert "system: Be kind.\nuser: Hi\n" in done.stdout
    assert done.stdout.endswith("nothing has been asked yet\nsystem: Be kind.\n")


THOUGHT = ids("Hm, hm", END_THINK, "Cold.", *called("clock", "{}"), EOS)


def thinker(monkeypatch: pytest.MonkeyPatch, thinking: str = "on") -> Conversation:
    """A conversation with a model that thinks, answers and calls a tool, whatever it is asked."""
    monkeypatch.setitem(FORMATS, TOY.name, TOY)
    runner = FakeRunner(next_token=reply(THOUGHT, after=ids(THINK)[0]))
    model: Any = SimpleNamespace(runner=runner, tokenizer=tiny_tokenizer(), name="thinker")
    return Conversation(model, ChatOptions(thinking=thinking, chat_format=TOY.name))  # type: ignore[arg-type]


def test_thoughts_and_calls_are_dim_and_the_answer_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _obey(
        thinker(monkeypatch), "Hi", Console(force_terminal=True, color_system="standard", markup=False, highlight=False)
    )
    shown = capsys.readouterr().out
    dim = re.findall("\x1b\\[2m(.*?)\x1b\\[0m", shown, re.DOTALL)
    assert "".join(dim).startswith("Hm, hmcalls clock {}")
    assert "\x1b" not in shown[shown.index("\n\nCold.") :][:7]


def test_a_pipe_gets_the_answer_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk = thinker(monkeypatch)
    _obey(talk, "Hi", Console(markup=False))
    assert capsys.readouterr().out == "Cold.\n"
    assert talk.turns[-1] == Message.of("assistant", "Cold.", reasoning="Hm, hm")


def test_thinking_can_be_switched(monkeypatch: pytest.MonkeyPatch, model: LoadedModel) -> None:
    talk = thinker(monkeypatch, "off")
    console = Console(markup=False)
    list(talk.ask("Hi"))
    assert talk.turns[-1].reasoning is None
    _obey(talk, "/thinking on", console)
    list(talk.ask("Hi"))
    assert talk.turns[-1].reasoning == "Hm, hm"
    with pytest.raises(RequestError, match="on, off, auto"):
        _obey(talk, "/thinking hard", console)
    with pytest.raises(RequestError, match="does not think"):
        Conversation(model, ChatOptions(thinking="on", chat_format="deepseek-llm"))
    with pytest.raises(RequestError, match="always thinks"):
        Conversation(model, ChatOptions(thinking="off", chat_format="deepseek-r1"))


class Terminal:
    """`deepwell chat` on a pseudo-terminal, as a person uses it."""

    def __init__(self, *args: str) -> None:
        self.screen, other = pty.openpty()
        command = [*COMMAND, "chat", *args]
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, env=environment
        )
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def press_ctrl_c_until(self, text: str) -> None:
        """Once as a rule; Python's input() overlooks a signal that comes just before it begins to wait."""
        for _ in range(30):
            self.process.send_signal(signal.SIGINT)
            with suppress(TimeoutError):
                return self.wait_for(text, 2)
        raise TimeoutError(text)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until `text` appears after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} did not appear: {self.seen!r}")
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 4096).decode("utf-8", "replace")
        self.seen = self.seen.partition(text)[2]


def test_ctrl_c_and_ctrl_d_at_the_prompt(model_folder: Path) -> None:
    terminal = Terminal(str(model_folder))
    try:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> ")
        terminal.press_ctrl_c_until("> ")
        terminal.type("/help\n")
        terminal.wait_for("Ctrl-C stops an answer.")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.screen)


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys: pytest.CaptureFixture[str], model: LoadedModel) -> None:
    class Pressed(Conversation):
        """Ctrl-C is pressed after the third piece of an answer."""

        def ask(self, text: str) -> Generator[tuple[list[Piece], Delta]]:
            for number, said in enumerate(super().ask(text)):
                if number == 2:
                    signal.raise_signal(signal.SIGINT)
                yield said

    before = signal.getsignal(signal.SIGINT)
    talk = Pressed(model, ChatOptions(max_tokens=400))
    _obey(talk, "Hi", Console(markup=False))
    assert signal.getsignal(signal.SIGINT) is before
    shown, kept = capsys.readouterr().out, talk.turns[-1].content
    assert shown == f"{kept}\n[stopped]\n"
    pieces = [delta.text for _, delta in Conversation(model, ChatOptions(max_tokens=400)).ask("Hi")]
    assert kept == "".join(pieces[:3])
