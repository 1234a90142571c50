"""Bodies of Anthropic's Messages API. Fields that are not listed are ignored (cache_control, service_tier, ...)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from deepwell import bounds
from deepwell.bounds import words
from deepwell.server.protocol import MAX_INT, CallId, StopStrings, Tokens
from deepwell.server.unsupported import Unsupported, off


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message. Which fields it has depends on its `type`: text, thinking, tool_use or tool_result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: CallId | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: CallId | None = None
    content: str | list[Block] | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A message: of the user, who also brings the results of calls, of the assistant, or a system text in between."""

    role: Annotated[str, Meta(extra_json_schema={"enum": ["user", "assistant", "system"]})]
    content: str | list[Block]


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model may call; `input_schema` is the JSON schema of an object."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$(?!\n)")]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Annotated[Any, off()] = None
    input_examples: Annotated[Any, off()] = None
    allowed_callers: Annotated[Any, off(["direct"])] = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to call a tool: `type` auto, any, tool (with its `name`) or none."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingWish(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to think. `display` "omitted" does not show the thought. Budgets are ignored, as DeepSeek does."""

    type: str
    display: Annotated[str | None, Meta(extra_json_schema={"enum": ["summarized", "omitted"]})] = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of an answer: a JSON document of that schema."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["json_schema"]})]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long to think, and what shape the answer has."""

    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """For whom, among your users, you ask: any text."""

    user_id: str | None = None


class CountRequest(Unsupported, frozen=True, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    model: Annotated[
        str | None, Meta(description="a name listed at /v1/models, or any that begins with claude-; may be left out")
    ] = None
    messages: Annotated[
        list[Said], Meta(min_length=1, description="a list of at least one message with role and content")
    ]
    system: Annotated[str | list[Block] | None, Meta(description="a text or a list of text blocks")] = None
    tools: Annotated[
        list[Described] | None,
        Meta(
            description='a list of tools such as {"name": ..., "input_schema": {"type": "object"}}, with names of 1 to '
            "128 letters, digits, _ and -"
        ),
    ] = None
    tool_choice: Annotated[
        Choice | None, Meta(description='an object such as {"type": "auto"}; types: auto, any, tool, none')
    ] = None
    thinking: Annotated[
        ThinkingWish | None,
        Meta(description='an object such as {"type": "enabled"}; types: enabled, disabled, adaptive'),
    ] = None
    output_config: Annotated[OutputConfig | None, Meta(description='an object such as {"effort": "high"}')] = None
    container: Annotated[Any, off()] = None
    mcp_servers: Annotated[Any, off()] = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """Body of POST /v1/messages."""

    metadata: Annotated[Metadata | None, Meta(description='an object such as {"user_id": "..."}')] = None
    max_tokens: Annotated[Tokens | None, Meta(description="an integer of at least 1")] = None
    stop_sequences: Annotated[StopStrings | None, Meta(description="a list of texts that end the answer")] = None
    stream: Annotated[bool | None, Meta(description="true or false")] = None
    temperature: Annotated[
        Annotated[float, bounds.TEMPERATURE] | None, Meta(description=f"a number {words(bounds.TEMPERATURE)}")
    ] = None
    top_p: Annotated[Annotated[float, bounds.TOP_P] | None, Meta(description=f"a number {words(bounds.TOP_P)}")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT)] | None, Meta(description="an integer; 0 and -1 keep all tokens")
    ] = None

    @property
    def user_id(self) -> str | None:
        """For whom the caller asks, as in chat completions."""
        return None if self.metadata is None else self.metadata.user_id
