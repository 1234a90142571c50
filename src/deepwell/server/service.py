"""What the endpoints share: the engine, the model's names and limits, and how requests enter and leave."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.types import Receive

from deepwell.accounts import Caller, Meter, Platform
from deepwell.chat import Structure, end_ids
from deepwell.chat.formats.base import Format
from deepwell.chat.replay import Replay
from deepwell.engine.engine import NOBODY, AsyncEngine, Place, Stream
from deepwell.engine.types import FinishReason, Request, SamplingParams, ThoughtCounter, Usage
from deepwell.errors import ContextExceeded, ModelUnknown, RequestError, shown
from deepwell.grammar.constraint import Constraint
from deepwell.grammar.source import of_structure
from deepwell.server.answers import while_there
from deepwell.server.body import Bodies, length_of
from deepwell.server.callers import caller_of, check
from deepwell.server.metrics import Metrics
from deepwell.server.replies import Head
from deepwell.server.request_log import record_of
from deepwell.weights.advice import Advice
from deepwell.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepwell.grammar.grammars import Grammars

B = TypeVar("B", bound=msgspec.Struct)
T = TypeVar("T")

IN_LOOP_CHARACTERS = 16_384
"""Longer texts are encoded in a thread, so that other clients do not wait for them."""
VERY_LONG_CHARACTERS = 262_144
"""Longer texts wait for each other, and not for those that are merely long: one of them takes about a second."""
CHARACTERS_PER_TEXT = 64
"""How many characters take as long to encode as it takes to begin with another text."""


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and habits of the HTTP side.

    `max_body_bytes`: longest request body. `keep_alive_seconds`: silence after which a client that waits for its answer
    gets a sign of life.
    `max_tokens`: longest answer where a request does not say, None for the habit of the model's format. `strict`:
    answer as DeepSeek's API does, without what it lacks (see strict.py).
    """

    max_body_bytes: int = 8 << 20
    keep_alive_seconds: float = 5.0
    max_tokens: int | None = None
    strict: bool = False


@dataclass
class Service:
    """A loaded model behind an engine.

    `context` is the longest sequence in tokens, `model` the served name, `format` the prompt format of its chats,
    `chats` whether the model was trained to chat (a base model answers chats too, as best it can), `fingerprint` names
    its weights and layout. `advice` is how it is sampled where a request does not say. `platform` are the accounts,
    None to keep none.
    """

    engine: AsyncEngine
    tokenizer: Tokenizer
    model: str
    context: int
    format: Format
    chats: bool
    aliases: tuple[str, ...] = ()
    limits: ServerLimits = field(default_factory=ServerLimits)
    fingerprint: bytes = b""
    advice: Advice = field(default_factory=Advice)
    platform: Platform | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    stopping: asyncio.Task[None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.engine.tell_ends(self.metrics.ended)
        self.engine.tell_ends(bill)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.engine.stats, self.model)

    @cached_property
    def bodies(self) -> Bodies:
        """Reads what clients send."""
        return Bodies(self.limits.max_body_bytes, spelling=not self.limits.strict)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a chat's answer besides those that end every answer."""
        return end_ids(self.format, self.tokenizer)

    @cached_property
    def replay(self) -> Replay:
        """The turns answered lately."""
        return Replay(self.tokenizer, (*self.tokenizer.ends, *self.ends))

    @cached_property
    def grammars(self) -> Grammars:
        """What answers may have to keep to."""
        from deepwell.grammar.grammars import Grammars  # slow to import, and few servers need it

        return Grammars(self.tokenizer, self.engine.vocab_size, self.ends)

    @property
    def names(self) -> tuple[str, ...]:
        """Every model name that requests may use."""
        return (self.model, *self.aliases)

    def named(self, model: str | None) -> str:
        """The name that an answer to a request for `model` bears. Raises ModelUnknown."""
        if model is None:
            return self.model
        if model not in self.names:
            kind = RequestError if self.limits.strict else ModelUnknown
            raise kind(f"unknown model {shown(model)}; allowed: {', '.join(self.names)}", "model")
        return model

    @cached_property
    def system_fingerprint(self) -> str:
        """Names the model and its layout: equal fingerprints and seeds give equal answers to equal prompt tokens."""
        return "fp_" + hashlib.blake2b(self.fingerprint or self.model.encode(), digest_size=6).hexdigest()

    def head(self, model: str, request: HttpRequest) -> Head:
        """The fields that every part of a new answer repeats."""
        id, now = answer_id(request), int(time.time())
        return Head(id=id, created=now, model=model, system_fingerprint=self.system_fingerprint)

    @asynccontextmanager
    async def admitted(self, request: HttpRequest, kind: type[B]) -> AsyncIterator[tuple[B, Place]]:
        """The body of a request, and a place in the engine, under which all further work on it is done.

        A full server says so before it reads the body. The place is taken when the body is whole, since one that never
        comes must not keep others out. What asks from inside says in the request's state with what `priority`, and as
        what `kind` it is billed. Raises QueueFull, EngineStopped, ClientDisconnect, what `Bodies.kept` does, and what
        keeps the caller from asking: OverLimit, Broke, ModelUnknown, LedgerDown.
        """
        caller = caller_of(request)
        state = request.scope.get("state", {})
        priority, billed_as = state.get("priority", 0), state.get("kind", _kind_of(kind))
        self.engine.check_room(caller.account if caller else NOBODY, priority)
        async with self.bodies.kept(request, kind) as asked:
            record_of(request.scope).model = model = getattr(asked, "model", None)
            if self.platform is not None and caller is not None:
                await check(self.platform, caller, self._billed_as(model), billed_as)
            with self.place(caller, model, billed_as, getattr(asked, "user_id", None), priority) as place:
                yield asked, place

    def place(
        self, caller: Caller | None, model: str | None, kind: str, user: str | None = None, priority: int = 0
    ) -> Place:
        """A place in the engine for a request of a caller, which is metered as one of that `kind` for the `model`.

        `user` is whom it is for, among the caller's own users. Raises QueueFull, OverLimit or EngineStopped. Filling it
        raises what `Platform.open` does.
        """
        platform = self.platform
        if platform is None or caller is None:
            return self.engine.place(priority=priority)

        metered = Metered(platform, caller, self._billed_as(model), kind, user)
        return self.engine.place(caller.account, priority, prepare=metered)

    def _billed_as(self, model: str | None) -> str:
        """The name of the model in the ledger: as it was asked for, if it is one of ours."""
        return model if model in self.names and model else self.model

    async def understood(self, request: HttpRequest, work: Callable[[], T]) -> T:
        """What `work` makes of a request's body, in a thread when the body is long. Raises what `work` does, and
        ClientDisconnect."""
        if length_of(request) <= IN_LOOP_CHARACTERS:
            return work()
        return await while_there(asyncio.to_thread(work), request.receive)

    async def rendered(
        self, receive: Receive, render: Callable[[], T], texts: Sequence[str], param: str, *, chat: bool = False
    ) -> T:
        """What `render` makes out of `texts` for a prompt, in a thread when that is long work or, for a `chat`, runs
        the template of a stranger.

        Raises RequestError, without encoding, for a text that cannot fit the context whatever its tokens,
        ClientDisconnect as soon as `receive` tells that the client has left, and EngineStopped if the turn of a long
        text comes too late.
        """
        characters = sum(map(len, texts))
        short = characters + len(texts) * CHARACTERS_PER_TEXT <= IN_LOOP_CHARACTERS
        if short and not (chat and self.format.foreign):
            return render()
        if short:
            return await while_there(asyncio.get_running_loop().run_in_executor(self._templates, render), receive)
        least = sum(await asyncio.to_thread(lambda: [self.tokenizer.fewest_tokens(text) for text in texts]))
        if least > self.context:
            raise ContextExceeded(self.context, least, 1, param, at_least=True)

        def late() -> T:
            self.engine.check_open()
            return render()

        encoder = self._encoders[characters > VERY_LONG_CHARACTERS]
        work = asyncio.get_running_loop().run_in_executor(encoder, late)
        return await while_there(work, receive)

    @cached_property
    def _encoders(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        """For long texts and for very long ones, a thread each: the processor belongs to the streams that run."""
        return ThreadPoolExecutor(1, "deepwell-encode"), ThreadPoolExecutor(1, "deepwell-encode")

    @cached_property
    def _templates(self) -> ThreadPoolExecutor:
        """For short chats whose template is a stranger's: what long texts take must not keep them waiting."""
        return ThreadPoolExecutor(1, "deepwell-template")

    async def held(self, structure: Structure | None, receive: Receive) -> Callable[[], Constraint | None]:
        """What holds an answer of no conversation to a structure, a new one for each answer. Raises what
        `Grammars.compiled` does."""
        if structure is None:
            return lambda: None
        return (await while_there(self.grammars.compiled(of_structure(structure)), receive)).constraint

    def submit(
        self,
        place: Place,
        id: str,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        constraint: Constraint | None = None,
        after: Stream | None = None,
        thoughts: ThoughtCounter | None = None,
    ) -> Stream:
        """Fill a place; see `Place.submit`. Raises EngineStopped or RequestError at once."""
        request = Request(id=id, prompt=prompt, sampling=sampling, constraint=constraint, thoughts=thoughts)
        return place.submit(request, after)

    def embed(self, place: Place, id: str, prompt: tuple[int, ...]) -> Stream:
        """Fill a place with a prompt whose last state is wanted. Raises EngineStopped or RequestError at once."""
        return place.submit(Request(id=id, prompt=prompt, sampling=SamplingParams(max_tokens=0), embeds=True))

    def submit_alike(
        self,
        places: Sequence[Place],
        id: str,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        begin: int = 0,
        constraint: Callable[[], Constraint | None] = lambda: None,
        thoughts: Callable[[], ThoughtCounter | None] = lambda: None,
    ) -> list[Stream]:
        """Fill places with one question, for different answers to it: the first is the answer that it has alone.

        They are numbered from `begin` on among the answers to request `id`. `constraint` and `thoughts` make one
        for each.
        """
        streams: list[Stream] = []
        for number, place in enumerate(places):
            own = f"{id}-{begin + number}" if begin + number else id
            first = streams[0] if streams else None
            rules = sampling.of_answer(number)
            streams.append(self.submit(place, own, prompt, rules, constraint(), first, thoughts()))
        return streams

    def stop(self) -> asyncio.Task[None]:
        """Take no more requests and end the running ones within the engine's drain time; the same task every time."""
        if self.stopping is None:
            self.stopping = asyncio.create_task(self.engine.stop())
        return self.stopping


class Metered:
    """Gives the requests that fill a client's places their meters (see `AsyncEngine.place`)."""

    def __init__(self, platform: Platform, caller: Caller, model: str, kind: str, user: str | None) -> None:
        self._platform, self._caller, self._model, self._kind = platform, caller, model, kind
        self._scope = caller.scope + (user or "").encode() if caller.scope else b""
        self._counted = False

    def count(self, prompts: Sequence[int], at_once: int) -> None:
        """Count all the requests to come. Raises what `Platform.count` does."""
        self._platform.count(self._caller, prompts, at_once)
        self._counted = True

    def __call__(self, request: Request) -> Request:
        meter = self._platform.open(
            self._caller,
            id=request.id,
            model=self._model,
            kind=self._kind,
            prompt_tokens=len(request.prompt),
            checked=True,
            counted=self._counted,
        )
        return msgspec.structs.replace(request, scope=self._scope, meter=meter)


def count(place: Place, prompts: Sequence[int], at_once: int) -> None:
    """Count what will fill a place, and others of its client, with prompts of so many tokens: all of it is within the
    limits of the key, or none is begun. Raises OverLimit."""
    if isinstance(place.prepare, Metered):
        place.prepare.count(prompts, at_once)


def answer_id(request: HttpRequest) -> str:
    """A new id; what asks from inside may say in the request's state which."""
    return request.scope.get("state", {}).get("answer_id") or str(uuid.uuid4())


def bill(request: Request, usage: Usage, reason: FinishReason) -> None:
    """A request has ended: its meter is told what it used. See OnEnd."""
    if isinstance(request.meter, Meter):
        miss = usage.prompt_tokens - usage.cached_tokens
        request.meter.end(usage.cached_tokens, miss, usage.completion_tokens, usage.reasoning_tokens, reason)


def _kind_of(body: type[msgspec.Struct]) -> str:
    """What the ledger calls a request: CompletionRequest is a completion."""
    return body.__name__.removesuffix("Request").lower()
