"""Refusing what cannot be served, before it is queued, with the name of the field at fault."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Meta

from deepwell import bounds
from deepwell.bounds import Bound, holds, words
from deepwell.engine.types import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, Request, SamplingParams
from deepwell.errors import ContextExceeded, RequestError

MAX_STOP_CHARACTERS = bounds.MAX_STOP_CHARACTERS
MAX_LISTED_TOKENS = 1024

_BOUNDS: dict[str, Bound] = {
    "max_tokens": Meta(ge=0),
    "temperature": bounds.TEMPERATURE,
    "top_p": bounds.TOP_P,
    "top_k": bounds.TOP_K,
    "min_p": bounds.MIN_P,
    "presence_penalty": bounds.PENALTY,
    "frequency_penalty": bounds.PENALTY,
    "repetition_penalty": bounds.REPETITION_PENALTY,
    "logprobs": Meta(ge=0, le=MAX_TOP_LOGPROBS),
    "prompt_logprobs": Meta(ge=0, le=MAX_TOP_LOGPROBS),
}
_SEEDS = range(-(2**63), 2**64)
_TOP_KS = range(2**31)


def check_request(request: Request, vocab_size: int, capacity: int) -> None:
    """Raise RequestError unless the request is well-formed and fits.

    `capacity` is the most tokens one sequence may have, prompt and answer together.
    """
    _check_prompt(request, vocab_size, capacity)
    sampling = request.sampling
    for field, bound in _BOUNDS.items():
        value = getattr(sampling, field)
        if value is not None and not holds(bound, value):
            raise RequestError(f"{field} is {value}; it must be {words(bound)}", param=field)
    if sampling.seed is not None and sampling.seed not in _SEEDS:
        raise RequestError(f"seed is {sampling.seed}; it must have 64 bits, from -2^63 to 2^64-1", param="seed")
    if sampling.top_k not in _TOP_KS:
        raise RequestError(f"top_k is {sampling.top_k}; it must be at most 2^31-1", param="top_k")
    if request.embeds and sampling.max_tokens:
        raise RequestError("a request for an embedding has no answer: max_tokens must be 0", param="max_tokens")
    _check_stop(sampling, vocab_size)
    _check_bias(sampling, vocab_size)


def _check_prompt(request: Request, vocab_size: int, capacity: int) -> None:
    if not request.prompt:
        raise RequestError("the prompt is empty; it needs at least one token", param="prompt")
    _check_ids(request.prompt, "prompt", vocab_size)
    room = capacity - (1 if request.sampling.max_tokens else 0)
    if len(request.prompt) > room:
        raise ContextExceeded(capacity, len(request.prompt), request.sampling.max_tokens, "prompt")


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
        if not holds(bounds.LOGIT_BIAS, bias):
            allowed = words(bounds.LOGIT_BIAS)
            raise RequestError(f"logit_bias of token {id} is {bias}; it must be {allowed}", param="logit_bias")


def _check_count(ids: Collection[int], field: str) -> None:
    if len(ids) > MAX_LISTED_TOKENS:
        raise RequestError(f"{field} names {len(ids)} tokens; at most {MAX_LISTED_TOKENS} are allowed", param=field)


def _check_ids(ids: Collection[int], field: str, vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(id for id in ids if not 0 <= id < vocab_size)
        raise RequestError(f"{field} has token id {wrong}; ids go from 0 to {vocab_size - 1}", param=field)
