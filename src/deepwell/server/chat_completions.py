"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.engine.types import Delta, FinishReason
from deepwell.engine.types import Usage as TokenCounts
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
from deepwell.server.service import Service, count
from deepwell.server.strict import strict_chat, strict_sampling, usual
from deepwell.server.together import enough, respond_together
from deepwell.server.turn import Added, Turn


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    strict, format = service.limits.strict, service.format
    async with service.admitted(request, ChatRequest) as (asked, place):
        asked = strict_chat(asked, format, request) if strict else asked
        model = check_common(asked, service)
        timers = [service.metrics.request() for _ in range(asked.n or 1)]
        conversation = await service.understood(request, lambda: conversation_of(asked, service.format))
        question = await question_of(request, conversation, service, "messages", answers=len(timers))
        habit = usual(format, question.thinks, conversation.effort) if strict else question.habit
        max_tokens = max_tokens_of(asked, len(question.prompt), "messages", service, habit)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        head = service.head(model, request)
        sampling = sampling_of(asked, service.advice, max_tokens, logprobs, ends=service.ends)
        sampling = strict_sampling(sampling, question.thinks, bool(asked.tools), format) if strict else sampling
        with enough(place, len(timers)) as places:
            count(place, [len(question.prompt)] * len(places), len(places))
            streams = question.submit_alike(places, head.id, sampling)
        writer = ChatWriter(
            head,
            service.tokenizer.token_bytes,
            [question.turn(asked.parallel_tool_calls is False, number=number) for number in range(len(timers))],
            with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
        )
        streamed, silence = bool(asked.stream), service.limits.keep_alive_seconds
        return await respond_together(request, streams, writer, timers, streamed, silence)


class ChatWriter(EventWriter):
    """DeepSeek's order of events: the role, the thought, the content, the calls, and last the finish reason with the
    usage. Several answers, each of a turn and in its own choice, share one usage."""

    def __init__(self, head: Head, token_bytes: TokenBytes, turns: Sequence[Turn], *, with_usage: bool = False) -> None:
        super().__init__(head, with_usage=with_usage)
        self._answers = [WordedAnswer(turn, token_bytes, index) for index, turn in enumerate(turns)]
        self._counts: list[TokenCounts] = []

    def opening(self, number: int = 0) -> Iterator[bytes]:
        """See ManyWriter."""
        yield self._chunk(self._answers[number].opening(), self.no_usage)

    def pieces(self, delta: Delta, number: int = 0) -> Iterator[bytes]:
        """See ManyWriter."""
        answer = self._answers[number]
        for choice in answer.pieces(delta):
            yield self._chunk(choice, self.no_usage)
        if delta.finish_reason is not None:
            self._counts += [delta.usage] if delta.usage is not None else []
            answer.ended = True
            ended = all(answer.ended for answer in self._answers)
            usage = self._usage(self._counts) if ended else self.no_usage
            last = answer.last(delta.finish_reason)
            yield self._chunk(last, None if self.with_usage else usage)
            if ended and self.with_usage:
                yield self.event(ChatChunk(**self.head, choices=[], usage=usage))

    def whole(self, delta: Delta) -> ChatCompletion:
        """See Writer."""
        return self.wholes([delta])

    def wholes(self, deltas: Sequence[Delta]) -> ChatCompletion:
        """See ManyWriter."""
        choices = [answer.whole(delta) for answer, delta in zip(self._answers, deltas, strict=True)]
        usage = self._usage([delta.usage for delta in deltas if delta.usage is not None])
        return ChatCompletion(**self.head, choices=choices, usage=usage)

    def _usage(self, counts: Sequence[TokenCounts]) -> Usage:
        return usage_of(*counts, reasoning_tokens=sum(answer.turn.reasoning_tokens for answer in self._answers))

    def _chunk(self, choice: ChatChunkChoice, usage: Usage | UnsetType | None) -> bytes:
        return self.event(ChatChunk(**self.head, choices=[choice], usage=usage))


class WordedAnswer:
    """One answer in DeepSeek's words, the choice number `index`; `ended` once its last piece is out."""

    def __init__(self, turn: Turn, token_bytes: TokenBytes, index: int) -> None:
        self.turn, self.ended = turn, False
        self._token_bytes, self._index = token_bytes, index
        self._thought = turn.thinks
        self._calls = 0

    def opening(self) -> ChatChunkChoice:
        """The role."""
        silent = ChatDelta(role="assistant", content="")
        thinking = ChatDelta(role="assistant", content=None, reasoning_content="")
        return self._choice(thinking if self.turn.thinks else silent)

    def pieces(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        """What a delta adds."""
        added = self.turn.push(delta)
        logprobs = self._logprobs(added)
        deltas = [self._worded(piece) for piece in added.pieces] or ([ChatDelta(content="")] if logprobs else [])
        for number, more in enumerate(deltas):
            yield self._choice(more, None if number else logprobs)

    def last(self, reason: FinishReason) -> ChatChunkChoice:
        """Why the answer ended."""
        last = ChatDelta(content="", reasoning_content=None if self.turn.thinks else UNSET)
        return ChatChunkChoice(index=self._index, delta=last, finish_reason=_finish(reason, called=self._calls > 0))

    def whole(self, delta: Delta) -> ChatChoice:
        """All of it."""
        assert delta.finish_reason is not None
        logprobs = self._logprobs(self.turn.push(delta))
        said = self.turn.message
        calls = [
            CallAnswer(index=index, id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for index, call in enumerate(said.calls)
        ]
        message = ChatAnswer(
            content=said.content,
            reasoning_content=UNSET if said.reasoning is None else said.reasoning,
            tool_calls=calls or UNSET,
        )
        reason = _finish(delta.finish_reason, called=bool(said.calls))
        return ChatChoice(index=self._index, message=message, logprobs=logprobs, finish_reason=reason)

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

    def _logprobs(self, added: Added) -> ChatLogprobs | None:
        if not (added.thought or added.spoken):
            return None
        return ChatLogprobs(
            content=chat_logprobs(added.spoken, self._token_bytes) or UNSET,
            reasoning_content=chat_logprobs(added.thought, self._token_bytes) or UNSET,
        )

    def _choice(self, delta: ChatDelta, logprobs: ChatLogprobs | None = None) -> ChatChunkChoice:
        return ChatChunkChoice(index=self._index, delta=delta, logprobs=logprobs)


def _finish(reason: FinishReason, called: bool) -> Finish:
    return "tool_calls" if called and reason == "stop" else finish_of(reason)
