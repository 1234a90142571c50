"""POST /v1/completions: texts, token ids, gaps in the middle, echo and log-probabilities."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import numpy as np
import pytest
from serving import CONTEXT, T, client_of, endless, live, make_service, prompt, wait_idle
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


def test_a_raw_prompt_spells_special_tokens() -> None:
    """As in llama.cpp, vLLM and SGLang: editors lay gaps out themselves, and evaluations whole chats."""
    user, assistant = T.special("<｜User｜>"), T.special("<｜Assistant｜>")
    laid_out = "<｜User｜>Hi<｜Assistant｜>"
    assert seen_by(text=laid_out) == (BOS, user, *T.encode("Hi"), assistant)
    begin = T.decode([BOS])
    assert seen_by(text=begin + laid_out) == (BOS, user, *T.encode("Hi"), assistant), "no second begin token"
    assert seen_by(text="Hi" + begin)[-1] == BOS
    assert seen_by(text=laid_out, parse_special=False) == (BOS, *T.encode(laid_out))
    assert seen_by(text="Hi", add_special_tokens=False) == tuple(T.encode("Hi"))
    assert seen_by(text=laid_out, suffix="")[1:3] == (T.special("<｜fim▁begin｜>"), T.encode("<")[0]), "a quoted text"


@pytest.mark.parametrize("texts", [[TEXT, "two", ""], [T.encode("one"), T.encode("two"), IDS]])
def test_several_prompts_are_answered_as_each_alone(texts: list[Any]) -> None:
    fields: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logprobs": 1, "echo": True, "ignore_eos": True}
    alone = [ask(text=text, **fields) for text in texts]
    body = ask(text=texts, **fields)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["choices"] == [one["choices"][0] | {"index": at} for at, one in enumerate(alone)]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert body["usage"][count] == sum(one["usage"][count] for one in alone)


@pytest.mark.parametrize("with_usage", [False, True])
def test_several_prompts_are_streamed_together(client: TestClient, with_usage: bool) -> None:
    texts = ["one", "two", "three"]
    fields: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    whole = client.post(PATHS[0], json=prompt(texts, **fields)).json()
    fields |= {"stream": True, "stream_options": {"include_usage": True}} if with_usage else {"stream": True}
    text = client.post(PATHS[0], json=prompt(texts, **fields)).text
    assert text.endswith("data: [DONE]\n\n")
    chunks = events(text)
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["completion_tokens"] for usage in usages] == [12]
    assert chunks[-1].get("usage"), "once, at the end"
    assert (chunks[-1]["choices"] == []) is with_usage
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for wanted in whole["choices"]:
        mine = [choice for choice in choices if choice["index"] == wanted["index"]]
        assert "".join(choice["text"] for choice in mine) == wanted["text"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]


def test_a_client_that_leaves_ends_all_its_answers() -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=endless, delay=0.005))
    with live(service) as address, httpx.Client(base_url=address) as client:
        body = prompt(["a"] * 5, stream=True, max_tokens=400)
        with client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        wait_idle(service)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json=body | {"stream": False}, timeout=0.2)
        wait_idle(service)


def test_one_broken_answer_breaks_them_all_and_a_full_queue_refuses_them_all() -> None:
    broken = T.encode("!")[0]
    runner = FakeRunner(context=CONTEXT, nan_after=frozenset([broken]), next_token=lambda c: 40)
    service = make_service(runner, max_running=2, max_waiting=1)
    with client_of(service) as client:
        asked = prompt(["a", "!", "b"], max_tokens=40)
        assert client.post("/v1/completions", json=asked).status_code == 500
        assert "error" in events(client.post("/v1/completions", json=asked | {"stream": True}).text)[-1]
        wait_idle(service)
        assert client.post("/v1/completions", json=prompt(["a"] * 3, max_tokens=1)).status_code == 200
        with service.engine.place():
            assert client.post("/v1/completions", json=prompt(["a"] * 3, max_tokens=1)).status_code == 429


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
        ({"text": ["a", 3]}, "prompt[1]", "a text or a list"),
        ({"text": [[1], ["b"]]}, "prompt[1]", "token id"),
        ({"text": ["a"] * 129}, "prompt", "at most 128"),
        ({"text": ["a", [1]], "suffix": "b"}, "suffix", "given as text"),
        ({"text": [1, 320]}, "prompt", "319"),
        ({"text": [1, -1]}, "prompt", "prompt[1]"),
        ({"text": [1, 10**4000]}, "prompt", "prompt[1]"),
        ({"text": [1, True]}, "prompt", "prompt[1]"),
        ({"text": [1, 2.5]}, "prompt", "prompt[1]"),
        ({"text": [1, "a"]}, "prompt", "prompt[1]"),
        ({"text": [1] * (CONTEXT + 1)}, "prompt", str(CONTEXT)),
        ({"text": []}, "prompt", "at least one token"),
        ({"text": [[]]}, "prompt", "at least one token"),
        ({"text": {}}, "prompt", "a text, a list of token ids"),
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
        filled = client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    for refused, param in ((response, "suffix"), (filled, "input_suffix")):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
        assert "no fill-in-the-middle tokens" in refused.json()["error"]["message"]
