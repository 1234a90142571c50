"""A conversation as a question to the model, whatever the protocol: its prompt, and the turn that will answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from deepwell.chat import Conversation, Message, render_chat
from deepwell.chat.reading import Reader
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.server.conversations import texts_of
from deepwell.server.service import Service
from deepwell.server.turn import Turn


@dataclass(frozen=True)
class Question:
    """A conversation that the model of `service` is to go on with. `prompt` are its token ids."""

    service: Service
    conversation: Conversation
    prompt: tuple[int, ...]
    reader: Reader

    @property
    def habit(self) -> int | None:
        """How long an answer may be where nobody says, in tokens; None for as long as fits."""
        format = self.service.format
        return format.thought_tokens if self.reader.thoughts.open or format.thinks == "always" else None

    def turn(self, one_call: bool = False, returned: Callable[[Message], Message] = lambda said: said) -> Turn:
        """The turn that answers it; with `one_call`, of one call at most.

        Its tokens are remembered for when a client returns the turn: as the message that `returned` makes of it.
        """

        def keep(turn: Turn) -> None:
            self.service.replay.keep(self.conversation, self.prompt, returned(turn.message), turn.ids)

        return Turn(self.reader, ThoughtMeter(self.reader.thoughts, self.service.tokenizer), one_call, ended=keep)


async def question_of(request: Request, conversation: Conversation, service: Service, param: str) -> Question:
    """Lay out a conversation, which came as the field `param`. Raises what `Service.rendered` does."""

    def render() -> Question:
        rendered = render_chat(conversation, service.tokenizer, service.format)
        prompt = service.replay.apply(conversation, rendered)
        return Question(service, conversation, prompt, service.format.reader(conversation, service.tokenizer))

    return await service.rendered(request.receive, render, texts_of(conversation), param, chat=True)
