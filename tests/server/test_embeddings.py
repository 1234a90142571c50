"""POST /v1/embeddings: what is embedded, how it is worded, many inputs at once, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import CONTEXT, MODEL, T, client_of, make_service, wait_idle
from starlette.testclient import TestClient

from deepwell.chat import opening
from deepwell.server import ServerLimits
from fakes import FakeRunner

PATH = "/v1/embeddings"


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of(make_service(FakeRunner(context=CONTEXT), max_running=4, max_waiting=4)) as client:
        yield client


def embedded(client: TestClient, value: Any, **fields: Any) -> list[Any]:
    body = client.post(PATH, json={"model": MODEL, "input": value, **fields}).json()
    assert body["object"] == "list"
    assert body["model"] == MODEL
    assert [one["index"] for one in body["data"]] == list(range(len(body["data"])))
    assert {one["object"] for one in body["data"]} == {"embedding"}
    return [one["embedding"] for one in body["data"]]


def unit(position: int, token: int) -> list[float]:
    """The stand-in's state of a token, scaled."""
    state = np.array([position, token], np.float64)
    return [float(x) for x in (state / np.linalg.norm(state)).astype(np.float32)]


def ids_of(text: str) -> tuple[int, ...]:
    ids = T.encode(text)
    return (*opening(ids, T), *ids)


def test_a_text_is_the_state_of_its_last_token(client: TestClient) -> None:
    ids = ids_of("A deep well")
    (vector,) = embedded(client, "A deep well")
    assert vector == pytest.approx(unit(len(ids) - 1, ids[-1]), abs=1e-7)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert embedded(client, list(ids)) == [vector]


def test_lists_of_texts_and_of_token_ids(client: TestClient) -> None:
    texts = ["A", "deep well", "Größe 🐳"]
    apart = [vector for text in texts for vector in embedded(client, text)]
    assert embedded(client, texts) == apart
    assert embedded(client, [list(ids_of(text)) for text in texts]) == apart


def test_more_inputs_than_places_are_read_in_turns(client: TestClient) -> None:
    texts = [f"text {number}" for number in range(60)]
    body = client.post(PATH, json={"input": texts}).json()
    assert len(body["data"]) == 60
    assert [one["embedding"] for one in body["data"]] == [v for t in texts for v in embedded(client, t)]
    assert body["usage"]["prompt_tokens"] == sum(len(ids_of(text)) for text in texts)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"]


def test_base64_is_the_same_numbers(client: TestClient) -> None:
    (floats,) = embedded(client, "A deep well", encoding_format="float")
    (text,) = embedded(client, "A deep well", encoding_format="base64", dimensions=2)
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == floats


def test_what_spells_a_special_token_is_text(client: TestClient) -> None:
    body = client.post(PATH, json={"input": "<｜User｜>"}).json()
    assert body["usage"]["prompt_tokens"] > 2


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["a", ""]}, "input[1]", "empty"),
        ({"input": [[5], []]}, "input[1]", "empty"),
        ({"input": ["a", 3]}, "input[1]", "text"),
        ({"input": [5, "a"]}, "input", "token id"),
        ({"input": {"a": 1}}, "input", "list"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": [320]}, "prompt", "319"),
        ({"input": ["a", "b " * CONTEXT]}, "input[1]", "maximum context length"),
        ({"input": "a", "dimensions": 1}, "dimensions", "2"),
        ({"input": "a", "dimensions": 0}, "dimensions", "integer"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({}, "input", "missing"),
    ],
)
def test_what_is_refused(client: TestClient, fields: dict[str, Any], param: str, says: str) -> None:
    answer = client.post(PATH, json=fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_model_that_is_not_there(client: TestClient) -> None:
    assert client.post(PATH, json={"model": "no", "input": "a"}).status_code == 404


def test_a_failing_engine_is_an_error_and_leaks_nothing() -> None:
    def fail(_: object) -> None:
        raise RuntimeError("broken")

    service = make_service(FakeRunner(context=CONTEXT, fail=fail))
    with client_of(service) as client:
        assert client.post(PATH, json={"input": ["a"] * 20}).status_code == 500
        wait_idle(service)


def test_a_late_answer_keeps_the_connection_alive() -> None:
    limits = ServerLimits(keep_alive_seconds=0.02)
    with client_of(make_service(FakeRunner(context=CONTEXT, delay=0.1), limits=limits)) as client:
        answer = client.post(PATH, json={"input": ["a", "b"]})
        assert answer.text.startswith("\n")
        assert len(answer.json()["data"]) == 2


def test_the_models_card_says_what_an_embedding_is(client: TestClient) -> None:
    card = client.get(f"/v1/models/{MODEL}").json()
    assert "embedding" in card["capabilities"]
    assert card["embedding"] == {
        "dimensions": 2,
        "state": "last hidden, after the final norm",
        "pooling": "last token",
        "normalized": "l2",
        "trained": False,
    }
