"""Response bodies and events of the completion endpoints, in DeepSeek's shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from deepwell.engine.types import FinishReason
from deepwell.engine.types import Usage as TokenCounts
from deepwell.server.errors import INTERNAL, ErrorBody, error_body
from deepwell.weights.advice import Advice

Capability = Literal["completion", "chat", "tools", "thinking", "fim", "embedding"]
Finish = Literal["stop", "length", "tool_calls", "insufficient_system_resource"]


def finish_of(reason: FinishReason) -> Finish:
    """DeepSeek's word for why an answer ended."""
    return "stop" if reason == "stop" else "length" if reason == "length" else "insufficient_system_resource"


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of thoughts, and tokens guessed ahead, by whether they became part of the answer (OpenAI's names)."""

    reasoning_tokens: int | UnsetType = UNSET
    accepted_prediction_tokens: int | UnsetType = UNSET
    rejected_prediction_tokens: int | UnsetType = UNSET


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts; hit and miss split the prompt by what the prefix cache held.

    `completion_tokens_details` is there if the model thought, or tokens were guessed ahead.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


def usage_of(*answers: TokenCounts, reasoning_tokens: int = 0) -> Usage:
    """The counts of all answers as clients read them; `reasoning_tokens` of the completion were thoughts."""
    counts = TokenCounts(*map(sum, zip(*map(msgspec.structs.astuple, answers), strict=True)))
    drafted, accepted = counts.drafted_tokens, counts.accepted_tokens
    details = CompletionDetails(
        reasoning_tokens=reasoning_tokens or UNSET,
        accepted_prediction_tokens=accepted if drafted else UNSET,
        rejected_prediction_tokens=drafted - accepted if drafted else UNSET,
    )
    return Usage(
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        total_tokens=counts.prompt_tokens + counts.completion_tokens,
        prompt_tokens_details=PromptDetails(counts.cached_tokens),
        prompt_cache_hit_tokens=counts.cached_tokens,
        prompt_cache_miss_tokens=counts.prompt_tokens - counts.cached_tokens,
        completion_tokens_details=details if drafted or reasoning_tokens else UNSET,
    )


class TopToken(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopToken]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Every token of the answer once: those of a thought, and those around it, under `reasoning_content`.

    A list without tokens is left out beside the other.
    """

    content: list[ChatToken] | UnsetType = UNSET
    reasoning_content: list[ChatToken] | UnsetType = UNSET


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is JSON text."""

    name: str
    arguments: str


class CallAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model makes; its result is sent back in a tool message with this id."""

    index: int
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning_content` is there if the model thought, `tool_calls` if it calls tools."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallAnswer] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class CallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The first of a call has its id, type and name; later ones add to the arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every chunk of one answer repeats. `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class EventWriter:
    """What the writers of both endpoints share (see Writer): server-sent events without names, and a last `[DONE]`.

    The usage is in the last event of the answer; `with_usage` has it in one more, without choices, as OpenAI does.
    """

    media_type = "text/event-stream"

    def __init__(self, head: Head, *, with_usage: bool = False) -> None:
        self.head = msgspec.structs.asdict(head)
        self.no_usage: UnsetType | None = None if with_usage else UNSET
        self.with_usage = with_usage

    def event(self, data: msgspec.Struct) -> bytes:
        return b"data: " + msgspec.json.encode(data) + b"\n\n"

    def opening(self, number: int = 0) -> Iterable[bytes]:
        return ()

    def ping(self) -> bytes:
        return b": keep-alive\n\n"

    def failed(self, error: str) -> bytes:
        return self.event(self.failure(error))

    def ended(self) -> bytes:
        return b"data: [DONE]\n\n"

    def failure(self, error: str) -> ErrorBody:
        return error_body(error, INTERNAL)


class ChatCompletion(Head, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class ChatChunk(Head, frozen=True, kw_only=True):
    """One event of a streamed chat answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextLogprobs(msgspec.Struct, frozen=True):
    """OpenAI's older shape: four lists with an entry per token. The first token of a prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    index: int = 0
    logprobs: TextLogprobs | None = None
    finish_reason: Finish | None = None


class TextCompletion(Head, frozen=True, kw_only=True):
    """Answer of POST /v1/completions, and each event of a streamed one."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class EmbeddingCard(msgspec.Struct, frozen=True, kw_only=True):
    """What an embedding of the model is, and how many numbers it has."""

    dimensions: int
    state: Literal["last hidden, after the final norm"] = "last hidden, after the final norm"
    pooling: Literal["last token"] = "last token"
    normalized: Literal["l2"] = "l2"
    trained: bool = False


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """`context_length` is in tokens; `capabilities` says what the model was trained for.

    `embedding` says what its embeddings are, where there are any. `sampling` is what its makers advise, and what holds
    where a request does not say; null if they advise nothing.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepwell"
    context_length: int
    capabilities: list[Capability]
    embedding: EmbeddingCard | UnsetType = UNSET
    sampling: Advice | None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
