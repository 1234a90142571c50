"""LlamaIndex's OpenAI-like class: chats, streams, tools and texts."""

from __future__ import annotations

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def weather(city: str) -> str:
    """The weather in a city."""
    return f"cold in {city}"


def model(address: str, **fields: Any) -> OpenAILike:
    name = "deepwell-test" if fields.get("is_chat_model") else "deepwell"
    return OpenAILike(
        model=name, api_base=f"{address}/v1", api_key="none", context_window=1024, max_tokens=64, **fields
    )


def test_chats_whole_and_streamed(scripted: str) -> None:
    llm = model(scripted, is_chat_model=True)
    messages = [ChatMessage(role="user", content="Hi")]
    assert llm.chat(messages).message.content == "Hello, wörld 🐳."
    *_, last = llm.stream_chat(messages)
    assert last.message.content == "Hello, wörld 🐳."


def test_tools(scripted: str) -> None:
    llm = model(scripted, is_chat_model=True, is_function_calling_model=True)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="Weather?")
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather"
    assert call.tool_kwargs == {"city": "Köln"}


def test_texts(embedded: str) -> None:
    assert isinstance(model(embedded).complete("import os").text, str)
