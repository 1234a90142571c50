"""Conversations on which our renderers and the checkpoints' own templates agree, and the texts captured from these."""

from __future__ import annotations

from pathlib import Path

import msgspec

from deepwell.chat import Call, Conversation, Message, Role, Tool, detect, find_format, render_chat
from deepwell.weights.tokenizer import Tokenizer

VECTORS = Path(__file__).parent / "vectors"

TEXT_ONLY = ("deepseek-llm", "deepseek-coder")
LAST_SYSTEM_ONLY = ("deepseek-r1",)
"""Templates that keep the last system text alone; ours keep all."""
NO_CALLS = (*TEXT_ONLY, "deepseek-r1")
"""R1's first templates lose the end of a single call, and take calls only where the content is null."""
THINKERS = ("deepseek-r1", "deepseek-r1-0528", "deepseek-v3.1")


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it is recorded: flat, with one thought, one text and calls."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    answers: str | None = None
    prefix: bool = False


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as it is recorded."""

    messages: tuple[Said, ...]
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    thinking: bool | None = None
    effort: str | None = None


class Case(msgspec.Struct, frozen=True):
    recorded: Recorded = msgspec.field(name="conversation")
    text: str

    @classmethod
    def of(cls, conversation: Conversation, text: str) -> Case:
        fields = ("role", "content", "reasoning", "calls", "answers", "prefix")
        said = tuple(Said(**{name: getattr(m, name) for name in fields}) for m in conversation.messages)
        return cls(Recorded(messages=said, thinking=conversation.thinking), text)

    @property
    def conversation(self) -> Conversation:
        told = self.recorded
        assert (told.tools, told.choice, told.effort) == ((), "auto", None)
        messages = tuple(
            Message.of(m.role, m.content, reasoning=m.reasoning, calls=m.calls, answers=m.answers, prefix=m.prefix)
            for m in told.messages
        )
        return Conversation(messages=messages, thinking=told.thinking)


class Vectors(msgspec.Struct, frozen=True):
    """What a template wrote; `template` is its SHA-256, `transformers` the version that ran it."""

    transformers: str
    template: str
    cases: list[Case]


def rendered(conversation: Conversation, tokenizer: Tokenizer, name: str | None = None) -> tuple[int, ...]:
    """The prompt in the format of that name, or in the one that the tokenizer shows."""
    return render_chat(conversation, tokenizer, find_format(name, tokenizer) if name else detect(tokenizer))


def system(text: str) -> Message:
    return Message.of("system", text)


def user(text: str) -> Message:
    return Message.of("user", text)


def answer(text: str = "", *calls: Call) -> Message:
    return Message.of("assistant", text, calls=calls)


def result(text: str, id: str) -> Message:
    return Message.of("tool", text, answers=id)


def call(id: str, name: str = "weather", arguments: str = '{"city": "Köln", "days": [1, 2]}') -> Call:
    return Call(name=name, arguments=arguments, id=id)


CALLED = [user("Weather?"), answer("", call("a")), result('{"sky": "grey"}', "a")]
TWICE = [
    user("Weather, and the time?"),
    answer("Let me look.", call("a"), call("b", "clock", "{}")),
    result("grey\n", "a"),
    result("noon", "b"),
]
_TALKS: dict[str, list[Message]] = {
    "question": [user("Hi")],
    "with system text": [system("Be brief."), user("Hi")],
    "turns": [system("Be brief."), user("Hi"), answer("Hello."), user("Go on"), answer("So."), user("And?")],
    "white space": [system(" a \n"), user("\n x\t"), answer("  y\n\n"), user(" ")],
    "scripts": [user("Größe, naïve café, 深度求索, 🐳🚀"), answer("ελληνικά"), user("{{ bos_token }} {% if %}")],
    "empty texts": [system(""), user(""), answer(""), user("")],
    "spelled tokens": [user("<｜User｜> <think> <｜end▁of▁sentence｜>"), answer("<|EOT|>"), user("<｜Assistant｜>")],
}
_SYSTEMS: dict[str, list[Message]] = {
    "two system texts": [system("Be brief."), user("Hi"), answer("Hello."), system("In verse."), user("Go on")],
}
_CALLS: dict[str, list[Message]] = {
    "results": CALLED,
    "results of two calls": TWICE,
    "answer after results": [*CALLED, answer("Grey."), user("Thanks")],
    "calls after results": [*TWICE, answer("Once more.", call("c")), result("blue", "c")],
    "answer after two rounds": [*TWICE, answer("", call("c")), result("blue", "c"), answer("Blue."), user("Why?")],
    "a turn between": [*CALLED, answer("Grey."), user("Again"), answer("", call("c"), call("d")), result("1", "c")],
}
_THOUGHTS: dict[str, list[Message]] = {
    "thoughts left in": [user("Hi"), answer("<think>\nhm\n</think>\n\nHello."), user("Go on")],
    "thoughts without a begin": [user("Hi"), answer("hm</think>Hello."), user("Go on")],
}


def cases_of(format: str) -> list[Conversation]:
    """The conversations that tell what a format does."""
    talks = list(_TALKS.values())
    talks += [] if format in LAST_SYSTEM_ONLY else _SYSTEMS.values()
    talks += [] if format in NO_CALLS else _CALLS.values()
    talks += _THOUGHTS.values() if format in THINKERS else []
    found = [Conversation(messages=tuple(talk)) for talk in talks]
    if format == "deepseek-v3.1":
        found += [msgspec.structs.replace(one, thinking=thinking) for one in found for thinking in (True, False)]
    return found
