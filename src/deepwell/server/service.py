"""What the endpoints share: the engine, the model's names and limits, and how requests enter and leave."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import msgspec

from deepwell.chat import detect, end_ids, find_format
from deepwell.chat.formats.base import Format
from deepwell.chat.replay import Replay
from deepwell.engine.engine import AsyncEngine, Stream
from deepwell.engine.types import Request, SamplingParams
from deepwell.errors import RequestError
from deepwell.server.metrics import Metrics
from deepwell.server.replies import Head
from deepwell.weights.tokenizer import Tokenizer

T = TypeVar("T")

IN_LOOP_CHARACTERS = 16_384
"""Longer texts are encoded in a thread, so that other clients do not wait for them."""
CHARACTERS_PER_TEXT = 64
"""How many characters take as long to encode as it takes to begin with another text."""


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and habits of the HTTP side.

    `max_body_bytes`: longest request body. `keep_alive_seconds`: silence after which a stream gets a comment line.
    `default_max_tokens`: longest answer when the request does not say. `usage_chunk`: with `include_usage`, send the
    usage once more in a last chunk without choices, for clients that follow OpenAI to the letter.
    `shutdown_seconds`: how long open answers may take to end after the engine's own drain time.
    """

    max_body_bytes: int = 8 << 20
    keep_alive_seconds: float = 5.0
    default_max_tokens: int = 4096
    usage_chunk: bool = False
    shutdown_seconds: int = 30


@dataclass
class Service:
    """A loaded model behind an engine.

    `context` is the longest sequence in tokens, `model` the served name, `chats` whether the model was trained to
    chat (a base model answers chats too, as best it can), `fingerprint` names its weights and layout.
    """

    engine: AsyncEngine
    tokenizer: Tokenizer
    model: str
    context: int
    aliases: tuple[str, ...] = ()
    chats: bool = True
    chat_format: str | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    fingerprint: bytes = b""
    created: int = field(default_factory=lambda: int(time.time()))
    stopping: asyncio.Task[None] | None = field(default=None, init=False)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.engine.stats, self.model)

    @cached_property
    def format(self) -> Format:
        """The prompt format of chats: the one named, or else the one that the tokenizer shows."""
        return find_format(self.chat_format, self.tokenizer) if self.chat_format else detect(self.tokenizer)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a chat's answer besides those that end every answer."""
        return end_ids(self.format, self.tokenizer)

    @cached_property
    def replay(self) -> Replay:
        """The turns answered lately."""
        return Replay(self.tokenizer, (*self.tokenizer.eos, *self.ends))

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name that requests may use."""
        return (self.model, *self.aliases)

    @cached_property
    def system_fingerprint(self) -> str:
        """Names the model and its layout: equal fingerprints and seeds give equal answers."""
        return "fp_" + hashlib.blake2b(self.fingerprint or self.model.encode(), digest_size=6).hexdigest()

    def head(self, model: str) -> Head:
        """The fields that every part of a new answer repeats."""
        return Head(
            id=str(uuid.uuid4()), created=int(time.time()), model=model, system_fingerprint=self.system_fingerprint
        )

    async def rendered(self, render: Callable[[], T], texts: Sequence[str], param: str) -> T:
        """What `render` makes out of `texts` for a prompt, in a thread when that is long work.

        Raises RequestError, without encoding, for a text that cannot fit the context whatever its tokens.
        """
        characters = sum(map(len, texts))
        if characters + len(texts) * CHARACTERS_PER_TEXT <= IN_LOOP_CHARACTERS:
            return render()
        least = characters // self._longest_token
        if least > self.context:
            raise RequestError(f"{param} has at least {least} tokens, more than the context of {self.context}", param)
        return await asyncio.to_thread(render)

    @cached_property
    def _longest_token(self) -> int:
        """Characters in the longest token of the vocabulary, at most."""
        return max(1, *(len(self.tokenizer.token_bytes(id)) for id in range(self.tokenizer.vocab_size)))

    def submit(self, head: Head, prompt: tuple[int, ...], sampling: SamplingParams) -> Stream:
        """Hand a request to the engine. Raises QueueFull, EngineStopped or RequestError at once."""
        return self.engine.submit(Request(id=head.id, prompt=prompt, sampling=sampling))

    def stop(self) -> asyncio.Task[None]:
        """Take no more requests and end the running ones within the engine's drain time; the same task every time."""
        if self.stopping is None:
            self.stopping = asyncio.create_task(self.engine.stop())
        return self.stopping
