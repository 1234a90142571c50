"""Several answers to one question: n and best_of, whole and streamed, reproducible, with the prompt read once."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CONTEXT, MODEL, chat, client_of, make_service, noted, prompt, wait_idle
from starlette.testclient import TestClient
from test_chat_completions import events

from fakes import FakeRunner

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = "A deep well holds clear water. " * 8
"""More than a block of tokens."""


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a model that says whatever its prompt's hash says."""
    with client_of(make_service(FakeRunner(context=CONTEXT), max_running=4, max_waiting=4)) as client:
        yield client


def texts(body: dict[str, Any]) -> list[str]:
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]


def asked(path: str, **fields: Any) -> dict[str, Any]:
    limits = {"max_tokens": 12, "ignore_eos": True, "seed": 7}
    return (chat(LONG, **limits) if path == CHAT else prompt(LONG, **limits)) | fields


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_answers_differ_come_again_and_begin_with_the_one_alone(client: TestClient, path: str) -> None:
    alone = client.post(path, json=asked(path)).json()
    three = client.post(path, json=asked(path, n=3)).json()
    four = client.post(path, json=asked(path, n=4)).json()
    assert texts(three)[:1] == texts(alone)
    assert texts(four)[:3] == texts(three)
    assert len(set(texts(four))) == 4
    usage = four["usage"]
    assert usage["completion_tokens"] == 48
    assert usage["prompt_tokens"] == 4 * alone["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_prompt_is_read_once(path: str) -> None:
    with client_of(make_service(FakeRunner(context=CONTEXT))) as client:
        alone = client.post(path, json=asked(path, max_tokens=1)).json()["usage"]["prompt_tokens"]
    with client_of(make_service(FakeRunner(context=CONTEXT))) as client:
        usage = client.post(path, json=asked(path, n=3)).json()["usage"]
    whole_blocks = (alone - 1) // 64 * 64
    assert whole_blocks > 0
    assert usage["prompt_cache_hit_tokens"] == 2 * whole_blocks


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("with_usage", [False, True])
def test_streams_say_the_same(client: TestClient, path: str, with_usage: bool) -> None:
    whole = client.post(path, json=asked(path, n=3)).json()
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = events(client.post(path, json=asked(path, n=3, stream=True, **options)).text)
    said: dict[int, str] = defaultdict(str)
    ends: dict[int, str] = {}
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    for chunk in chunks:
        assert len(chunk["choices"]) <= 1
        for choice in chunk["choices"]:
            assert choice["index"] not in ends
            if path == CHAT and choice["index"] not in said:
                assert choice["delta"]["role"] == "assistant"
            said[choice["index"]] += choice["text"] if path == TEXT else choice["delta"]["content"]
            if choice["finish_reason"]:
                ends[choice["index"]] = choice["finish_reason"]
    assert [said[index] for index in range(3)] == texts(whole)
    assert ends == dict.fromkeys(range(3), "length")
    assert [usage["completion_tokens"] for usage in usages] == [36]


def test_a_list_of_prompts_has_n_answers_each(client: TestClient) -> None:
    body = client.post(TEXT, json=asked(TEXT, prompt=["One", "Two"], n=2)).json()
    apart = [client.post(TEXT, json=asked(TEXT, prompt=one, n=2)).json() for one in ("One", "Two")]
    assert texts(body) == [text for one in apart for text in texts(one)]


def test_best_of_shows_the_likeliest_and_bills_all(client: TestClient) -> None:
    all_five = client.post(TEXT, json=asked(TEXT, n=5, logprobs=0)).json()
    best = client.post(TEXT, json=asked(TEXT, n=2, best_of=5)).json()

    def mean(choice: dict[str, Any]) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return float(sum(found) / len(found))

    ranked = sorted(all_five["choices"], key=mean, reverse=True)
    assert texts(best) == [choice["text"] for choice in ranked[:2]]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize(
    ("fields", "param"), [({"n": 3, "best_of": 2}, "best_of"), ({"best_of": 2, "stream": True}, "best_of")]
)
def test_best_of_that_cannot_be(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post(TEXT, json=asked(TEXT, **fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_as_many_places_are_taken_or_none(client: TestClient, path: str) -> None:
    refused = client.post(path, json=asked(path, n=9))
    assert refused.status_code == 429
    assert client.post(path, json=asked(path, n=8)).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_followers_of_an_answer_that_fails_end_with_it(path: str) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("broken")

    service = make_service(FakeRunner(context=CONTEXT, fail=fail))
    with client_of(service) as client:
        assert client.post(path, json=asked(path, n=3)).status_code == 500
        assert client.post(path, json=asked(path, n=3, stream=True)).text.count("data: ") == 2
        wait_idle(service)


def test_seeds_are_one_each() -> None:
    service = make_service(FakeRunner(context=CONTEXT))
    seeds: list[int | None] = []
    noted(service.engine, lambda request: seeds.append(request.sampling.seed))
    with client_of(service) as client:
        client.post(CHAT, json=asked(CHAT, n=16, model=MODEL))
        assert seeds[0] == 7
        assert len(set(seeds)) == 16
        seeds.clear()
        client.post(CHAT, json=asked(CHAT, n=2, seed=None))
        assert seeds == [None, None]


def test_each_answer_keeps_to_the_format_by_itself(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2, 3]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = client.post(CHAT, json=asked(CHAT, n=4, response_format=form, ignore_eos=False, max_tokens=40)).json()
    assert all(json.loads(text)["a"] in (1, 2, 3) for text in texts(body))
