"""`deepwell chat`: a conversation in the terminal. Answers stream; Ctrl-C stops one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import cast, get_args

import msgspec
from rich.console import Console

from deepwell.chat import Conversation as Talk
from deepwell.chat import Message, end_ids, render_chat, trained_to_chat
from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.chat.replay import Replay
from deepwell.chat.rules import check_thinking
from deepwell.cli.answering import answer, cut, sampling_of, told
from deepwell.cli.interrupts import EXIT_INTERRUPTED, Interrupts, Stopped
from deepwell.cli.model import TOY, chat_format, describe, engine_config, kept_packed, load
from deepwell.cli.questions import is_piped, messages, piped
from deepwell.cli.terminal import show, visible
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.engine.types import Delta
from deepwell.errors import DeepwellError, RequestError
from deepwell.loading.load import LoadedModel
from deepwell.options import ChatOptions, Thinking
from deepwell.weights.hub.names import UnknownModel

HELP = """\
/help            this list
/new             forget the conversation
/retry           answer the last question again
/system TEXT     instructions that open the conversation; without TEXT, none
/thinking WORD   on, off, or auto: whether the model thinks first
/history         the conversation so far
/exit            leave (or Ctrl-D)
What is pasted is one message. A line that ends with \\ goes on in the next one; lines between two lines of \"\"\" are
one message too. Ctrl-C stops an answer, pressed twice it leaves."""


def run(options: ChatOptions) -> int:
    model = _load(options)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    conversation = Conversation(model, options)
    question = _question(options)
    conversation.once = question is not None
    for note in _notes(model, options, conversation):
        print(f"deepwell: {note}", file=sys.stderr, flush=True)
    with kept_packed(model, options):
        if question is not None:
            return _answer(conversation, question, console)
        console.print(
            f"{visible(model.name)}: {describe(model)}, prompt format {conversation.format}, {conversation.sampled}. "
            "/help lists the commands.",
            style="dim",
        )
        _talk(conversation, console)
    return 0


def _load(options: ChatOptions) -> LoadedModel:
    try:
        return load(options)
    except UnknownModel as error:
        if options.question is not None:
            raise
        raise UnknownModel(f'{error}. The first argument is MODEL: deepwell chat MODEL "question"') from None


def _question(options: ChatOptions) -> str | None:
    """The one question of a call that is no conversation, None for a conversation. Raises RequestError if empty."""
    question = options.question
    if question == "-" or (question is None and not sys.stdin.isatty()):
        question = piped().rstrip()  # echo ends it with a line break, which small models take for part of it
    elif question is not None and question.strip() and is_piped() and (beside := piped().rstrip()):
        question = f"{question}\n\n{beside}"
    if question is not None and not question.strip():
        raise RequestError("the question is empty")
    return question


def _notes(model: LoadedModel, options: ChatOptions, conversation: Conversation) -> Iterator[str]:
    if options.model is None:
        yield TOY.format(command="chat")
    elif not conversation.trained:
        yield (
            f"{visible(model.name)} does not show that it was trained to chat; it answers as best it can. "
            "deepwell generate continues a text, --chat-format names a prompt format"
        )


def _talk(conversation: Conversation, console: Console) -> None:
    """Answer what is typed until the user leaves."""
    for text in messages():
        try:
            _obey(conversation, text, console)
        except Leave:
            break
        except DeepwellError as error:
            console.print(visible(str(error)), style="red")


class Leave(Exception):
    """The user said /exit."""


class Conversation:
    """What was said so far, and the model that answers. `once` says that it is one question, and nobody can go on."""

    def __init__(self, model: LoadedModel, options: ChatOptions) -> None:
        """Raises RequestError if the model cannot think, or not think, as the options say."""
        self.once = False
        self.system = options.system
        self.turns: list[Message] = []
        self._model = model
        self._format = chat_format(model, options.chat_format)
        self._options = options
        self._ends = end_ids(self._format, model.tokenizer)
        self._replay = Replay(model.tokenizer, (*model.tokenizer.ends, *self._ends))
        self.think(options.thinking)
        self._core = EngineCore(model.runner, model.tokenizer, engine_config(options))
        self._asked = 0

    @property
    def format(self) -> str:
        """The name of the prompt format."""
        return self._format.name

    @property
    def trained(self) -> bool:
        """Whether the model shows, or the options say, that it chats."""
        return self._options.chat_format != "auto" or trained_to_chat(self._format, self._model.tokenizer)

    @property
    def sampled(self) -> str:
        """How answers are sampled, in words."""
        return told(self._sampling(room=1))

    def cut(self, last: Delta) -> str | None:
        """What to say of an answer that did not end by itself."""
        early = cut(last, self._options)
        full = early is not None and "context" in early
        return f"{early}; /new begins another conversation" if full and not self.once else early

    @property
    def messages(self) -> list[Message]:
        return [*([Message.of("system", self.system)] if self.system else []), *self.turns]

    def think(self, thinking: Thinking) -> None:
        """Have the following answers thought over or not. Raises RequestError if the model cannot do so."""
        wanted = {"on": True, "off": False}.get(thinking)
        check_thinking(wanted, self._format, "thinking", "thinking can be auto")
        self._thinking = wanted

    def ask(self, text: str, check: Callable[[], None] = lambda: None) -> Generator[tuple[list[Piece], Delta]]:
        """Say something; gives the answer as it comes. Leaves no trace in the history if it cannot be asked, or is
        stopped while the prompt is read.

        Closing the iterator stops the answer, and so does what `check` raises between two steps; what came of it is
        kept. Raises RequestError.
        """
        question = Message.of("user", text)
        talk = Talk(messages=(*self.messages, question), thinking=self._thinking)
        prompt = self._replay.apply(talk, render_chat(talk, self._model.tokenizer, self._format))
        room = self._model.runner.context - len(prompt)
        if room < 1:
            what = "question" if self.once else "conversation"
            advice = "shorten it, or take a model with a longer context" if self.once else "/new begins another"
            most = self._model.runner.context - 1
            raise RequestError(f"the {what} has {len(prompt):,} tokens; at most {most:,} fit; {advice}")
        self._asked += 1
        request = Request(id=str(self._asked), prompt=prompt, sampling=self._sampling(room))
        reader = self._format.reader(talk, self._model.tokenizer)
        said: list[Piece] = []
        ids: list[int] = []
        last = None
        try:
            for last in answer(self._core, request, check):
                pieces = [*reader.push(last.marked), *(reader.finish() if last.finish_reason else ())]
                said += pieces
                ids += last.token_ids
                yield pieces, last
        finally:
            if last is not None:
                self.turns += [question, _message_of(said)]
                self._replay.keep(talk, prompt, self.turns[-1], ids)

    def _sampling(self, room: int) -> SamplingParams:
        sampling = sampling_of(self._options, self._model.advice, room)
        return msgspec.structs.replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *self._ends))

    def undo(self) -> str:
        """Take back the last question and its answer; gives the question. Raises RequestError if there is none."""
        if not self.turns:
            raise RequestError("nothing has been asked yet")
        question = self.turns[-2].content
        del self.turns[-2:]
        return question


def _message_of(said: Sequence[Piece]) -> Message:
    """The turn that the pieces make. Nobody answers calls here, so they are not kept."""
    thoughts = "".join(piece.text for piece in said if isinstance(piece, Reasoning))
    content = "".join(piece.text for piece in said if isinstance(piece, Content))
    return Message.of("assistant", content, reasoning=thoughts or None)


def _obey(conversation: Conversation, text: str, console: Console) -> None:
    """Carry out a command, or ask the model. Raises RequestError and Leave."""
    if not text.startswith("/") or "\n" in text:
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


def _answer(conversation: Conversation, text: str, console: Console) -> int:
    """Show the answer as it comes; an exit code. Raises DeepwellError."""
    started = time.perf_counter()
    last = None
    stopped = False
    screen = _Screen(console)
    with Interrupts() as interrupts:
        try:
            for said in conversation.ask(text, interrupts.check):
                pieces, last = said
                screen.show(pieces)
        except Stopped:
            stopped = True
    print(flush=True)
    if stopped:
        console.print("[stopped]", style="dim")
        return EXIT_INTERRUPTED
    assert last is not None
    if last.error:
        raise DeepwellError(last.error)
    _tell(last, conversation, time.perf_counter() - started, console)
    return 0


def _tell(last: Delta, conversation: Conversation, seconds: float, console: Console) -> None:
    """What is worth knowing about an answer, beside it; where that is no terminal, only that it was cut."""
    early = conversation.cut(last)
    if early and not console.is_terminal:
        print(f"[{early}]", file=sys.stderr, flush=True)
    if not console.is_terminal or last.usage is None:
        return
    if early:
        console.print(f"[{early}]", style="yellow")
    usage = last.usage
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
