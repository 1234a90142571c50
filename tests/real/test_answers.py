"""What the model says: as transformers' float32 says it, in turns, around gaps, over a long prompt, in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from recorded import expected
from starlette.testclient import TestClient

from conftest import Loader
from deepwell.bench.perplexity import perplexity, windows_of
from deepwell.options import Dtype
from deepwell.weights.tokenizer import Tokenizer

TEXT = Path(__file__).with_name("plain.txt")
GREEDY = expected()["greedy"]
KL = {"auto": 0.012, "float32": 0.0, "bfloat16": 0.0002, "int8": 0.012, "int4": 0.5}
"""What a dtype may lose against float32, in nats per token."""
SAME_FIRST = {"auto": 0.9, "float32": 1.0, "bfloat16": 0.98, "int8": 0.9, "int4": 0.55}
"""How often it must prefer the same token."""


@pytest.mark.parametrize("prompt", GREEDY)
def test_greedy_texts_in_float32(serve: Callable[[Dtype], TestClient], tokenizer: Tokenizer, prompt: str) -> None:
    check_greedy(serve("float32"), tokenizer, prompt, GREEDY[prompt]["ids"])


@pytest.mark.parametrize("prompt", [prompt for prompt, wanted in GREEDY.items() if wanted["clear"]])
def test_greedy_texts_of_the_file_as_it_is(client: TestClient, tokenizer: Tokenizer, prompt: str) -> None:
    """As far as the choices are clear: inputs of its matrices are rounded to 8 bits."""
    check_greedy(client, tokenizer, prompt, GREEDY[prompt]["ids"][: GREEDY[prompt]["clear"]])


def check_greedy(client: TestClient, tokenizer: Tokenizer, prompt: str, wanted: list[int]) -> None:
    body = {"model": "smollm2", "prompt": prompt, "max_tokens": len(wanted), "temperature": 0}
    answer = ask(client, "completions", body)
    assert answer["choices"][0]["text"] == tokenizer.decode(wanted)
    assert answer["usage"]["prompt_tokens"] == len(tokenizer.encode(prompt))


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_every_dtype_is_the_model(load: Loader, dtype: Dtype) -> None:
    windows = windows_of(load(dtype).tokenizer, TEXT.read_text("utf-8"), 256)
    likeness = perplexity(load(dtype).runner, windows, load("float32").runner).likeness
    assert likeness is not None
    assert likeness.kl <= KL[dtype] + 1e-9
    assert likeness.same_first >= SAME_FIRST[dtype]


def test_a_chat(client: TestClient) -> None:
    assert "Paris" in chat(client, "Name the capital of France.")  # as in float32, and by a lead


def test_a_chat_of_several_turns(client: TestClient) -> None:
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Ferdinand."},
        {"role": "assistant", "content": "Nice to meet you, Ferdinand!"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Ferdinand" in chat(client, turns)


def test_a_needle_at_the_end_of_a_long_prompt(client: TestClient) -> None:
    filler = TEXT.read_text("utf-8") * 6
    question = "The secret word is bluebird. Remember it.\n\nWhat is the secret word?"
    body = {"model": "smollm2", "messages": turns_of(f"{filler}\n\n{question}"), "max_tokens": 24, "temperature": 0}
    answer = ask(client, "chat/completions", body)
    assert answer["usage"]["prompt_tokens"] > 3000
    assert "bluebird" in answer["choices"][0]["message"]["content"].lower()


def test_a_gap_is_refused_for_it_has_no_such_tokens(client: TestClient) -> None:
    body = {"model": "smollm2", "prompt": "def add(a, b):\n", "suffix": "\n    return c", "max_tokens": 8}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "no fill-in-the-middle tokens" in response.json()["error"]["message"]


def turns_of(asked: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return asked if isinstance(asked, list) else [{"role": "user", "content": asked}]


def chat(client: TestClient, asked: str | list[dict[str, str]]) -> str:
    body = {"model": "smollm2", "messages": turns_of(asked), "max_tokens": 32, "temperature": 0}
    answer = ask(client, "chat/completions", body)["choices"][0]
    assert answer["finish_reason"] in ("stop", "length")
    return str(answer["message"]["content"])


def ask(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()
