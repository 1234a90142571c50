"""POST /infill: a gap filled in llama.cpp's words, which its editor plugins speak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import fills_gaps, render_fim
from deepwell.engine.types import Delta
from deepwell.errors import RequestError
from deepwell.server.answers import respond
from deepwell.server.protocol import SamplingFields, Tokens
from deepwell.server.replies import EventWriter
from deepwell.server.rules import check_common, max_tokens_of, sampling_of
from deepwell.server.service import Service
from deepwell.server.structure import structure_of

StopType = Literal["eos", "word", "limit", "none"]
STOP_TYPES: dict[str | None, StopType] = {"stop": "eos", "length": "limit"}
"""llama.cpp's words for why an answer ended, where no stop text ended it."""


class Snippet(msgspec.Struct, frozen=True, kw_only=True):
    """Another piece of the project, from the file of that name."""

    text: str
    filename: str = ""


class InfillRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of POST /infill.

    `prompt` is how the middle begins already; with `n_predict` 0, all is only read into the cache. `samplers` names the
    order that is used here anyhow, and is ignored.
    """

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Snippet] | None = None
    prompt: str = ""
    n_predict: Annotated[Tokens | None, Meta(description="an integer; llama.cpp's name of max_tokens")] = None
    samplers: Any = None
    n: Annotated[Annotated[int, Meta(ge=1, le=1)] | None, Meta(description="1: a gap has one answer")] = None


class Infilled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer, and each event of a streamed one; what counts tokens is there at its end."""

    content: str
    stop: bool
    model: str | UnsetType = UNSET
    tokens_predicted: int | UnsetType = UNSET
    tokens_evaluated: int | UnsetType = UNSET
    tokens_cached: int | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET
    stop_type: StopType | UnsetType = UNSET
    stopping_word: str | UnsetType = UNSET


async def infill(request: Request) -> Response:
    """Fill the gap between two texts."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    async with service.admitted(request, InfillRequest) as (asked, place):
        model = check_common(asked, service)
        if not fills_gaps(service.tokenizer):
            raise RequestError("this model has no fill-in-the-middle tokens, so it fills no gaps", "input_suffix")
        asked = _with_limit(asked)
        extra = "".join(f"# {one.filename}\n{one.text}\n" for one in asked.input_extra or ())
        prefix, tokenizer = extra + asked.input_prefix, service.tokenizer

        def render() -> tuple[int, ...]:
            gap = render_fim(prefix, asked.input_suffix, tokenizer)
            return (*gap, *(tokenizer.encode(asked.prompt) if asked.prompt else ()))

        texts = [prefix, asked.input_suffix, asked.prompt]
        ids = await service.rendered(request.receive, render, texts, "input_prefix")
        max_tokens = max_tokens_of(asked, len(ids), "input_prefix", service, empty=True)
        head = service.head(model, request)
        sampling = sampling_of(asked, service.advice, max_tokens, None)
        held = await service.held(structure_of(asked), request.receive)
        stream = service.submit(place, head.id, ids, sampling, held())
        return await respond(
            request, stream, InfillWriter(head), timer, bool(asked.stream), service.limits.keep_alive_seconds
        )


def _with_limit(asked: InfillRequest) -> InfillRequest:
    """The same with `n_predict` read as max_tokens. Raises RequestError if another of its names says otherwise."""
    if asked.n_predict is None:
        return asked
    for name in ("max_tokens", "max_completion_tokens"):
        if (other := getattr(asked, name)) not in (None, asked.n_predict):
            raise RequestError(
                f"{name} is {other} and n_predict is {asked.n_predict}: they mean the same; give one of them",
                "n_predict",
            )
    return msgspec.structs.replace(asked, max_tokens=asked.n_predict)


class InfillWriter(EventWriter):
    """Pieces of content, and a last event that says `stop`."""

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        """See Writer."""
        if delta.text and delta.finish_reason is None:
            yield self.event(Infilled(content=delta.text, stop=False))
        if delta.finish_reason is not None:
            yield self.event(self.whole(delta))

    def ended(self) -> bytes:
        return b""

    def whole(self, delta: Delta) -> Infilled:
        """See Writer."""
        assert delta.usage is not None
        return Infilled(
            content=delta.text,
            stop=True,
            model=self.head["model"],
            tokens_predicted=delta.usage.completion_tokens,
            tokens_evaluated=delta.usage.prompt_tokens,
            tokens_cached=delta.usage.cached_tokens,
            truncated=False,
            stop_type="word" if delta.stopped_by is not None else STOP_TYPES.get(delta.finish_reason, "none"),
            stopping_word=delta.stopped_by or "",
        )
