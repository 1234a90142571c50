"""Turns that the model sampled, put back token by token when a client returns them.

A turn rendered from its text need not have the tokens that were sampled: white space in a call's arguments, or a word
split otherwise. Then nothing that the prefix cache holds of it would be found again. So the sampled ids of a turn are
kept for a while, under everything that was said up to its end. They replace the rendered turn only behind the very
prompt that they were sampled from, so they bring in nothing that a client could not have had from this server before.
A turn that was changed, or whose thoughts the prompt leaves out, is rendered from its text.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import msgspec

from deepwell.chat.conversation import Conversation, Message
from deepwell.chat.reading.marks import END_THINK
from deepwell.weights.tokenizer import Tokenizer

ENTRY_BYTES = 512
"""What an entry weighs besides its token ids."""


class _Turn(msgspec.Struct, frozen=True):
    """A sampled turn: the prompt it answered by length and digest, its thoughts by digest, and its tokens."""

    prompt_tokens: int
    prompt: bytes
    reasoning: bytes
    ids: array[int]

    @property
    def size(self) -> int:
        return ENTRY_BYTES + len(self.ids) * self.ids.itemsize


class Replay:
    """Sampled turns, at most `turns` of them and `size` bytes in all; those not used for longest leave first.

    Any thread may call.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int], turns: int = 4096, size: int = 64 << 20) -> None:
        """`ends` are the tokens that end a turn, in an answer and in a prompt."""
        self._ends = frozenset(ends)
        self._close = tokenizer.special(END_THINK)
        self._special = tokenizer.is_special
        self._most, self._most_size = turns, size
        self._turns: OrderedDict[bytes, _Turn] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def size(self) -> int:
        """Bytes that the kept turns weigh."""
        return self._size

    def keep(self, conversation: Conversation, prompt: Sequence[int], said: Message, ids: Sequence[int]) -> None:
        """Remember that `prompt`, of `conversation`, was answered by `ids`, which were shown as `said`.

        An answer that was cut off is not remembered, nor one that continues a message.
        """
        ends = [at for at, id in enumerate(ids, 1) if id in self._ends]
        if ends != [len(ids)] or conversation.messages[-1].prefix:
            return
        *_, key = _keys((*conversation.messages, said))
        prompt_digest = _Beginning(prompt).digest(len(prompt))
        turn = _Turn(len(prompt), prompt_digest, _digest_text(said.reasoning), array("i", ids[:-1]))
        with self._lock:
            self._drop(key)
            self._turns[key] = turn
            self._size += turn.size
            while len(self._turns) > self._most or self._size > self._most_size:
                self._drop(next(iter(self._turns)))

    def apply(self, conversation: Conversation, prompt: Sequence[int]) -> tuple[int, ...]:
        """`prompt`, rendered from `conversation`, with the turns that are remembered as they were sampled."""
        ids = list(prompt)
        beginning = _Beginning(ids)
        for message, turn in self._remembered(conversation.messages):
            same_thoughts = turn.reasoning == _digest_text(message.reasoning)
            if same_thoughts and beginning.digest(turn.prompt_tokens) == turn.prompt:
                self._replace(ids, turn, bool(message.calls))
        return tuple(ids)

    def _remembered(self, messages: Sequence[Message]) -> Iterator[tuple[Message, _Turn]]:
        for message, key in zip(messages, _keys(messages), strict=True):
            if message.role != "assistant" or message.prefix:
                continue
            with self._lock:
                turn = self._turns.get(key)
                if turn is not None:
                    self._turns.move_to_end(key)
            if turn is not None:
                yield message, turn

    def _replace(self, ids: list[int], turn: _Turn, calls: bool) -> None:
        """Put the sampled turn in place of the rendered one behind the same prompt, if it has the same parts."""
        start = turn.prompt_tokens
        end = next((at for at in range(start, len(ids)) if ids[at] in self._ends), None)
        if end is not None and self._marks(ids[start:end], calls) == self._marks(turn.ids, calls):
            ids[start:end] = turn.ids

    def _marks(self, ids: Iterable[int], calls: bool) -> list[int]:
        """The special tokens of a turn. Those of calls may be missing or doubled: a call's reader is lenient."""
        return [id for id in ids if id == self._close or (not calls and self._special(id))]

    def _drop(self, key: bytes) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._size -= turn.size


def _keys(messages: Iterable[Message]) -> Iterator[bytes]:
    """For each message, what identifies it and all that was said before it, thoughts aside."""
    chain = blake2b(digest_size=16)
    for message in messages:
        calls = [(call.id, call.name, call.arguments) for call in message.calls]
        chain.update(msgspec.json.encode((message.role, message.content, calls, message.answers)))
        yield chain.copy().digest()


class _Beginning:
    """Digests of ever longer beginnings of `ids`, of which each token is read once. What was read must not change."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids, self._read = ids, 0
        self._chain = blake2b(digest_size=16)

    def digest(self, length: int) -> bytes:
        """That of the first `length` tokens; of nothing if a longer beginning was asked for before."""
        if not self._read <= length <= len(self._ids):
            return b""
        self._chain.update(array("i", self._ids[self._read : length]).tobytes())
        self._read = length
        return self._chain.copy().digest()


def _digest_text(text: str | None) -> bytes:
    return blake2b((text or "").encode(), digest_size=16).digest()
