"""Answers and events of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from deepwell.engine.types import Delta

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str = ""


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """A thought. The signature is the answer's id: nothing is hidden that it would have to protect."""

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    """A call that the model makes; its result comes back in a tool_result block with this id."""

    id: str
    name: str
    input: dict[str, Any] = {}


AnyBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputDetails(msgspec.Struct, frozen=True):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. The prompt is the sum of `input_tokens`, which were computed, and those read from the cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails | UnsetType = UNSET
    service_tier: Literal["standard"] = "standard"


class MessageAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnyBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: MessageAnswer


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: AnyBlock


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class End(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: End
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    pass


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    pass


MessageEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping
"""All events of a stream but `error`, each under its own name."""


class TokenCount(msgspec.Struct, frozen=True):
    """Answer of POST /v1/messages/count_tokens."""

    input_tokens: int


def end_of(delta: Delta, called: bool) -> End:
    """Why an answer ended that is complete, or as long as it may be: by its own limit, or by what a key may pay."""
    if delta.stopped_by is not None:
        return End("stop_sequence", delta.stopped_by)
    if delta.finish_reason != "stop":
        return End("max_tokens", None)
    return End("tool_use" if called else "end_turn", None)
