"""An answer as the Responses API has it: items that begin, grow and are done, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET

from deepwell.chat.reading import CallArguments, CallBegin, Content, Piece, Reasoning
from deepwell.engine.types import Delta
from deepwell.errors import EngineStopped
from deepwell.server.answers import STOPPED
from deepwell.server.errors import INTERNAL, ErrorBody, error_body
from deepwell.server.responses.conversation import carried
from deepwell.server.responses.custom_input import CustomInput
from deepwell.server.responses.replies import (
    AnyItem,
    ArgumentsDelta,
    ArgumentsDone,
    CallItem,
    Completed,
    Created,
    CustomCallItem,
    CustomInputDelta,
    CustomInputDone,
    CutOff,
    ErrorEvent,
    Failed,
    Incomplete,
    InProgress,
    ItemAdded,
    ItemDone,
    MessageItem,
    OutputDelta,
    OutputDone,
    OutputPart,
    PartAdded,
    PartDone,
    Phase,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningPart,
    ResponseAnswer,
    ResponseError,
    Status,
    usage_of,
)
from deepwell.server.responses.tools import Offered
from deepwell.server.turn import Turn


class ResponsesWriter:
    """See Writer. `head` is the answer before it begins, `tools` what it may call; `carries` thoughts in a form to send
    back."""

    media_type = "text/event-stream"

    def __init__(self, head: ResponseAnswer, turn: Turn, tools: Offered, *, carries: bool) -> None:
        self._head, self._turn, self._tools, self._carries = head, turn, tools, carries
        self._input = CustomInput()
        self._sequence = 0
        self._begun = False
        self._done: list[AnyItem] = []
        self._open: AnyItem | None = None
        self._text: list[str] = []

    def opening(self) -> Iterator[bytes]:
        """See Writer."""
        self._begun = True
        yield self._event(Created, response=self._head)
        yield self._event(InProgress, response=self._head)

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        """See Writer."""
        for piece in self._turn.push(delta).pieces:
            yield from self._piece(piece)
        if delta.finish_reason is None:
            return
        if delta.finish_reason == "abort":
            yield self.failed(STOPPED)
            return
        complete = delta.finish_reason == "stop"
        yield from self._close("completed" if complete else "incomplete")
        yield self._event(Completed if complete else CutOff, response=self._ended(delta))

    def ping(self) -> bytes:
        return b": keep-alive\n\n"

    def failed(self, error: str) -> bytes:
        if not self._begun:
            return self._event(ErrorEvent, message=error)
        failed = msgspec.structs.replace(
            self._head, status="failed", error=ResponseError("server_error", error), output=self._done
        )
        return self._event(Failed, response=failed)

    def ended(self) -> bytes:
        return b""

    def whole(self, delta: Delta) -> ResponseAnswer:
        """See Writer. Raises EngineStopped for an answer that was cut off."""
        if delta.finish_reason == "abort":
            raise EngineStopped(STOPPED)
        for _ in self.pieces(delta):  # for the items that they add up to
            pass
        return self._ended(delta)

    def failure(self, error: str) -> ErrorBody:
        return error_body(error, INTERNAL)

    def _ended(self, delta: Delta) -> ResponseAnswer:
        assert delta.usage is not None
        complete = delta.finish_reason == "stop"
        return msgspec.structs.replace(
            self._head,
            status="completed" if complete else "incomplete",
            completed_at=int(time.time()),
            incomplete_details=None if complete else Incomplete("max_output_tokens"),
            output=self._done,
            usage=usage_of(delta.usage, self._turn.reasoning_tokens),
        )

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        match piece:
            case Reasoning(text):
                if not isinstance(self._open, ReasoningItem):
                    yield from self._close("completed")
                    yield from self._begin(ReasoningItem(id=self._name("rs"), status="in_progress"))
                    yield self._of_item(PartAdded, part=ReasoningPart(""))
                yield self._grown(ReasoningDelta, text)
            case Content(text):
                if not isinstance(self._open, MessageItem):
                    yield from self._close("completed")
                    yield from self._begin(MessageItem(id=self._name("msg"), status="in_progress"))
                    yield self._of_item(PartAdded, part=OutputPart(text=""))
                yield self._grown(OutputDelta, text)
            case CallBegin(name, id):
                yield from self._close("completed", "commentary")
                yield from self._begin(self._call(name, id))
            case CallArguments(text):
                if not isinstance(self._open, CustomCallItem):
                    yield self._grown(ArgumentsDelta, text)
                elif added := self._input.push(text):
                    yield self._grown(CustomInputDelta, added)

    def _call(self, name: str, id: str) -> AnyItem:
        if name in self._tools.custom:
            self._input = CustomInput()
            return CustomCallItem(id=self._name("ctc"), status="in_progress", call_id=id, name=name)
        space, own = self._tools.spaces.get(name, (UNSET, name))
        return CallItem(id=self._name("fc"), status="in_progress", call_id=id, name=own, namespace=space)

    def _begin(self, item: AnyItem) -> Iterator[bytes]:
        self._open, self._text = item, []
        yield self._event(ItemAdded, item=item, output_index=len(self._done))

    def _grown(self, kind: Callable[..., msgspec.Struct], text: str) -> bytes:
        self._text.append(text)
        return self._of_item(kind, delta=text)

    def _close(self, status: Status, phase: Phase = "final_answer") -> Iterator[bytes]:
        """The open item is done."""
        if isinstance(self._open, CustomCallItem) and (rest := self._input.finish()):
            yield self._grown(CustomInputDelta, rest)
        text = "".join(self._text)
        match self._open:
            case None:
                return
            case ReasoningItem() as item:
                yield self._of_item(ReasoningDone, text=text)
                yield self._of_item(PartDone, part=ReasoningPart(text))
                kept = carried(text) if self._carries else UNSET
                done: AnyItem = msgspec.structs.replace(item, content=[ReasoningPart(text)], encrypted_content=kept)
            case MessageItem() as item:
                yield self._of_item(OutputDone, text=text)
                yield self._of_item(PartDone, part=OutputPart(text=text))
                done = msgspec.structs.replace(item, content=[OutputPart(text=text)], phase=phase)
            case CallItem() as item:
                yield self._of_item(ArgumentsDone, arguments=text, name=item.name)
                done = msgspec.structs.replace(item, arguments=text)
            case CustomCallItem() as item:
                yield self._of_item(CustomInputDone, input=text)
                done = msgspec.structs.replace(item, input=text)
        done = msgspec.structs.replace(done, status=status)
        yield self._event(ItemDone, item=done, output_index=len(self._done))
        self._done.append(done)
        self._open = None

    def _name(self, kind: str) -> str:
        return f"{kind}_{self._head.id.removeprefix('resp_')}_{len(self._done)}"

    def _of_item(self, kind: Callable[..., msgspec.Struct], **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open.id, output_index=len(self._done), **fields)

    def _event(self, kind: Callable[..., msgspec.Struct], **fields: Any) -> bytes:
        event = kind(**fields, sequence_number=self._sequence)
        self._sequence += 1
        return f"event: {event.__struct_config__.tag}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
