"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import render_chat
from deepwell.chat.reading import Reader
from deepwell.chat.thinking import ThoughtMeter
from deepwell.engine.types import Delta, FinishReason
from deepwell.server.answers import finish_of, respond
from deepwell.server.body import read_body
from deepwell.server.conversations import conversation_of, texts_of
from deepwell.server.logprobs import TokenBytes, chat_logprobs
from deepwell.server.protocol import ChatRequest
from deepwell.server.replies import (
    CallAnswer,
    CalledFunction,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Finish,
    Head,
    Usage,
    usage_of,
)
from deepwell.server.rules import check_common, max_tokens_of, sampling_of
from deepwell.server.service import Service
from deepwell.server.turn import Turn

Ended = Callable[[Turn], None]


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    asked = await read_body(request, ChatRequest, service.limits.max_body_bytes)
    check_common(asked, service)
    conversation = conversation_of(asked, service.format)

    replay = service.replay

    def render() -> tuple[tuple[int, ...], Reader]:
        rendered = render_chat(conversation, service.tokenizer, service.format)
        return replay.apply(conversation, rendered), service.format.reader(conversation, service.tokenizer)

    prompt, reader = await service.rendered(render, texts_of(conversation), "messages")
    wanted = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    max_tokens = max_tokens_of(wanted, len(prompt), "messages", service)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    turn = Turn(reader, ThoughtMeter(prompt, service.tokenizer), one_call=asked.parallel_tool_calls is False)
    head = service.head(asked.model)
    stream = service.submit(head, prompt, sampling_of(asked, max_tokens, logprobs, ends=service.ends))
    writer = ChatWriter(
        head,
        service.tokenizer.token_bytes,
        turn,
        with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
        usage_chunk=service.limits.usage_chunk,
        ended=lambda turn: replay.keep(conversation, prompt, turn.message, turn.ids),
    )
    return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


class ChatWriter:
    """DeepSeek's order of events: the role, the thought, the content, the calls, and last the finish reason with the
    usage.

    `with_usage` adds a null usage to the earlier events, `usage_chunk` then repeats the usage in an event of its own.
    `ended` is told of a turn that came to its own end.
    """

    def __init__(
        self,
        head: Head,
        token_bytes: TokenBytes,
        turn: Turn,
        *,
        with_usage: bool = False,
        usage_chunk: bool = False,
        ended: Ended = lambda turn: None,
    ) -> None:
        self._head = msgspec.structs.asdict(head)
        self._token_bytes = token_bytes
        self._turn = turn
        self._usage_chunk = with_usage and usage_chunk
        self._no_usage: UnsetType | None = None if with_usage else UNSET
        self._ended = ended
        self._begun = False

    def chunks(self, delta: Delta) -> Iterator[ChatChunk]:
        """See Writer."""
        if not self._begun:
            self._begun = True
            yield self._chunk(ChatChunkChoice(delta=_opening(self._turn.thinks)))
        added, thoughts = self._turn.push(delta)
        logprobs = self._logprobs(delta, thoughts)
        if logprobs and not added:
            added = [ChatDelta(content="")]
        for number, more in enumerate(added):
            yield self._chunk(ChatChunkChoice(delta=more, logprobs=None if number else logprobs))
        if delta.finish_reason is not None:
            yield from self._last(self._finish(delta.finish_reason), self._usage(delta))

    def answer(self, whole: Delta) -> ChatCompletion:
        """See Writer."""
        assert whole.finish_reason is not None
        _, thoughts = self._turn.push(whole)
        usage = self._usage(whole)
        assert usage is not None
        said = self._turn.message
        calls = [
            CallAnswer(index=index, id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for index, call in enumerate(said.calls)
        ]
        message = ChatAnswer(
            content=said.content,
            reasoning_content=UNSET if said.reasoning is None else said.reasoning,
            tool_calls=calls or UNSET,
        )
        choice = ChatChoice(
            message=message,
            logprobs=self._logprobs(whole, thoughts),
            finish_reason=self._finish(whole.finish_reason),
        )
        return ChatCompletion(**self._head, choices=[choice], usage=usage)

    def _finish(self, reason: FinishReason) -> Finish:
        if reason == "stop" and self._turn.whole:
            self._ended(self._turn)
        return "tool_calls" if reason == "stop" and self._turn.calls else finish_of(reason)

    def _usage(self, delta: Delta) -> Usage | None:
        return usage_of(delta.usage, self._turn.reasoning_tokens) if delta.usage else None

    def _logprobs(self, delta: Delta, thoughts: list[bool]) -> ChatLogprobs | None:
        if not delta.logprobs:
            return None
        marked = list(zip(delta.logprobs, thoughts, strict=True))
        thought = chat_logprobs((token for token, thinks in marked if thinks), self._token_bytes)
        spoken = chat_logprobs((token for token, thinks in marked if not thinks), self._token_bytes)
        return ChatLogprobs(content=spoken or UNSET, reasoning_content=thought or UNSET)

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(**self._head, choices=[choice], usage=self._no_usage)

    def _last(self, reason: Finish, usage: Usage | None) -> Iterator[ChatChunk]:
        choice = ChatChunkChoice(delta=_closing(self._turn.thinks), finish_reason=reason)
        yield ChatChunk(**self._head, choices=[choice], usage=usage)
        if self._usage_chunk:
            yield ChatChunk(**self._head, choices=[], usage=usage)


def _opening(thinks: bool) -> ChatDelta:
    if thinks:
        return ChatDelta(role="assistant", content=None, reasoning_content="")
    return ChatDelta(role="assistant", content="")


def _closing(thinks: bool) -> ChatDelta:
    return ChatDelta(content="", reasoning_content=None) if thinks else ChatDelta(content="")
