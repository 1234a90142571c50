"""Body of OpenAI's Responses API. Fields that change no answer are not listed, and ignored (store, metadata, ...)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from deepwell.server.protocol import CallId, SamplingFields, Tokens
from deepwell.server.unsupported import off


class ItemPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an item's content; only text."""

    type: str
    text: str | None = None


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was said or done, which its `type` tells: message, reasoning, function_call, custom_tool_call, or
    the output of one of these. A message may leave the type out."""

    type: str = "message"
    role: str | None = None
    content: str | list[ItemPart] | None = None
    encrypted_content: str | None = None
    call_id: CallId | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[ItemPart] | None = None


class InputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the input of a custom tool is like: any text, or one of a grammar, which is said to the model."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "grammar"]})] = "text"
    syntax: str | None = None
    definition: str | None = None


class ItemTool(msgspec.Struct, frozen=True, kw_only=True):
    """What the model may call: a function, a custom tool, whose input is a text, or a namespace of functions (`tools`).
    Tools that run at the server are not supported; web_search is left out."""

    type: str
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$(?!\n)")] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: InputFormat | None = None
    tools: list[ItemTool] | None = None
    defer_loading: Annotated[Any, off()] = None


class ItemToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one tool that must be called."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["function", "custom"]})]
    name: str | None = None


class ReasoningWish(msgspec.Struct, frozen=True, kw_only=True):
    """How long to think; "none" is not to think. Thoughts are shown whole, so there are no summaries of them."""

    effort: str | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of an answer: text, json_object, or json_schema with a `schema`."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "json_object", "json_schema"]})]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextWish(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer's text is like."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, off("medium")] = None


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of POST /v1/responses."""

    input: Annotated[str | list[Item], Meta(description="a text, or a list of items")]
    instructions: Annotated[str | None, Meta(description="a text: what the system says first")] = None
    tools: Annotated[
        list[ItemTool] | None, Meta(description='a list of tools such as {"type": "function", "name": ...}')
    ] = None
    tool_choice: Annotated[
        str | ItemToolChoice | None,
        Meta(description='"none", "auto", "required", or an object such as {"type": "function", "name": ...}'),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="true or false; false shows the first call of an answer only")
    ] = None
    reasoning: Annotated[ReasoningWish | None, Meta(description='an object such as {"effort": "high"}')] = None
    text: Annotated[TextWish | None, Meta(description='an object such as {"format": {"type": "text"}}')] = None
    max_output_tokens: Annotated[Tokens | None, Meta(description="an integer of at least 1")] = None
    include: Annotated[list[str] | None, Meta(description='a list such as ["reasoning.encrypted_content"]')] = None
    metadata: Annotated[dict[str, str] | None, Meta(description="an object of texts")] = None
    user: str | None = None
    n: Annotated[Any, off(1)] = None
    best_of: Annotated[Any, off(1)] = None
    top_logprobs: Annotated[Any, off()] = None
    background: Annotated[Any, off()] = None
    conversation: Annotated[Any, off(instead="input with all items: nothing is stored here")] = None
    previous_response_id: Annotated[Any, off(instead="input with all items: nothing is stored here")] = None
    prompt: Annotated[Any, off(instead="instructions and input")] = None
