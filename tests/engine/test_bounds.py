"""Each bound of sampling is said once: the HTTP API, the command line and the engine refuse the same values."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from deepwell import bounds
from deepwell.bounds import holds, words
from deepwell.cli.commands import GROUPS
from deepwell.engine.types import Request, SamplingParams
from deepwell.engine.validate import check_request
from deepwell.errors import ConfigError, RequestError
from deepwell.server.protocol import SamplingFields
from deepwell.settings import resolve

FIELDS = {
    "temperature": bounds.TEMPERATURE,
    "top_p": bounds.TOP_P,
    "top_k": bounds.TOP_K,
    "min_p": bounds.MIN_P,
    "presence_penalty": bounds.PENALTY,
    "frequency_penalty": bounds.PENALTY,
    "repetition_penalty": bounds.REPETITION_PENALTY,
}


def refusal_of_the_engine(field: str, value: float) -> RequestError | None:
    try:
        sampling = SamplingParams(**{field: value})  # type: ignore[arg-type]
        check_request(Request(id="a", prompt=(1,), sampling=sampling), vocab_size=10, capacity=100)
    except RequestError as error:
        return error
    return None


def api_takes(field: str, value: float) -> bool:
    try:
        msgspec.convert({"model": "m", field: value}, SamplingFields)
    except msgspec.ValidationError:
        return False
    return True


def refusal_of_the_command(field: str, value: float) -> ConfigError | None:
    try:
        resolve(GROUPS, "generate", {"prompt": "x", field: str(value)}, {})
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize("value", [-101, -2.01, -2, -0.01, 0, 0.001, 0.01, 1, 1.01, 2, 2.01, 10, 10.01, 100, math.nan])
@pytest.mark.parametrize("field", FIELDS)
def test_all_three_take_the_same_values(field: str, value: Any) -> None:
    if field == "top_k" and not isinstance(value, int):
        value = round(value) if value == value else -3  # the API takes -1, which is 0 in other servers' words
    bound = FIELDS[field]
    refusals = [refusal_of_the_engine(field, value)]
    if field in GROUPS["generate"].__struct_fields__:
        refusals.append(refusal_of_the_command(field, value))
    if holds(bound, value):
        assert api_takes(field, value)
        assert not any(refusals)
    else:
        assert not api_takes(field, value)
        assert all(words(bound) in str(refusal) for refusal in refusals)


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (bounds.TEMPERATURE, "from 0 to 2"),
        (bounds.TOP_P, "above 0 and up to 1"),
        (bounds.TOP_K, "at least 0"),
        (bounds.SEED, "from 0 to 2^63-1"),
        (bounds.REPETITION_PENALTY, "from 0.01 to 10"),
        (msgspec.Meta(gt=3), "above 3"),
        (msgspec.Meta(le=3), "at most 3"),
        (msgspec.Meta(), ""),
    ],
)
def test_bounds_in_words(bound: msgspec.Meta, said: str) -> None:
    assert words(bound) == said
