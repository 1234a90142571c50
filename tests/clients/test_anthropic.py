"""The anthropic SDK against /anthropic: messages, streams, tools, counts and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(scripted: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{scripted}/anthropic", api_key="none") as client:
        yield client


def test_a_message(client: anthropic.Anthropic) -> None:
    said = client.messages.create(model="deepwell-test", max_tokens=40, messages=HI)
    assert said.content[-1].type == "text"
    assert said.content[-1].text == "Hello, wörld 🐳."
    assert said.stop_reason == "end_turn"
    assert client.messages.count_tokens(model="deepwell-test", messages=HI).input_tokens > 0


def test_a_stream_with_a_thought(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with client.messages.stream(model="deepwell-test", max_tokens=2048, messages=HI, thinking=thinking) as stream:
        text = "".join(stream.text_stream)
        done = stream.get_final_message()
    assert text == "Hello, wörld 🐳."
    assert [block.type for block in done.content] == ["thinking", "text"]


def test_tools_to_the_end(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "deepwell-test", "max_tokens": 100, "tools": [WEATHER]}
    first = client.messages.create(messages=HI, **asked)
    assert first.stop_reason == "tool_use"
    call: Any = first.content[-1]
    assert call.input == {"city": "Köln"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "cold"}
    messages: Any = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last: Any = client.messages.create(messages=messages, **asked).content[-1]
    assert last.text == "It is cold in Köln."


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="deepwell-test", max_tokens=0, messages=HI)
