"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.engine.types import Delta
from deepwell.server.answers import respond
from deepwell.server.conversations import conversation_of
from deepwell.server.logprobs import TokenBytes, chat_logprobs
from deepwell.server.protocol import ChatRequest
from deepwell.server.question import question_of
from deepwell.server.replies import (
    CallAnswer,
    CallDelta,
    CalledFunction,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    EventWriter,
    Finish,
    FunctionDelta,
    Head,
    Usage,
    finish_of,
    usage_of,
)
from deepwell.server.rules import check_common, max_tokens_of, sampling_of
from deepwell.server.service import Service
from deepwell.server.turn import Added, Turn


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    async with service.admitted(request, ChatRequest) as (asked, place):
        model = check_common(asked, service)
        conversation = conversation_of(asked, service.format)
        question = await question_of(request, conversation, service, "messages")
        max_tokens = max_tokens_of(asked, len(question.prompt), "messages", service, question.habit)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        head = service.head(model)
        sampling = sampling_of(asked, service.advice, max_tokens, logprobs, ends=service.ends)
        stream = question.submit(place, head.id, sampling)
        writer = ChatWriter(
            head,
            service.tokenizer.token_bytes,
            question.turn(one_call=asked.parallel_tool_calls is False),
            with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
        )
        return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


class ChatWriter(EventWriter):
    """DeepSeek's order of events: the role, the thought, the content, the calls, and last the finish reason with the
    usage."""

    def __init__(self, head: Head, token_bytes: TokenBytes, turn: Turn, *, with_usage: bool = False) -> None:
        super().__init__(head, with_usage=with_usage)
        self._token_bytes = token_bytes
        self._turn = turn
        self._thought = turn.thinks
        self._calls = 0

    def opening(self) -> Iterator[bytes]:
        """See Writer."""
        silent = ChatDelta(role="assistant", content="")
        thinking = ChatDelta(role="assistant", content=None, reasoning_content="")
        yield self._chunk(thinking if self._turn.thinks else silent)

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        """See Writer."""
        added = self._turn.push(delta)
        logprobs = self._logprobs(added)
        deltas = [self._worded(piece) for piece in added.pieces] or ([ChatDelta(content="")] if logprobs else [])
        for number, more in enumerate(deltas):
            yield self._chunk(more, None if number else logprobs)
        if delta.finish_reason is not None:
            reason, usage = self._end(delta, called=self._calls > 0)
            last = ChatDelta(content="", reasoning_content=None if self._turn.thinks else UNSET)
            choice = ChatChunkChoice(delta=last, finish_reason=reason)
            yield self.event(ChatChunk(**self.head, choices=[choice], usage=None if self.with_usage else usage))
            if self.with_usage:
                yield self.event(ChatChunk(**self.head, choices=[], usage=usage))

    def whole(self, delta: Delta) -> ChatCompletion:
        """See Writer."""
        logprobs = self._logprobs(self._turn.push(delta))
        said = self._turn.message
        reason, usage = self._end(delta, called=bool(said.calls))
        assert usage is not None
        calls = [
            CallAnswer(index=index, id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for index, call in enumerate(said.calls)
        ]
        message = ChatAnswer(
            content=said.content,
            reasoning_content=UNSET if said.reasoning is None else said.reasoning,
            tool_calls=calls or UNSET,
        )
        choice = ChatChoice(message=message, logprobs=logprobs, finish_reason=reason)
        return ChatCompletion(**self.head, choices=[choice], usage=usage)

    def _worded(self, piece: Piece) -> ChatDelta:
        match piece:
            case Reasoning(text):
                self._thought = True
                return ChatDelta(content=None, reasoning_content=text)
            case Content(text):
                return ChatDelta(content=text, reasoning_content=None if self._thought else UNSET)
            case CallBegin(name, id):
                self._calls += 1
                begin = CallDelta(
                    index=self._calls - 1, id=id, type="function", function=FunctionDelta(name=name, arguments="")
                )
                return ChatDelta(tool_calls=[begin])
            case CallArguments(text):
                more = CallDelta(index=self._calls - 1, function=FunctionDelta(arguments=text))
                return ChatDelta(tool_calls=[more])

    def _end(self, delta: Delta, called: bool) -> tuple[Finish, Usage | None]:
        """Why the answer ended, and what it took."""
        assert delta.finish_reason is not None
        called = called and delta.finish_reason == "stop"
        usage = usage_of(delta.usage, reasoning_tokens=self._turn.reasoning_tokens) if delta.usage else None
        return "tool_calls" if called else finish_of(delta.finish_reason), usage

    def _logprobs(self, added: Added) -> ChatLogprobs | None:
        if not (added.thought or added.spoken):
            return None
        return ChatLogprobs(
            content=chat_logprobs(added.spoken, self._token_bytes) or UNSET,
            reasoning_content=chat_logprobs(added.thought, self._token_bytes) or UNSET,
        )

    def _chunk(self, delta: ChatDelta, logprobs: ChatLogprobs | None = None) -> bytes:
        choices = [ChatChunkChoice(delta=delta, logprobs=logprobs)]
        return self.event(ChatChunk(**self.head, choices=choices, usage=self.no_usage))
