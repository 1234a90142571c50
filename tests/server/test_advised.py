"""How a model's makers would have it sampled is what a request gets that does not say."""

from __future__ import annotations

from typing import Any

import pytest
from serving import chat, client_of, make_service, noted, prompt

from deepwell.weights.advice import Advice


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (0.6, 0.95, 20, 0.1, 1.05)),
        ({"temperature": None}, (0.6, 0.95, 20, 0.1, 1.05)),
        (
            {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1},
            (0.0, 1.0, 0, 0.0, 1.0),
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_advice_stands_in_for_what_is_not_said(path: str, asked: dict[str, Any], wanted: tuple[float, ...]) -> None:
    service = make_service()
    service.advice = Advice(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.05)
    got: list[tuple[float, ...]] = []

    def note(request: Any) -> None:
        rules = request.sampling
        got.append((rules.temperature, rules.top_p, rules.top_k, rules.min_p, rules.repetition_penalty))

    noted(service.engine, note)
    body = chat(max_tokens=1, **asked) if "chat" in path else prompt(max_tokens=1, **asked)
    with client_of(service) as client:
        assert client.post(path, json=body).status_code == 200
    assert got == [wanted]
