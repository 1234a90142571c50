"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import Conversation, render_chat
from deepwell.engine.types import Delta
from deepwell.server.answers import finish_of, respond
from deepwell.server.body import read_body
from deepwell.server.logprobs import TokenBytes, chat_logprobs
from deepwell.server.protocol import ChatRequest
from deepwell.server.replies import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    Finish,
    Head,
    Usage,
    usage_of,
)
from deepwell.server.rules import check_chat, check_common, max_tokens_of, messages_of, sampling_of
from deepwell.server.service import Service


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    asked = await read_body(request, ChatRequest, service.limits.max_body_bytes)
    check_common(asked, service)
    check_chat(asked)
    messages = messages_of(asked)
    render = partial(render_chat, Conversation(messages=tuple(messages)), service.tokenizer, service.chat_format)
    prompt = await service.tokens(render, [message.content for message in messages], "messages")
    wanted = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    max_tokens = max_tokens_of(wanted, len(prompt), "messages", service)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    head = service.head(asked.model)
    stream = service.submit(head, prompt, sampling_of(asked, max_tokens, logprobs))
    with_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    writer = ChatWriter(head, service.tokenizer.token_bytes, with_usage, service.limits.usage_chunk)
    return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


class ChatWriter:
    """DeepSeek's order of events: the role, the content, and last the finish reason with the usage.

    `with_usage` adds a null usage to the earlier events, `usage_chunk` then repeats the usage in an event of its own.
    """

    def __init__(self, head: Head, token_bytes: TokenBytes, with_usage: bool, usage_chunk: bool) -> None:
        self._head = msgspec.structs.asdict(head)
        self._token_bytes = token_bytes
        self._usage_chunk = with_usage and usage_chunk
        self._no_usage: UnsetType | None = None if with_usage else UNSET
        self._begun = False

    def chunks(self, delta: Delta) -> Iterator[ChatChunk]:
        """See Writer."""
        if not self._begun:
            self._begun = True
            yield self._chunk(ChatChunkChoice(delta=ChatDelta(role="assistant")))
        if delta.text or delta.logprobs:
            logprobs = chat_logprobs(delta.logprobs, self._token_bytes) if delta.logprobs else None
            yield self._chunk(ChatChunkChoice(delta=ChatDelta(content=delta.text), logprobs=logprobs))
        if delta.finish_reason is not None:
            yield from self._last(finish_of(delta.finish_reason), usage_of(delta.usage) if delta.usage else None)

    def answer(self, whole: Delta) -> ChatCompletion:
        """See Writer."""
        assert whole.finish_reason is not None
        assert whole.usage is not None
        logprobs = chat_logprobs(whole.logprobs, self._token_bytes) if whole.logprobs else None
        message = ChatAnswer(content=whole.text)
        choice = ChatChoice(message=message, logprobs=logprobs, finish_reason=finish_of(whole.finish_reason))
        return ChatCompletion(**self._head, choices=[choice], usage=usage_of(whole.usage))

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(**self._head, choices=[choice], usage=self._no_usage)

    def _last(self, reason: Finish, usage: Usage | None) -> Iterator[ChatChunk]:
        choice = ChatChunkChoice(delta=ChatDelta(), finish_reason=reason)
        yield ChatChunk(**self._head, choices=[choice], usage=usage)
        if self._usage_chunk:
            yield ChatChunk(**self._head, choices=[], usage=usage)
