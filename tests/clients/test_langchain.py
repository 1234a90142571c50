"""LangChain's OpenAI classes: chats, streams, tools, structured output, texts and embeddings."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"cold in {city}"


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green"]  # a random model would never end a text
    light: bool


def chat(scripted: str, **fields: Any) -> Any:
    return ChatOpenAI(model="deepwell-test", base_url=f"{scripted}/v1", api_key="none", **fields)


def test_chats_whole_and_streamed(scripted: str) -> None:
    model = chat(scripted)
    whole = model.invoke("Hi")
    assert whole.content == "Hello, wörld 🐳."
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in model.stream("Hi")) == "Hello, wörld 🐳."


def test_several_answers(scripted: str) -> None:
    (answers,) = chat(scripted, n=2).generate([[HumanMessage("Hi")]]).generations
    assert [answer.text for answer in answers] == ["Hello, wörld 🐳."] * 2


def test_tools_to_the_end(scripted: str) -> None:
    model = chat(scripted).bind_tools([weather])
    messages: list[Any] = [HumanMessage("Weather?")]
    said = model.invoke(messages)
    (call,) = said.tool_calls
    messages += [said, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert model.invoke(messages).content == "It is cold in Köln."


def test_structured_output(scripted: str) -> None:
    found = chat(scripted, seed=3).with_structured_output(Colour, method="json_schema").invoke("Hi")
    assert isinstance(found, Colour)


def test_texts_and_embeddings(embedded: str) -> None:
    asked: Any = {"model": "deepwell", "base_url": f"{embedded}/v1", "api_key": "none"}
    made = OpenAI(max_tokens=4, **asked).generate(["import os", "def f"])
    assert len(made.generations) == 2
    vectors = OpenAIEmbeddings(check_embedding_ctx_length=False, **asked).embed_documents(["import os", "def f"] * 20)
    assert len(vectors) == 40
    assert vectors[0] == vectors[2] != vectors[1]
