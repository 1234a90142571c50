"""Rules that one field's type cannot say: names, roles, pairs of fields, and what fits the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from deepwell.engine.types import SamplingParams
from deepwell.errors import ContextExceeded, RequestError
from deepwell.server.protocol import SamplingFields
from deepwell.server.service import Service
from deepwell.server.unsupported import check_supported
from deepwell.weights.advice import Advice

N = TypeVar("N", int, float)


def check_common(asked: SamplingFields, service: Service) -> str:
    """The name of the model asked for, once fields and streaming options are allowed; the engine checks token ids.

    Raises RequestError.
    """
    check_supported(asked)
    if asked.stream_options is not None and not asked.stream:
        raise RequestError("stream_options is only allowed with stream: true", "stream_options")
    return service.named(asked.model or None)


def max_tokens_of(
    asked: SamplingFields,
    prompt: int,
    param: str,
    service: Service,
    habit: int | None = None,
    *,
    empty: bool = False,
) -> int:
    """How many tokens the answer to a prompt of `prompt` tokens, given as `param`, may have.

    `habit` is how many it is given where neither the request nor the server says; None for all that fit. An
    answer may be `empty` where reading the prompt is of use alone. Raises RequestError if two fields differ,
    ContextExceeded if the answer has no room.
    """
    wanted = _wanted(asked, empty)
    room = service.context - prompt
    if prompt == 0:
        raise RequestError("the prompt must have at least one token", param)
    if room < 0 or (room == 0 and wanted != 0):
        raise ContextExceeded(service.context, prompt, 1 if wanted is None else wanted, param)
    if wanted is None:
        return min(room, service.limits.max_tokens or habit or room)
    if wanted > room and service.limits.strict:
        raise ContextExceeded(service.context, prompt, wanted, "max_tokens", f"max_tokens can be at most {room} here.")
    return min(wanted, room)


def _wanted(asked: SamplingFields, empty: bool) -> int | None:
    """The longest answer asked for, by whichever name; None if that is left to the server."""
    one, other = asked.max_tokens, asked.max_completion_tokens
    if one is not None and other is not None and one != other:
        raise RequestError(
            f"max_tokens is {one} and max_completion_tokens is {other}: they mean the same; give one of them",
            "max_completion_tokens",
        )
    wanted = other if one is None else one
    if wanted == 0 and not (asked.echo or empty):
        raise RequestError(
            "max_tokens must be at least 1; 0 is only allowed at /infill, and at /v1/completions with echo: true",
            "max_tokens",
        )
    return None if wanted == -1 else wanted


def sampling_of(
    asked: SamplingFields,
    advice: Advice,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    ends: Collection[int] = (),
) -> SamplingParams:
    """The request's sampling rules; what it leaves out is as `advice` says, or else neutral.

    `ends` are more tokens that end the answer.
    """
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    top_k = None if asked.top_k is None else max(0, asked.top_k)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_first(asked.temperature, advice.temperature, 1.0),
        top_p=_first(asked.top_p, advice.top_p, 1.0),
        top_k=_first(top_k, advice.top_k, 0),
        min_p=_first(asked.min_p, advice.min_p, 0.0),
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=_first(asked.repetition_penalty, advice.repetition_penalty, 1.0),
        logit_bias=asked.logit_bias or {},
        seed=None if asked.seed == -1 else asked.seed,
        stop=tuple(filter(None, stop)),
        stop_token_ids=(*(asked.stop_token_ids or ()), *(() if asked.ignore_eos else ends)),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _first(asked: N | None, advised: N | None, neutral: N) -> N:
    """The first that is given."""
    return next(value for value in (asked, advised, neutral) if value is not None)
