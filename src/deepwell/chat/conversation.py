"""What a conversation is, whatever protocol it came by: messages, and the parts that each of them is made of."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool", "developer", "latest_reminder"]

BLANK_LINE = "\n\n"

EFFORTS = {
    "none": None,
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
"""How long to think, by every name that clients have for it: low, high or max; None is not to think at all."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is a JSON schema, kept in the order it came in."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Text(msgspec.Struct, frozen=True):
    """What somebody says."""

    text: str


class Thought(msgspec.Struct, frozen=True):
    """What the model thought before it said anything."""

    text: str


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call the model made. `arguments` is JSON text, as the model or the client wrote it."""

    name: str
    arguments: str
    id: str = ""


class Result(msgspec.Struct, frozen=True):
    """What came of the call of the id `answers`."""

    answers: str
    content: tuple[Text, ...] = ()


Part = Text | Thought | Call | Result
"""What messages are made of. An image will be one more kind: here, and in the `parts` of formats that can show it."""


class Message(msgspec.Struct, frozen=True):
    """One turn, its parts in the order in which they were said.

    Formats write a turn's thought first, then its texts, then its calls. `prefix` marks a last assistant turn that the
    model continues. `task` is a quick instruction that V4 and V4.1 know by a token of its own ("title", "query", ...):
    it asks for a label of what was said up to this turn instead of an answer.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    prefix: bool = False
    task: str | None = None

    @classmethod
    def of(
        cls,
        role: Role,
        text: str = "",
        *,
        reasoning: str | None = None,
        calls: Iterable[Call] = (),
        answers: str | None = None,
        prefix: bool = False,
        task: str | None = None,
    ) -> Message:
        """A turn of one thought, one text and calls. A `text` that `answers` a call is its result."""
        texts = (Text(text),) if text else ()
        said = texts if answers is None else (Result(answers, texts),)
        thought = () if reasoning is None else (Thought(reasoning),)
        return cls(role, (*thought, *said, *calls), prefix, task)

    @property
    def content(self) -> str:
        """All texts, those of results too, joined by blank lines."""
        said = [part.content if isinstance(part, Result) else (part,) for part in self.parts]
        return BLANK_LINE.join(part.text for parts in said for part in parts if isinstance(part, Text))

    @property
    def reasoning(self) -> str | None:
        """All thoughts as one; None without any."""
        thoughts = [part.text for part in self.parts if isinstance(part, Thought)]
        return BLANK_LINE.join(thoughts) if thoughts else None

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(part for part in self.parts if isinstance(part, Call))

    @property
    def answers(self) -> str | None:
        """The id of the call whose result this is; None if it is none."""
        for part in self.parts:
            if isinstance(part, Result):
                return part.answers
        return None


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must be: JSON, of a `schema` if there is one; a text that the regular expression or the Lark
    grammar `text` describes; or one of the `texts`. The request's `field` asked for it."""

    kind: Literal["json", "regex", "lark", "choice"]
    field: str
    schema: dict[str, Any] | None = None
    text: str = ""
    texts: tuple[str, ...] = ()


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is rendered from.

    `thinking` None leaves it to the format's own habit. `effort` is how long to think, by a name of `EFFORTS`, None the
    format's habit. `choice` says which tools the model may call: none, any it likes ("auto"), at least one
    ("required"), or the one of that `Tool`. `structure` says what the answer must be where it is no call.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required"] | Tool = "auto"
    thinking: bool | None = None
    effort: str | None = None
    structure: Structure | None = None

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call, which the prompt then opens."""
        return self.choice not in ("none", "auto")


def without_developers(conversation: Conversation) -> Conversation:
    """The conversation with what developers say as system texts."""
    if all(message.role != "developer" for message in conversation.messages):
        return conversation
    replace = msgspec.structs.replace
    said = (replace(m, role="system") if m.role == "developer" else m for m in conversation.messages)
    return replace(conversation, messages=tuple(said))


def in_call_order(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, each run of results in the order of the last calls; results of other calls come last."""
    ordered: list[Message] = []
    order: dict[str | None, int] = {}
    for is_result, run in groupby(messages, key=lambda message: message.role == "tool"):
        if is_result:
            ordered += sorted(run, key=lambda result: order.get(result.answers, len(order)))
            continue
        for message in run:
            if message.role == "assistant" and (calls := message.calls):
                order = {call.id: place for place, call in enumerate(calls)}
            ordered.append(message)
    return tuple(ordered)
