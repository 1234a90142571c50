"""`deepwell chat`: turns, commands, several lines, and Ctrl-C in the middle of an answer."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from cli_calls import COMMAND, Terminal, deepwell
from rich.console import Console

from deepwell.chat import FORMATS, Message, detect, render_chat
from deepwell.chat import Conversation as Talk
from deepwell.chat.reading import Piece
from deepwell.cli import questions
from deepwell.cli.answering import sampling_of
from deepwell.cli.chat import Conversation, _obey
from deepwell.cli.questions import messages
from deepwell.cli.terminal import visible
from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.engine.types import Delta
from deepwell.errors import RequestError
from deepwell.loading.load import LoadedModel, load_model
from deepwell.options import ChatOptions
from deepwell.weights.advice import Advice
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
    with pytest.raises(RequestError, match=r"the conversation has .* at most \d+ fit; /new begins another"):
        next(talk.ask("x" * 3000))
    assert talk.turns == []


def test_several_lines_make_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one\\", "two", "", '"""', "a", "", "b\\", '"""', "a\nb\\\n/c", '"""\nd\n"""', "last"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(questions, "_more_has_come", lambda seconds: False)
    assert list(messages()) == ["one\ntwo", "a\n\nb\\", "a\nb\\\n/c", "d", "last"]


def test_a_pipe_is_one_question(model_folder: Path, model: LoadedModel) -> None:
    text = "Hi\n/help\n\nand more\n"
    done = deepwell("chat", str(model_folder), "--max-tokens", "8", input=text)
    assert done.returncode == 0
    assert done.stdout == answer(model, Message.of("user", text.rstrip())) + "\n"
    assert done.stderr.endswith("[cut at 8 tokens: --max-tokens]\n")


def test_one_question_on_the_command_line(model_folder: Path, model: LoadedModel) -> None:
    for args in (("Why?",), ("--max-tokens", "8", "Why?")):
        done = deepwell("chat", str(model_folder), *args, "--max-tokens", "8", stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout) == (0, answer(model, Message.of("user", "Why?")) + "\n")


def test_a_question_and_a_pipe_are_one_question(model_folder: Path, model: LoadedModel, tmp_path: Path) -> None:
    said = answer(model, Message.of("user", "Why?\n\nThe text")) + "\n"
    ask = ("chat", str(model_folder), "Why?", "--max-tokens", "8")
    assert deepwell(*ask, input="The text\n").stdout == said
    (tmp_path / "text").write_text("The text\n")
    with (tmp_path / "text").open() as file:
        assert deepwell(*ask, stdin=file).stdout == said


def test_a_loop_keeps_its_own_input(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("one\ntwo\n")
    for command in ("chat", "generate"):
        call = " ".join([*COMMAND, command, str(model_folder), '"$x"', "--max-tokens 1 > /dev/null 2>&1"])
        loop = f"while read x; do {call}; echo $x; done < {tmp_path}/list"
        done = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, timeout=120)
        assert done.stdout == "one\ntwo\n"


def test_who_forgets_the_model_is_told_the_form() -> None:
    done = deepwell("chat", "Hello", input="")
    assert done.returncode == 2
    assert done.stderr.endswith('The first argument is MODEL: deepwell chat MODEL "question"\n')


@pytest.mark.parametrize(
    ("args", "piped", "said"),
    [
        ((), b" \n", "the question is empty"),
        (("-",), b"\xff", "standard input is not UTF-8: byte 0 is 0xff"),
        (("x" * 4000,), b"", "the question has"),
    ],
)
def test_a_question_that_cannot_be_asked_is_an_error(
    args: tuple[str, ...], piped: bytes, said: str, model_folder: Path
) -> None:
    command = [*COMMAND, "chat", str(model_folder), *args]
    done = subprocess.run(command, input=piped, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert f"deepwell: {said}" in done.stderr.decode()


def test_an_answer_goes_on_until_the_context_is_full(model_folder: Path, model: LoadedModel) -> None:
    done = deepwell("chat", str(model_folder), "Hi", "--context", "128")
    prompt = render_chat(Talk(messages=(Message.of("user", "Hi"),)), model.tokenizer, detect(model.tokenizer))
    cut = f"cut at {128 - len(prompt)} tokens: the context is full"
    assert done.stderr.endswith(f"[{cut}]\n")


def test_the_makers_advice_is_followed_unless_an_option_says_otherwise(model: LoadedModel) -> None:
    advised = msgspec.structs.replace(model, advice=Advice(temperature=0.6, top_p=0.95))
    assert Conversation(model, ChatOptions()).sampled == "greedy"
    assert Conversation(advised, ChatOptions()).sampled == "temperature 0.6, top_p 0.95"
    assert Conversation(advised, ChatOptions(temperature=0.0)).sampled == "greedy"
    assert Conversation(advised, ChatOptions(top_p=0.5, top_k=3)).sampled == "temperature 0.6, top_p 0.5, top_k 3"
    only = msgspec.structs.replace(model, advice=Advice(top_k=20))
    assert sampling_of(ChatOptions(), only.advice, 5) == SamplingParams(temperature=1.0, top_k=20, max_tokens=5)


THOUGHT = ids("Hm, hm", END_THINK, "Cold.", *called("clock", "{}"), EOS)


def thinker(monkeypatch: pytest.MonkeyPatch, thinking: str = "on") -> Conversation:
    """A conversation with a model that thinks, answers and calls a tool, whatever it is asked."""
    monkeypatch.setitem(FORMATS, TOY.name, TOY)
    runner = FakeRunner(next_token=reply(THOUGHT, after=ids(THINK)[0]))
    model: Any = SimpleNamespace(runner=runner, tokenizer=tiny_tokenizer(), name="thinker", advice=Advice())
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
    assert capsys.readouterr() == ("Cold.\n", "")
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


@pytest.fixture
def terminal(model_folder: Path) -> Iterator[Terminal]:
    with Terminal("chat", str(model_folder), "--max-tokens", "8") as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> ")
        yield terminal


def test_ctrl_c_and_ctrl_d_at_the_prompt(terminal: Terminal) -> None:
    terminal.press_ctrl_c_until("(Ctrl-C once more, or Ctrl-D, leaves)")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("Ctrl-C stops an answer")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_twice_at_the_prompt_leaves(terminal: Terminal) -> None:
    terminal.press_ctrl_c_until("(Ctrl-C once more, or Ctrl-D, leaves)")
    terminal.wait_for("> ")
    for _ in range(15):  # input() overlooks a signal that comes just before it begins to wait
        terminal.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            terminal.process.wait(2)
            break
    assert terminal.process.returncode == 130


def test_commands(terminal: Terminal, model: LoadedModel) -> None:
    said = visible(answer(model, Message.of("user", "Hi"))).split()[0]
    for typed, shown in (
        ("Hi", said),
        ("/nonsense", "/nonsense is not a command; /help lists them"),
        ("/system Be kind.", "/system Be kind."),
        ("/history", "system: Be kind."),
        ("/new", "/new"),
        ("/retry", "nothing has been asked yet"),
    ):
        terminal.type(f"{typed}\n")
        terminal.wait_for(shown)
        terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(30) == 0


def test_an_answer_that_was_cut_says_so(terminal: Terminal) -> None:
    terminal.type("Hi\n")
    terminal.wait_for("[cut at 8 tokens: --max-tokens]")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_paste_is_one_message(term: str, model_folder: Path) -> None:
    """Marked by the terminal, or, where it marks nothing, known by coming at once."""
    with Terminal("chat", str(model_folder), "--max-tokens", "4", term=term) as terminal:
        terminal.wait_for("> ")
        pasted = "one\n/two\nthree"
        terminal.type(f"\x1b[200~{pasted}\x1b[201~\r" if term == "xterm" else f"{pasted}\n")
        terminal.wait_for("4 tokens")
        terminal.wait_for("> ")
        terminal.type("/history\n")
        terminal.wait_for("one\r\n/two\r\nthree\r\n")


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys: pytest.CaptureFixture[str], model: LoadedModel) -> None:
    class Pressed(Conversation):
        """Ctrl-C is pressed after the third piece of an answer."""

        def ask(self, text: str, check: Callable[[], None] = lambda: None) -> Generator[tuple[list[Piece], Delta]]:
            for number, said in enumerate(super().ask(text, check)):
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


def test_ctrl_c_while_the_prompt_is_read_stops_after_the_piece_at_hand_and_leaves_no_trace(
    capsys: pytest.CaptureFixture[str], model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    talk = Conversation(model, ChatOptions(max_tokens=4))
    talk._core = EngineCore(model.runner, model.tokenizer, EngineConfig(token_budget=16))
    step = talk._core.step

    def pressed() -> list[tuple[str, Delta]]:
        pieces.append(len(pieces))
        if len(pieces) == 2:
            signal.raise_signal(signal.SIGINT)
        return step()

    monkeypatch.setattr(talk._core, "step", pressed)
    _obey(talk, "x" * 300, Console(markup=False))
    assert capsys.readouterr().out == "\n[stopped]\n"
    assert (len(pieces), talk.turns) == (2, [])
    monkeypatch.undo()
    talk._core.check_integrity()
    assert list(talk.ask("Go on"))[-1][1].finish_reason == "length"


def test_a_second_ctrl_c_leaves_in_the_middle_of_a_step() -> None:
    code = (
        "import ctypes; from deepwell.cli.interrupts import Interrupts\n"
        "with Interrupts():\n"
        "    print('in', flush=True)\n"
        "    for _ in range(9): ctypes.CDLL(None).sleep(9)\n"  # outside of Python, as a step is; signals end a sleep
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(5) == 130
        finally:
            process.kill()


def test_what_a_model_says_does_not_steer_the_terminal() -> None:
    turning = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    assert visible(f"a\tb\n\x1b[2J{turning}\x9b\u200dé אב") == "a\tb\n�[2J" + "�" * 9 + "�\u200dé אב"
