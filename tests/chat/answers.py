"""Answers as the engine marks them, cut wherever a test wants, and what a reader makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from deepwell.chat import Call, Conversation, Message, Text, Thought, render_chat
from deepwell.chat.formats.base import Format
from deepwell.chat.reading import CallArguments, CallBegin, Content, Reader, Reasoning
from deepwell.chat.reading.base import Marked
from deepwell.chat.rules import settle
from deepwell.weights.added_tokens import token_of
from deepwell.weights.tokenizer import Tokenizer

Read = tuple[str, str, list[tuple[str, str]]]
"""Reasoning, content, and calls as (name, arguments)."""


class Lacking(Tokenizer):
    """A tokenizer without some of its special tokens."""

    def __init__(self, whole: Tokenizer, *missing: str) -> None:
        self.__dict__.update(whole.__dict__)
        self._special = {text: id for text, id in self._special.items() if text not in missing}
        self._special_ids = frozenset(self._special.values())


def marked(ids: Iterable[int], tokenizer: Tokenizer) -> list[Marked]:
    """Token ids as the engine hands them to a reader; tokens that end an answer are left out."""
    found: list[Marked] = []
    for is_special, run in itertools.groupby(ids, tokenizer.is_special):
        run = list(run)
        found += [id for id in run if id not in tokenizer.eos] if is_special else [tokenizer.decode(run)]
    return found


def written(parts: Sequence[str], tokenizer: Tokenizer) -> list[Marked]:
    """Texts and tokens by spelling, as the engine marks them: a token that the tokenizer lacks comes as text."""
    found: list[Marked] = []
    for part in parts:
        id = tokenizer.special(part)
        mark = None if id is None else tokenizer.mark(id)
        if mark is not None:
            found.append(mark)
        elif found and _is_text(found[-1]):
            found[-1] = f"{found[-1]}{part}"
        else:
            found.append(part)
    return found


def _is_text(part: Marked) -> bool:
    return token_of(part) is None


def read(reader: Reader, pushes: Iterable[Sequence[Marked]]) -> Read:
    """What all pieces come to. No piece may be empty, and arguments need a call that has begun."""
    reasoning, content, calls = "", "", list[tuple[str, str]]()
    for piece in itertools.chain.from_iterable((*map(reader.push, pushes), reader.finish())):
        match piece:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case CallBegin(name):
                calls.append((name, ""))
                text = name
            case CallArguments(text):
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
        assert text
    return reasoning, content, calls


def sent_back(answer: Read, asked: Conversation, format: Format, tokenizer: Tokenizer) -> None:
    """Render what a client sends back: an answer, whatever became of it, with results of its calls. RequestError if it
    is refused."""
    reasoning, content, calls = answer
    made = [Call(name=name, arguments=arguments or "{}", id=str(n)) for n, (name, arguments) in enumerate(calls)]
    said = Message("assistant", (Thought(reasoning), Text(content), *made))
    results = [Message.of("tool", "so", answers=call.id) for call in made]
    more = (*asked.messages, said, *results, Message.of("user", "Go on."))
    render_chat(settle(msgspec.structs.replace(asked, messages=more), format), tokenizer, format)


def cut_at(answer: Sequence[Marked], borders: Iterable[int]) -> Iterator[list[Marked]]:
    """The answer in pushes, cut at places counted in characters and tokens."""
    flat = [char for part in answer for char in (str(part) if _is_text(part) else [part])]
    places = [0, *sorted({border for border in borders if 0 < border < len(flat)}), len(flat)]
    for start, end in itertools.pairwise(places):
        yield list(_joined(flat[start:end]))


def _joined(flat: Sequence[Marked]) -> Iterator[Marked]:
    for is_text, run in itertools.groupby(flat, _is_text):
        parts = list(run)
        yield from ["".join(map(str, parts))] if is_text else parts


def length(answer: Sequence[Marked]) -> int:
    return sum(len(str(part)) if _is_text(part) else 1 for part in answer)
