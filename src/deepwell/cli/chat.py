"""`deepwell chat`: a conversation in the terminal. Answers stream; Ctrl-C stops one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import cast, get_args

import msgspec
from rich.console import Console

from deepwell.chat import Conversation as Talk
from deepwell.chat import Message, end_ids, render_chat
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.chat.replay import Replay
from deepwell.chat.rules import check_thinking
from deepwell.cli.model import chat_format, describe, engine_config, kept_packed, load, sampling_of
from deepwell.cli.terminal import show, visible
from deepwell.engine import EngineCore, Request
from deepwell.engine.types import Delta
from deepwell.errors import RequestError
from deepwell.loading.load import LoadedModel
from deepwell.options import ChatOptions, Thinking

HELP = """\
/help            this list
/new             forget the conversation
/retry           answer the last question again
/system TEXT     instructions that open the conversation; without TEXT, none
/thinking WORD   on, off, or auto: whether the model thinks first
/history         the conversation so far
/exit            leave (or Ctrl-D)
A line that ends with \\ goes on in the next one; lines between two lines of \"\"\" are one message.
Ctrl-C stops an answer."""

FENCE = '"""'


def run(options: ChatOptions) -> int:
    model = load(options)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    terminal = sys.stdin.isatty()
    conversation = Conversation(model, options)
    if terminal:
        _edit_lines()
        console.print(
            f"{model.name}: {describe(model)}, prompt format {conversation.format}. /help lists the commands.",
            style="dim",
        )
    with kept_packed(model, options):
        for text in messages(terminal):
            try:
                _obey(conversation, text, console)
            except Leave:
                break
            except RequestError as error:
                console.print(f"{error}", style="red")
    return 0


class Leave(Exception):
    """The user said /exit."""


class Conversation:
    """What was said so far, and the model that answers."""

    def __init__(self, model: LoadedModel, options: ChatOptions) -> None:
        """Raises RequestError if the model cannot think, or not think, as the options say."""
        self.system = options.system
        self.turns: list[Message] = []
        self._model = model
        self._format = chat_format(model, options.chat_format)
        ends = end_ids(self._format, model.tokenizer)
        sampling = sampling_of(options)
        self._sampling = msgspec.structs.replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *ends))
        self._replay = Replay(model.tokenizer, (*model.tokenizer.ends, *ends))
        self.think(options.thinking)
        self._core = EngineCore(model.runner, model.tokenizer, engine_config(options))
        self._asked = 0

    @property
    def format(self) -> str:
        """The name of the prompt format."""
        return self._format.name

    @property
    def messages(self) -> list[Message]:
        return [*([Message.of("system", self.system)] if self.system else []), *self.turns]

    def think(self, thinking: Thinking) -> None:
        """Have the following answers thought over or not. Raises RequestError if the model cannot do so."""
        wanted = {"on": True, "off": False}.get(thinking)
        check_thinking(wanted, self._format, "thinking", "thinking can be auto")
        self._thinking = wanted

    def ask(self, text: str) -> Generator[tuple[list[Piece], Delta]]:
        """Say something; gives the answer as it comes. Leaves no trace in the history if it cannot be asked.

        Closing the iterator stops the answer; what came of it is kept. Raises RequestError.
        """
        question = Message.of("user", text)
        talk = Talk(messages=(*self.messages, question), thinking=self._thinking)
        prompt = self._replay.apply(talk, render_chat(talk, self._model.tokenizer, self._format))
        room = self._model.runner.context - len(prompt)
        if room < 1:
            raise RequestError(
                f"the conversation has {len(prompt)} tokens, too many for this model; /new begins another"
            )
        self._asked += 1
        limited = msgspec.structs.replace(self._sampling, max_tokens=min(self._sampling.max_tokens, room))
        reader = self._format.reader(talk, self._model.tokenizer)
        said: list[Piece] = []
        ids: list[int] = []
        try:
            for delta in self._core.generate(Request(id=str(self._asked), prompt=prompt, sampling=limited)):
                pieces = [*reader.push(delta.marked), *(reader.finish() if delta.finish_reason else ())]
                said += pieces
                ids += delta.token_ids
                yield pieces, delta
        finally:
            self.turns += [question, _message_of(said)]
            self._replay.keep(talk, prompt, self.turns[-1], ids)

    def undo(self) -> str:
        """Take back the last question and its answer; gives the question. Raises RequestError if there is none."""
        if not self.turns:
            raise RequestError("nothing has been asked yet")
        question = self.turns[-2].content
        del self.turns[-2:]
        return question


def messages(terminal: bool) -> Iterator[str]:
    """What the user types, message by message, until the input ends."""
    while True:
        try:
            text = _message("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
            continue
        if text.strip():
            yield text


def _message_of(said: Sequence[Piece]) -> Message:
    """The turn that the pieces make. Nobody answers calls here, so they are not kept."""
    thoughts = "".join(piece.text for piece in said if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in said if isinstance(piece, Content))
    return Message.of("assistant", content, reasoning=thoughts or None)


def _message(prompt: str) -> str:
    """One message: a line, lines joined by a backslash at their end, or lines between fences. Raises EOFError."""
    more = "… " if prompt else ""
    line = input(prompt)
    if line.strip() == FENCE:
        lines: list[str] = []
        while (line := input(more)).strip() != FENCE:
            lines.append(line)
        return "\n".join(lines)
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = input(more)
    return "\n".join([*lines, line])


def _obey(conversation: Conversation, text: str, console: Console) -> None:
    """Carry out a command, or ask the model. Raises RequestError and Leave."""
    if not text.startswith("/"):
        _answer(conversation, text, console)
        return
    command, _, argument = text[1:].partition(" ")
    match command:
        case "help":
            console.print(HELP)
        case "new":
            conversation.turns.clear()
        case "retry":
            _answer(conversation, conversation.undo(), console)
        case "system":
            conversation.system = argument.strip()
        case "thinking":
            if argument.strip() not in get_args(Thinking):
                raise RequestError("/thinking needs one of: on, off, auto")
            conversation.think(cast(Thinking, argument.strip()))
        case "history":
            for message in conversation.messages:
                console.print(f"{message.role}: ", style="bold", end="")
                console.print(visible(message.content))
        case "exit" | "quit":
            raise Leave
        case _:
            raise RequestError(f"/{command} is not a command; /help lists them")


def _answer(conversation: Conversation, text: str, console: Console) -> None:
    started = time.perf_counter()
    last = None
    with _interruptible() as interrupted:
        answer = conversation.ask(text)
        screen = _Screen(console)
        for said in answer:
            pieces, last = said
            screen.show(pieces)
            if interrupted:
                answer.close()
                break
    print()
    if interrupted:
        console.print("[stopped]", style="dim")
    elif last is not None and last.error:
        console.print(last.error, style="red")
    elif last is not None and last.usage is not None and console.is_terminal:
        usage, seconds = last.usage, time.perf_counter() - started
        counts = f"{usage.completion_tokens} tokens, {usage.completion_tokens / seconds:.1f}/s"
        console.print(f"[{counts}; prompt {usage.prompt_tokens}, {usage.cached_tokens} of it cached]", style="dim")


class _Screen:
    """One answer on the terminal: thoughts and calls are dim, with a blank line after them. A pipe gets neither."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._dim = False

    def show(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Content(text):
                    if self._dim:
                        print("\n")
                    self._dim = False
                    show(text)
                case Reasoning(text):
                    self._show_dim(text)
                case CallBegin(name):
                    self._show_dim(f"\ncalls {name} ")
                case CallArguments(text):
                    self._show_dim(text)

    def _show_dim(self, text: str) -> None:
        if self._console.is_terminal:
            self._dim = True
            self._console.print(visible(text), style="dim", end="")
            self._console.file.flush()


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising in the middle of a step; the list is true once it was pressed."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _edit_lines() -> None:
    """Arrow keys and history at the prompt, where Python has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401
