"""What clients and operators see of speculation."""

from __future__ import annotations

from serving import chat, client_of, endless, make_service, prompt
from test_service_pages import metrics_of

from fakes import FakeRunner

TOKENS = 20


def test_guesses_are_counted_in_the_usage_and_the_metrics() -> None:
    """A model that says one token for ever: once it has said it a few times, every guess is right."""
    with client_of(make_service(FakeRunner(next_token=endless), speculate="lookup", draft_tokens=4)) as client:
        whole = client.post("/v1/chat/completions", json=chat(max_tokens=TOKENS)).json()
        text = client.post("/v1/completions", json=prompt(max_tokens=TOKENS)).json()
        seen = metrics_of(client)
    found = [answer["usage"]["completion_tokens_details"] for answer in (whole, text)]
    assert all(answer["usage"]["completion_tokens"] == TOKENS for answer in (whole, text))
    accepted = sum(details["accepted_prediction_tokens"] for details in found)
    rejected = sum(details["rejected_prediction_tokens"] for details in found)
    assert 20 < accepted < 2 * TOKENS
    assert seen["deepwell:accepted_tokens_total", "lookup"] == accepted
    assert seen["deepwell:draft_tokens_total", "lookup"] == accepted + rejected
    assert seen["deepwell:draft_tokens_total", "mtp"] == seen["deepwell:accepted_tokens_total", "mtp"] == 0


def test_answers_without_guesses_have_no_details() -> None:
    with client_of(make_service(FakeRunner(next_token=endless))) as client:
        usage = client.post("/v1/chat/completions", json=chat(max_tokens=TOKENS)).json()["usage"]
    assert "completion_tokens_details" not in usage
