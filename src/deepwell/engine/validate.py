"""Refusing what cannot be served, before it is queued, with the name of the field at fault."""

from __future__ import annotations

import math
from collections.abc import Collection

from deepwell.engine.types import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, Request, SamplingParams
from deepwell.errors import RequestError

MAX_STOP_CHARACTERS = 1024
MAX_LISTED_TOKENS = 1024

_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (0, math.inf),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, math.inf),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "seed": (-(2**63), 2**64 - 1),
    "logprobs": (0, MAX_TOP_LOGPROBS),
    "prompt_logprobs": (0, MAX_TOP_LOGPROBS),
}


def check_request(request: Request, vocab_size: int, capacity: int) -> None:
    """Raise RequestError unless the request is well-formed and fits.

    `capacity` is the most tokens one sequence may have, prompt and answer together.
    """
    _check_prompt(request, vocab_size, capacity)
    sampling = request.sampling
    for field, (low, high) in _RANGES.items():
        value = getattr(sampling, field)
        # Written so that NaN is refused too.
        if value is not None and not low <= value <= high:
            allowed = f"from {low} to {high}" if high < math.inf else f"at least {low}"
            raise RequestError(f"{field} is {value}; it must be {allowed}", param=field)
    if sampling.top_p == 0.0:
        raise RequestError("top_p is 0; it must be above 0 and at most 1", param="top_p")
    _check_stop(sampling, vocab_size)
    _check_bias(sampling, vocab_size)


def _check_prompt(request: Request, vocab_size: int, capacity: int) -> None:
    if not request.prompt:
        raise RequestError("the prompt is empty; it needs at least one token", param="prompt")
    _check_ids(request.prompt, "prompt", vocab_size)
    room = capacity - (1 if request.sampling.max_tokens else 0)
    if len(request.prompt) > room:
        raise RequestError(
            f"the prompt has {len(request.prompt)} tokens; at most {room} fit, since prompt and answer together may "
            f"have {capacity}",
            param="prompt",
        )


def _check_stop(sampling: SamplingParams, vocab_size: int) -> None:
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise RequestError(f"{len(sampling.stop)} stop texts; at most {MAX_STOP_STRINGS} are allowed", param="stop")
    if not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise RequestError(f"a stop text must have 1 to {MAX_STOP_CHARACTERS} characters", param="stop")
    _check_count(sampling.stop_token_ids, "stop_token_ids")
    _check_ids(sampling.stop_token_ids, "stop_token_ids", vocab_size)


def _check_bias(sampling: SamplingParams, vocab_size: int) -> None:
    _check_count(sampling.logit_bias, "logit_bias")
    _check_ids(sampling.logit_bias, "logit_bias", vocab_size)
    for id, bias in sampling.logit_bias.items():
        if not -100.0 <= bias <= 100.0:
            raise RequestError(f"logit_bias of token {id} is {bias}; it must be from -100 to 100", param="logit_bias")


def _check_count(ids: Collection[int], field: str) -> None:
    if len(ids) > MAX_LISTED_TOKENS:
        raise RequestError(f"{field} names {len(ids)} tokens; at most {MAX_LISTED_TOKENS} are allowed", param=field)


def _check_ids(ids: Collection[int], field: str, vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(id for id in ids if not 0 <= id < vocab_size)
        raise RequestError(f"{field} has token id {wrong}; ids go from 0 to {vocab_size - 1}", param=field)
