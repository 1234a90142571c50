"""The openai SDK with strict validation: every answer is of its types, and what these do not know is DeepSeek's."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

USAGE = {"usage.prompt_cache_hit_tokens", "usage.prompt_cache_miss_tokens"}
THOUGHT = {"choices.message.reasoning_content"}
CALL = {"choices.message.tool_calls.index"}
STREAM = {"choices.delta.reasoning_content"}
CARD = {"context_length", "capabilities", "embedding", "sampling"}

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def texts(embedded: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedded}/v1", api_key="none", _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def chats(scripted: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted}/v1", api_key="none", _strict_response_validation=True) as client:
        yield client


def unknown(value: Any, path: str = "") -> set[str]:
    """The fields of an answer that the SDK's types do not know."""
    if isinstance(value, list):
        return {name for one in value for name in unknown(one, path)}
    if not isinstance(value, BaseModel):
        return set()
    front = f"{path}." if path else ""
    found = {front + name for name in value.model_extra or {} if not name.startswith("_")}
    for name in type(value).model_fields:
        found |= unknown(getattr(value, name, None), front + name)
    return found


def test_models(texts: openai.OpenAI) -> None:
    cards = list(texts.models.list())
    assert [card.id for card in cards] == ["deepwell"]
    assert unknown(cards) <= CARD
    assert unknown(texts.models.retrieve("deepwell")) <= CARD


def test_chat(chats: openai.OpenAI) -> None:
    whole = chats.chat.completions.create(
        model="deepwell-test",
        messages=HI,
        n=2,
        logprobs=True,
        top_logprobs=2,
        seed=3,
        max_completion_tokens=40,
        extra_body={"thinking": {"type": "enabled"}},
    )
    assert [choice.message.content for choice in whole.choices] == ["Hello, wörld 🐳."] * 2
    assert unknown(whole) == USAGE | THOUGHT | {"choices.logprobs.reasoning_content"}
    plain = chats.chat.completions.create(model="deepwell-test", messages=HI)
    assert unknown(plain) == USAGE


@pytest.mark.parametrize("usage", [False, True])
def test_chat_stream(chats: openai.OpenAI, usage: bool) -> None:
    chunks = list(
        chats.chat.completions.create(
            model="deepwell-test",
            messages=HI,
            stream=True,
            stream_options={"include_usage": usage},
            extra_body={"thinking": {"type": "enabled"}},
        )
    )
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == "Hello, wörld 🐳."
    assert unknown(chunks) == USAGE | STREAM
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_tools_to_the_end(chats: openai.OpenAI) -> None:
    messages = list(HI)
    asked: Any = {"model": "deepwell-test", "tools": [WEATHER]}
    first = chats.chat.completions.create(messages=messages, **asked)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert unknown(first) == USAGE | CALL
    call: Any = (message.tool_calls or [None])[0]
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "cold"}]
    assert chats.chat.completions.create(messages=messages, **asked).choices[0].message.content == "It is cold in Köln."


def test_a_schema_holds(chats: openai.OpenAI) -> None:
    class Colour(BaseModel):
        name: Literal["red", "green"]  # a random model would never end a text
        light: bool

    done = chats.chat.completions.parse(model="deepwell-test", messages=HI, response_format=Colour, seed=3)
    assert isinstance(done.choices[0].message.parsed, Colour)


def test_completions(texts: openai.OpenAI) -> None:
    best = texts.completions.create(model="deepwell", prompt="import os", max_tokens=4, n=2, best_of=3, logprobs=1)
    assert len(best.choices) == 2
    assert unknown(best) == USAGE
    gap = texts.completions.create(model="deepwell", prompt="def f(x):\n", suffix="\n    return y", max_tokens=4)
    assert unknown(gap) == USAGE


def test_embeddings(texts: openai.OpenAI) -> None:
    floats = texts.embeddings.create(model="deepwell", input=["import os", "def f"], encoding_format="float")
    assert unknown(floats) == USAGE
    with openai.OpenAI(base_url=texts.base_url, api_key="none") as lax:  # the SDK's types know no base64
        packed = lax.embeddings.create(model="deepwell", input="import os", encoding_format="base64")
        raw: Any = packed.data[0].embedding
        numbers = list(struct.unpack(f"<{len(floats.data[0].embedding)}f", base64.b64decode(raw)))
        assert numbers == floats.data[0].embedding
        assert lax.embeddings.create(model="deepwell", input="import os").data[0].embedding == numbers


def test_files_and_batches(texts: openai.OpenAI) -> None:
    body = {"model": "deepwell", "prompt": "import os", "max_tokens": 4}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body} for n in range(3)]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = texts.files.create(purpose="batch", file=("requests.jsonl", data))
    assert unknown(file) == set()
    batch = texts.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    assert unknown(batch) == set()
    for _ in range(300):
        batch = texts.batches.retrieve(batch.id)
        if batch.status == "completed":
            break
        time.sleep(0.1)
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 3
    assert batch.output_file_id is not None
    answers = texts.files.content(batch.output_file_id).text.splitlines()
    assert sorted(json.loads(line)["custom_id"] for line in answers) == ["0", "1", "2"]
    assert batch.id in [one.id for one in texts.batches.list(limit=1)]
    assert {one.id for one in texts.files.list()} >= {file.id, batch.output_file_id}
    assert texts.files.delete(file.id).deleted


def test_errors(texts: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        texts.completions.create(model="deepwell", prompt="a", temperature=3)
    assert wrong.value.param == "temperature"
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        texts.models.retrieve("no")
    with pytest.raises(openai.NotFoundError):
        texts.batches.retrieve("batch_" + "0" * 32)
