"""The openai SDK against /v1/responses: answers, streams, tools, shapes and what is not kept, strictly validated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

MODEL = "deepwell-test"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


class Verdict(pydantic.BaseModel):
    yes: bool


@pytest.fixture
def client(scripted: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted}/v1", api_key="none", _strict_response_validation=True) as client:
        yield client


def test_an_answer(client: openai.OpenAI) -> None:
    said = client.responses.create(model=MODEL, input="Hi", instructions="Be brief.", metadata={"a": "b"})
    assert said.output_text == "Hello, wörld 🐳."
    assert said.status == "completed"
    assert said.metadata == {"a": "b"}


def test_a_stream_with_a_thought_and_tools_to_the_end(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "tools": [WEATHER], "reasoning": {"effort": "high"}}
    with client.responses.stream(input="Hi", **asked) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done"} <= kinds
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call: Any = first.output[-1]
    assert call.arguments == '{"city": "Köln"}'
    before = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "cold"}
    last = client.responses.create(input=[{"role": "user", "content": "Hi"}, *before, result], **asked)
    assert last.output_text == "It is cold in Köln."


def test_a_shape(client: openai.OpenAI) -> None:
    said = client.responses.parse(model=MODEL, input="Hi", text_format=Verdict, max_output_tokens=300)
    assert isinstance(said.output_parsed, Verdict)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="stores no responses"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
