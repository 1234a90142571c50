"""Every bad field is refused with its name, and every good one is taken."""

import math

import pytest

from deepwell.engine.types import Request, SamplingParams
from deepwell.engine.validate import check_request
from deepwell.errors import RequestError


def check(prompt: tuple[int, ...] = (1, 2), **sampling: object) -> None:
    check_request(Request(id="a", prompt=prompt, sampling=SamplingParams(**sampling)), vocab_size=10, capacity=100)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 101.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2**31),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("logit_bias", {10: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("stop", ("x",) * 17),
        ("stop", ("",)),
        ("stop", ("x" * 1025,)),
        ("stop_token_ids", (10,)),
        ("stop_token_ids", (1,) * 1025),
        ("logprobs", 21),
        ("logprobs", -1),
        ("prompt_logprobs", 21),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field.split("_")[0]) as caught:
        check(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("prompt", [(), (10,), (-1,), (1,) * 100])
def test_a_bad_prompt_is_named(prompt: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="prompt") as caught:
        check(prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"max_tokens": 10**12},
        {"temperature": 0.0, "top_k": 10**9, "top_p": 1e-9, "min_p": 1.0},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1, "logprobs": 20, "prompt_logprobs": 0},
        {"stop": ("x" * 1024,) * 16, "stop_token_ids": (0, 9), "logit_bias": {0: -100.0, 9: 100}},
    ],
)
def test_the_edges_are_allowed(sampling: dict) -> None:
    check(**sampling)
