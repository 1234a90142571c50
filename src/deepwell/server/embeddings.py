"""POST /v1/embeddings: texts as vectors.

An embedding is the model's hidden state at the last token, after the final norm, scaled to length 1. No model here was
trained to give one: it is the state from which the next token is told, and compares texts as well as that does.
"""

from __future__ import annotations

import asyncio
import math
from base64 import b64encode
from collections.abc import Sequence
from contextlib import closing
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import opening
from deepwell.engine.engine import Place, Stream
from deepwell.engine.types import Delta
from deepwell.errors import ContextExceeded, QueueFull, RequestError, shown
from deepwell.server.answers import in_one_piece, joined, note, while_there
from deepwell.server.errors import INTERNAL, ErrorBody, error_body
from deepwell.server.prompts import Prompt, prompt_of
from deepwell.server.service import Service, answer_id, count

MAX_INPUTS = 2048
AT_ONCE = 8
"""Inputs of one request that are in the engine together, if there is room."""
ROOM_SECONDS = 0.05
"""How often is looked for room while there is none."""

ENCODINGS = ("float", "base64")


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings."""

    model: Annotated[
        str | None, Meta(description="a text, one of those listed at /v1/models; the first of them if left out")
    ] = None
    input: Annotated[
        str | list[Any], Meta(description="a text, a list of token ids, or a list of up to 2048 of either")
    ]
    encoding_format: Annotated[
        str | None,
        Meta(description='"float" or "base64", little-endian float32', extra_json_schema={"enum": [*ENCODINGS]}),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="an integer: the width of the model's states, the only one")
    ] = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One input's: a list of numbers, or base64 text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts, as of completions, without an answer."""

    prompt_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


async def embeddings(request: Request) -> Response:
    """Embed each input."""
    service: Service = request.app.state.service
    async with service.admitted(request, EmbeddingRequest) as (asked, place):
        model = service.named(asked.model or None)
        _check(asked, service)
        prompts = await read_inputs(request, inputs_of(asked, service), service)
        embedder = Embedder(request, service, prompts, place)

        async def whole() -> Embeddings:
            deltas = await while_there(asyncio.ensure_future(embedder.run()), request.receive)
            vectors = [worded(embedding_of(delta), asked.encoding_format) for delta in deltas]
            return Embeddings(
                data=[Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)],
                model=model,
                usage=embedding_usage(deltas),
            )

        return await in_one_piece(whole(), embedder, embedder, service.limits.keep_alive_seconds)


def _check(asked: EmbeddingRequest, service: Service) -> None:
    kind, width = asked.encoding_format, service.engine.hidden
    if kind not in (None, *ENCODINGS):
        raise RequestError(
            f"encoding_format {shown(kind)} is unknown; allowed: {', '.join(ENCODINGS)}", "encoding_format"
        )
    if asked.dimensions not in (None, width):
        raise RequestError(
            f"dimensions is {asked.dimensions}; this model's embeddings have {width}, and lose their meaning when cut",
            "dimensions",
        )


def inputs_of(asked: EmbeddingRequest, service: Service) -> list[Prompt]:
    """All inputs of a request, whose ids the engine checks further. Raises RequestError, naming the one at fault."""
    value = asked.input
    if not (isinstance(value, list) and value and isinstance(value[0], str | list)):
        return [prompt_of(value, "input", service)]
    if len(value) > MAX_INPUTS:
        raise RequestError(f"input holds {len(value)} inputs; at most {MAX_INPUTS} are embedded together", "input")
    return [prompt_of(one, f"input[{at}]", service) for at, one in enumerate(value)]


async def read_inputs(request: Request, inputs: Sequence[Prompt], service: Service) -> list[tuple[int, ...]]:
    """Their tokens. Nobody else's marks stand in a text: what spells a special token is plain text.

    Raises what `Service.rendered` does, RequestError for an empty input, and ContextExceeded.
    """
    tokenizer = service.tokenizer

    def render() -> list[tuple[int, ...]]:
        encoded = [tokenizer.encode(one) if isinstance(one, str) else one for one in inputs]
        return [
            (*opening(ids, tokenizer), *ids) if isinstance(one, str) else tuple(ids)
            for one, ids in zip(inputs, encoded, strict=True)
        ]

    texts = [one for one in inputs if isinstance(one, str)]
    prompts = await service.rendered(request.receive, render, texts, "input") if texts else render()
    for at, (one, ids) in enumerate(zip(inputs, prompts, strict=True)):
        where = f"input[{at}]" if len(inputs) > 1 else "input"
        if not one:
            raise RequestError(f"{where} is empty; it needs at least one token", where)
        if len(ids) > service.context:
            raise ContextExceeded(service.context, len(ids), 0, where)
    return prompts


class Embedder:
    """Has the engine read the prompts of one request, a few at once. The first has a place, the others take places as
    they become free."""

    def __init__(self, request: Request, service: Service, prompts: Sequence[tuple[int, ...]], place: Place) -> None:
        """Raises RequestError, OverLimit or EngineStopped."""
        self._request, self._service, self._prompts, self._place = request, service, prompts, place
        self._id = answer_id(request)
        self._few = asyncio.Semaphore(AT_ONCE)
        self._streams: dict[int, Stream] = {}
        count(place, [len(prompt) for prompt in prompts], min(AT_ONCE, len(prompts)))
        self._begin(0, place)

    async def run(self) -> list[Delta]:
        """What came of each prompt. Raises what `joined` does."""
        tasks = [asyncio.ensure_future(self._read(number)) for number in range(len(self._prompts))]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def abort(self) -> None:
        """End all that runs."""
        for stream in self._streams.values():
            stream.abort()

    def failure(self, error: str) -> ErrorBody:
        """See Writer."""
        return error_body(error, INTERNAL)

    async def _read(self, number: int) -> Delta:
        async with self._few:
            if number not in self._streams:
                self._begin(number, await self._room())
            with closing(self._service.metrics.request()) as timer:
                note(self._request, self._streams[number], timer)
                parts = []
                async for delta in self._streams[number]:
                    timer.delta(delta)
                    parts.append(delta)
            return joined(parts)

    def _begin(self, number: int, place: Place) -> None:
        with place:
            id = f"{self._id}-{number}" if number else self._id
            self._streams[number] = self._service.embed(place, id, self._prompts[number])

    async def _room(self) -> Place:
        while True:
            try:
                return self._place.another()
            except QueueFull:
                await asyncio.sleep(ROOM_SECONDS)


def embedding_usage(deltas: Sequence[Delta]) -> EmbeddingUsage:
    """What all of them took."""
    counts = [delta.usage for delta in deltas if delta.usage is not None]
    prompt, hit = sum(one.prompt_tokens for one in counts), sum(one.cached_tokens for one in counts)
    return EmbeddingUsage(
        prompt_tokens=prompt, total_tokens=prompt, prompt_cache_hit_tokens=hit, prompt_cache_miss_tokens=prompt - hit
    )


def embedding_of(delta: Delta) -> NDArray[np.float32]:
    """The state scaled to length 1; the sum of squares is exact, so the same state gives the same bits anywhere."""
    assert delta.state is not None
    state_D = delta.state.astype(np.float64)
    length = math.sqrt(math.fsum((state_D * state_D).tolist()))
    return (state_D / (length or 1.0)).astype(np.float32)


def worded(vector_D: NDArray[np.float32], encoding: str | None) -> list[float] | str:
    """Numbers, or base64 of them as little-endian float32."""
    if encoding == "base64":
        return b64encode(vector_D.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector_D]
