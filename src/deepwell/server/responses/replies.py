"""Answers and events of OpenAI's Responses API, in DeepSeek's order and with its fields."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from deepwell.engine.types import Usage as TokenCounts
from deepwell.server.responses.protocol import InputFormat

Status = Literal["in_progress", "completed", "incomplete"]
Phase = Literal["commentary", "final_answer"]


class ReasoningPart(msgspec.Struct, frozen=True, tag="reasoning_text"):
    text: str


class OutputPart(msgspec.Struct, frozen=True, kw_only=True, tag="output_text"):
    annotations: list[Any] = []
    logprobs: list[Any] = []
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    """A thought. `encrypted_content`, where it was asked for, is the thought for clients that send it back alone."""

    id: str
    status: Status
    content: list[ReasoningPart] = []
    summary: list[Any] = []
    encrypted_content: str | UnsetType = UNSET


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    """What the model says; a commentary if it calls tools then."""

    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    phase: Phase = "final_answer"
    content: list[OutputPart] = []


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    """A call that the model makes; its result comes back as a function_call_output with the `call_id`."""

    id: str
    status: Status
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str = ""


class CustomCallItem(msgspec.Struct, frozen=True, kw_only=True, tag="custom_tool_call"):
    """A call of a custom tool; its result comes back as a custom_tool_call_output with the `call_id`."""

    id: str
    status: Status
    call_id: str
    name: str
    input: str = ""


AnyItem = ReasoningItem | MessageItem | CallItem | CustomCallItem


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class ReasoningDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    code: Literal["server_error"]
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class FunctionEcho(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class CustomEcho(msgspec.Struct, frozen=True, kw_only=True, tag="custom", omit_defaults=True):
    name: str
    description: str | None = None
    format: InputFormat | None = None


class NamespaceEcho(msgspec.Struct, frozen=True, kw_only=True, tag="namespace"):
    name: str
    description: str
    tools: list[FunctionEcho]


ToolEcho = FunctionEcho | CustomEcho | NamespaceEcho


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/responses: what was asked again, and the items of the answer. Nothing of it is stored."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status | Literal["failed"] = "in_progress"
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[AnyItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any]
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[ToolEcho]
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class Created(msgspec.Struct, frozen=True, kw_only=True, tag="response.created"):
    response: ResponseAnswer
    sequence_number: int


class InProgress(msgspec.Struct, frozen=True, kw_only=True, tag="response.in_progress"):
    response: ResponseAnswer
    sequence_number: int


class Completed(msgspec.Struct, frozen=True, kw_only=True, tag="response.completed"):
    response: ResponseAnswer
    sequence_number: int


class CutOff(msgspec.Struct, frozen=True, kw_only=True, tag="response.incomplete"):
    response: ResponseAnswer
    sequence_number: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="response.failed"):
    response: ResponseAnswer
    sequence_number: int


class ItemAdded(msgspec.Struct, frozen=True, kw_only=True, tag="response.output_item.added"):
    item: AnyItem
    output_index: int
    sequence_number: int


class ItemDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.output_item.done"):
    item: AnyItem
    output_index: int
    sequence_number: int


class PartAdded(msgspec.Struct, frozen=True, kw_only=True, tag="response.content_part.added"):
    content_index: int = 0
    item_id: str
    output_index: int
    part: ReasoningPart | OutputPart
    sequence_number: int


class PartDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.content_part.done"):
    content_index: int = 0
    item_id: str
    output_index: int
    part: ReasoningPart | OutputPart
    sequence_number: int


class ReasoningDelta(msgspec.Struct, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    content_index: int = 0
    delta: str
    item_id: str
    output_index: int
    sequence_number: int


class ReasoningDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    content_index: int = 0
    item_id: str
    output_index: int
    sequence_number: int
    text: str


class OutputDelta(msgspec.Struct, frozen=True, kw_only=True, tag="response.output_text.delta"):
    content_index: int = 0
    delta: str
    item_id: str
    logprobs: list[Any] = []
    output_index: int
    sequence_number: int


class OutputDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.output_text.done"):
    content_index: int = 0
    item_id: str
    logprobs: list[Any] = []
    output_index: int
    sequence_number: int
    text: str


class ArgumentsDelta(msgspec.Struct, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str
    item_id: str
    output_index: int
    sequence_number: int


class ArgumentsDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    arguments: str
    item_id: str
    name: str
    output_index: int
    sequence_number: int


class CustomInputDelta(msgspec.Struct, frozen=True, kw_only=True, tag="response.custom_tool_call_input.delta"):
    delta: str
    item_id: str
    output_index: int
    sequence_number: int


class CustomInputDone(msgspec.Struct, frozen=True, kw_only=True, tag="response.custom_tool_call_input.done"):
    input: str
    item_id: str
    output_index: int
    sequence_number: int


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    """In place of an answer that fails before it begins."""

    code: Literal["server_error"] = "server_error"
    message: str
    param: None = None
    sequence_number: int


ResponseEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | ReasoningDelta
    | ReasoningDone
    | OutputDelta
    | OutputDone
    | ArgumentsDelta
    | ArgumentsDone
    | CustomInputDelta
    | CustomInputDone
    | PartDone
    | ItemDone
    | Completed
    | CutOff
    | Failed
    | ErrorEvent
)
"""All events of a stream, each under its own name."""


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


def usage_of(counts: TokenCounts, reasoning_tokens: int) -> ResponseUsage:
    """The counts as clients of this API read them."""
    return ResponseUsage(
        input_tokens=counts.prompt_tokens,
        input_tokens_details=InputDetails(counts.cached_tokens),
        output_tokens=counts.completion_tokens,
        output_tokens_details=ReasoningDetails(reasoning_tokens),
        total_tokens=counts.prompt_tokens + counts.completion_tokens,
    )
