"""POST /v1/completions: texts, token ids, gaps in the middle, echo and log-probabilities."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from serving import CONTEXT, T, client_of, make_service, prompt
from starlette.testclient import TestClient
from test_chat_completions import events

from fakes import EOS, FakeRunner, reply

TEXT = "A deep well, 深 🐳"
IDS = T.encode(TEXT)
BOS = T.bos
PATHS = ["/v1/completions", "/completions", "/beta/completions"]


def ask(runner: FakeRunner | None = None, **fields: Any) -> dict[str, Any]:
    """One answer of a fresh server."""
    with client_of(make_service(runner)) as client:
        response = client.post("/v1/completions", json=prompt(**fields))
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body


def seen_by(**fields: Any) -> tuple[int, ...]:
    """The token ids that the model is given."""
    runner = FakeRunner(context=CONTEXT)
    ask(runner, **fields, max_tokens=1)
    return tuple(runner.batches[0].tokens_T.tolist())


@pytest.mark.parametrize("path", PATHS)
def test_whole_completion(client: TestClient, path: str) -> None:
    response = client.post(path, json=prompt(TEXT, max_tokens=3, temperature=0, ignore_eos=True))
    body = response.json()
    assert body["object"] == "text_completion"
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens"] == 1 + len(IDS)
    assert body["usage"]["completion_tokens"] == 3


def test_prompts_reach_the_model_as_they_should() -> None:
    assert seen_by(text=TEXT) == (BOS, *IDS)
    assert seen_by(text=[TEXT]) == (BOS, *IDS)
    assert seen_by(text=IDS) == tuple(IDS)
    assert seen_by(text=[IDS]) == tuple(IDS)
    assert seen_by(text="") == (BOS,)


def test_suffix_fills_the_middle() -> None:
    begin, hole, end = (T.special(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end"))
    expected = (BOS, begin, *T.encode("def f("), hole, *T.encode("): pass"), end)
    assert seen_by(text="def f(", suffix="): pass") == expected


def test_the_end_of_the_text_ends_it_where_the_tokenizer_names_the_end_of_a_turn() -> None:
    coder = copy.copy(T)
    coder.eos = (T.special("<|EOT|>") or 0,)
    hole_filled, end = T.special("<｜fim▁end｜>") or 0, T.special(EOS) or 0
    said = reply((*T.encode("first"), end, *T.encode("second")), after=hole_filled)
    service = make_service(FakeRunner(context=CONTEXT, next_token=said), tokenizer=coder)
    with client_of(service) as client:
        body = client.post("/v1/completions", json=prompt("a", suffix="b", max_tokens=20)).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("first", "stop")


def test_stream_agrees_with_the_whole() -> None:
    fields: dict[str, Any] = {"max_tokens": 8, "seed": 1, "ignore_eos": True, "echo": True, "logprobs": 2}
    whole = ask(text=TEXT, **fields)
    with client_of(make_service()) as client:
        response = client.post("/v1/completions", json=prompt(TEXT, stream=True, **fields))
    *chunks, last = events(response.text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert last["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}
    assert last["usage"] == whole["usage"]
    for name, values in whole["choices"][0]["logprobs"].items():
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        assert [value for part in parts if part for value in part[name]] == values
    assert all("usage" not in chunk for chunk in chunks)


def test_include_usage_brings_it_once_in_a_last_chunk_without_choices(client: TestClient) -> None:
    asked = prompt(TEXT, max_tokens=2, stream=True, stream_options={"include_usage": True})
    *earlier, last = events(client.post("/v1/completions", json=asked).text)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in earlier)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


def test_echo_scores_the_prompt_like_the_model() -> None:
    """Log-probabilities against a log-softmax of our own, over the fake model's logits."""
    runner = FakeRunner(context=CONTEXT)
    (choice,) = ask(runner, text=TEXT, echo=True, logprobs=3, max_tokens=0)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == TEXT
    assert choice["finish_reason"] == "length"
    assert len(logprobs["tokens"]) == len(IDS)
    assert BOS is not None
    context = [BOS]
    for index, id in enumerate(IDS):
        logits_V = runner.logits_of(tuple(context)).astype(np.float64)
        logprobs_V = logits_V - np.log(np.exp(logits_V).sum())
        assert logprobs["token_logprobs"][index] == pytest.approx(logprobs_V[id], abs=1e-5)
        top = logprobs["top_logprobs"][index]
        assert max(top.values()) == pytest.approx(logprobs_V.max(), abs=1e-5)
        assert 3 <= len(top) <= 4
        context.append(id)


def test_echoed_token_ids_have_no_logprob_for_the_first() -> None:
    (choice,) = ask(text=IDS, echo=True, logprobs=0, max_tokens=2, ignore_eos=True)["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(isinstance(value, float) for value in logprobs["token_logprobs"][1:])
    assert [list(top) for top in logprobs["top_logprobs"][1:]] == [[token] for token in logprobs["tokens"][1:]]
    assert len(logprobs["tokens"]) == len(IDS) + 2


def test_text_offsets_point_into_the_text() -> None:
    logprobs = ask(text=TEXT, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert TEXT[offset:].startswith(token)
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_echo_without_logprobs() -> None:
    (choice,) = ask(text=TEXT, echo=True, max_tokens=0)["choices"]
    assert choice == {"text": TEXT, "index": 0, "logprobs": None, "finish_reason": "length"}
    (choice,) = ask(text="def f(", suffix=")", echo=True, max_tokens=0)["choices"]
    assert choice["text"] == "def f("


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "echo: true"),
        ({"text": ["a", "b"]}, "prompt", "one request for each"),
        ({"text": [[1], [2]]}, "prompt", "one request for each"),
        ({"text": [1, 320]}, "prompt", "319"),
        ({"text": [1, -1]}, "prompt", "prompt[1]"),
        ({"text": [1, 10**4000]}, "prompt", "prompt[1]"),
        ({"text": [1, True]}, "prompt", "prompt[1]"),
        ({"text": [1, 2.5]}, "prompt", "prompt[1]"),
        ({"text": [1, "a"]}, "prompt", "prompt[1]"),
        ({"text": [1] * (CONTEXT + 1)}, "prompt", str(CONTEXT)),
        ({"text": []}, "prompt", "at least one token"),
        ({"text": [[]]}, "prompt", "at least one token"),
        ({"text": {}}, "prompt", "a text or a list of token ids"),
        ({"text": [1], "suffix": "x"}, "suffix", "as text"),
        ({"suffix": "x", "echo": True, "logprobs": 1}, "logprobs", "suffix"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": True}, "logprobs", "from 0 to 20"),
        ({"echo": "yes"}, "echo", "true or false"),
    ],
)
def test_bad_completion_requests(client: TestClient, fields: dict[str, Any], param: str, words: str) -> None:
    response = client.post("/v1/completions", json=prompt(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param or error["param"].startswith(param)
    assert words in error["message"]


def test_suffix_needs_a_model_that_fills() -> None:
    service = make_service()
    special = T.special
    service.tokenizer = type("Lacking", (), {"__getattr__": lambda _, name: getattr(T, name)})()
    service.tokenizer.special = lambda text: None if "fim" in text else special(text)  # type: ignore[method-assign]
    with client_of(service) as client:
        response = client.post("/v1/completions", json=prompt("a", suffix="b"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"
