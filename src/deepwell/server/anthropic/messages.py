"""POST /v1/messages and /v1/messages/count_tokens, also under /anthropic."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.engine.types import Delta
from deepwell.errors import EngineStopped
from deepwell.server.answers import STOPPED, respond
from deepwell.server.anthropic.conversation import conversation_of, input_of, returned
from deepwell.server.anthropic.errors import AnthropicError, worded
from deepwell.server.anthropic.models import named
from deepwell.server.anthropic.protocol import CountRequest, MessagesRequest
from deepwell.server.anthropic.replies import (
    AnyBlock,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageAnswer,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputDetails,
    Ping,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    TokenCount,
    ToolUseBlock,
    end_of,
)
from deepwell.server.errors import JsonResponse
from deepwell.server.protocol import SamplingFields
from deepwell.server.question import question_of
from deepwell.server.rules import max_tokens_of, sampling_of
from deepwell.server.service import Service
from deepwell.server.turn import Turn
from deepwell.server.unsupported import check_supported


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    async with service.admitted(request, MessagesRequest) as (asked, place):
        model = named(asked.model, service)
        check_supported(asked)
        conversation = await service.understood(request, lambda: conversation_of(asked, service.format))
        question = await question_of(request, conversation, service, "messages")
        rules = _sampling(asked)
        max_tokens = max_tokens_of(rules, len(question.prompt), "messages", service, question.habit)
        id = service.head(model, request).id
        sampling = sampling_of(rules, service.advice, max_tokens, None, ends=service.ends)
        stream = question.submit(place, id, sampling)
        one_call = asked.tool_choice is not None and bool(asked.tool_choice.disable_parallel_tool_use)
        writer = MessagesWriter(
            id,
            model,
            question.turn(one_call, returned),
            prompt_tokens=len(question.prompt),
            shows_thoughts=asked.thinking is None or asked.thinking.display != "omitted",
        )
        return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    service: Service = request.app.state.service
    async with service.bodies.kept(request, CountRequest) as asked:
        named(asked.model, service)
        check_supported(asked)
        conversation = await service.understood(request, lambda: conversation_of(asked, service.format))
        question = await question_of(request, conversation, service, "messages")
        return JsonResponse(TokenCount(len(question.prompt)))


def _sampling(asked: MessagesRequest) -> SamplingFields:
    """The same wishes in the words of chat completions."""
    return SamplingFields(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop=asked.stop_sequences,
        max_tokens=asked.max_tokens,
    )


class MessagesWriter:
    """An answer in blocks that begin, grow and end, one after the other, each event under its name (see Writer)."""

    media_type = "text/event-stream"

    def __init__(self, id: str, model: str, turn: Turn, *, prompt_tokens: int, shows_thoughts: bool = True) -> None:
        self._id, self._model, self._turn = id, model, turn
        self._prompt_tokens, self._shows_thoughts = prompt_tokens, shows_thoughts
        self._begun = False
        self._blocks = self._calls = 0
        self._open: AnyBlock | None = None

    def opening(self) -> Iterator[bytes]:
        """Nothing: the first event says what was cached, which the first piece knows."""
        return iter(())

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        """See Writer."""
        added = self._turn.push(delta)
        if not self._begun:
            self._begun = True
            start = MessageAnswer(id=self._id, model=self._model, content=[], usage=self._usage(delta))
            yield _event(MessageStart(start))
            if self._turn.thinks:
                yield from self._begin(ThinkingBlock())
        for piece in added.pieces:
            yield from self._piece(piece)
        if delta.finish_reason is None:
            return
        yield from self._close()
        if delta.finish_reason == "abort":
            yield _error(worded(STOPPED, 503))
            return
        yield _event(MessageDelta(end_of(delta, self._calls > 0), self._usage(delta)))
        yield _event(MessageStop())

    def ping(self) -> bytes:
        return _event(Ping())

    def failed(self, error: str) -> bytes:
        return _error(self.failure(error))

    def ended(self) -> bytes:
        return b""

    def whole(self, delta: Delta) -> MessageAnswer:
        """See Writer. Raises EngineStopped for an answer that was cut off: there is no word for it."""
        self._turn.push(delta)
        if delta.finish_reason == "abort":
            raise EngineStopped(STOPPED)
        said = self._turn.message
        content: list[AnyBlock] = []
        if said.reasoning is not None:
            content.append(ThinkingBlock(said.reasoning if self._shows_thoughts else "", self._id))
        if said.content:
            content.append(TextBlock(said.content))
        content += [ToolUseBlock(call.id, call.name, input_of(call.arguments)) for call in said.calls]
        end = end_of(delta, bool(said.calls))
        return MessageAnswer(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=end.stop_reason,
            stop_sequence=end.stop_sequence,
            usage=self._usage(delta),
        )

    def failure(self, error: str) -> AnthropicError:
        return worded(error, 500)

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        match piece:
            case Reasoning(text):
                if not isinstance(self._open, ThinkingBlock):
                    yield from self._begin(ThinkingBlock())
                if self._shows_thoughts:
                    yield self._grown(ThinkingDelta(text))
            case Content(text):
                if not isinstance(self._open, TextBlock):
                    yield from self._begin(TextBlock())
                yield self._grown(TextDelta(text))
            case CallBegin(name, id):
                self._calls += 1
                yield from self._begin(ToolUseBlock(id, name))
            case CallArguments(text):
                yield self._grown(InputDelta(text))

    def _begin(self, block: AnyBlock) -> Iterator[bytes]:
        """End the block that is open, and begin another. A ping follows the first one, as it does at Anthropic."""
        yield from self._close()
        self._open = block
        self._blocks += 1
        yield _event(BlockStart(self._blocks - 1, block))
        if self._blocks == 1:
            yield self.ping()

    def _grown(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> bytes:
        return _event(BlockDelta(self._blocks - 1, delta))

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if isinstance(self._open, ThinkingBlock):
            yield self._grown(SignatureDelta(self._id))
        yield _event(BlockStop(self._blocks - 1))
        self._open = None

    def _usage(self, delta: Delta) -> MessageUsage:
        """So far; whole with the last piece."""
        thought = self._turn.reasoning_tokens
        return MessageUsage(
            input_tokens=self._prompt_tokens - delta.cached_tokens,
            cache_read_input_tokens=delta.cached_tokens,
            output_tokens=delta.usage.completion_tokens if delta.usage is not None else 0,
            output_tokens_details=OutputDetails(thought) if thought and delta.usage is not None else UNSET,
        )


def _event(event: MessageEvent) -> bytes:
    name = type(event).__struct_config__.tag
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"


def _error(error: AnthropicError) -> bytes:
    return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"
