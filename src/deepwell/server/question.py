"""A conversation as a question to the model, whatever the protocol: its prompt, and the turn that will answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from deepwell.chat import Conversation, Message, render_chat
from deepwell.chat.reading import Reader
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.engine.engine import Place, Stream
from deepwell.engine.types import SamplingParams
from deepwell.grammar.constraint import Constraint
from deepwell.grammar.turns import grammar_of
from deepwell.server.answers import while_there
from deepwell.server.conversations import texts_of
from deepwell.server.service import Service
from deepwell.server.turn import Turn

if TYPE_CHECKING:
    from deepwell.grammar.compiled import Compiled


@dataclass(frozen=True)
class Question:
    """A conversation that the model of `service` is to go on with. `prompt` are its token ids; each answer has a
    reader of its own."""

    service: Service
    conversation: Conversation
    prompt: tuple[int, ...]
    readers: tuple[Reader, ...]
    compiled: Compiled | None = None

    @property
    def habit(self) -> int | None:
        """How long an answer may be where nobody says, in tokens; None for as long as fits."""
        return self.service.format.thought_tokens if self.thinks else None

    @property
    def thinks(self) -> bool:
        """Whether the answer begins in a thought, or may."""
        return self.readers[0].thoughts.open or self.service.format.thinks == "always"

    def submit(self, place: Place, id: str, sampling: SamplingParams) -> Stream:
        """Have it answered, within the grammar that holds the answer, if any. Raises what `Service.submit` does."""
        return self.submit_alike([place], id, sampling)[0]

    def submit_alike(self, places: Sequence[Place], id: str, sampling: SamplingParams) -> list[Stream]:
        """Have it answered several times; see `Service.submit_alike`."""
        return self.service.submit_alike(
            places, id, self.prompt, sampling, constraint=self._constraint, thoughts=self._thoughts
        )

    def turn(
        self, one_call: bool = False, returned: Callable[[Message], Message] = lambda said: said, number: int = 0
    ) -> Turn:
        """The turn that answers it, of several the one of that `number`; with `one_call`, of one call at most.

        Its tokens are remembered for when a client returns the turn: as the message that `returned` makes of it.
        """

        def keep(turn: Turn) -> None:
            self.service.replay.keep(self.conversation, self.prompt, returned(turn.message), turn.ids)

        return Turn(self.readers[number], self._thoughts(), one_call, ended=keep)

    def _thoughts(self) -> ThoughtMeter:
        return ThoughtMeter(self.readers[0].thoughts, self.service.tokenizer)

    def _constraint(self) -> Constraint | None:
        if self.compiled is None:
            return None
        from deepwell.grammar.thoughts import behind_thought

        return behind_thought(self.compiled, self.readers[0].thoughts)


async def question_of(
    request: Request, conversation: Conversation, service: Service, param: str, answers: int = 1
) -> Question:
    """Lay out a conversation, which came as the field `param`, for so many answers. Raises what `Service.rendered` and
    `Grammars.compiled` do."""
    grammar = grammar_of(conversation, service.format, service.tokenizer)
    compiled = None if grammar is None else await while_there(service.grammars.compiled(grammar), request.receive)

    def render() -> Question:
        rendered = render_chat(conversation, service.tokenizer, service.format)
        prompt = service.replay.apply(conversation, rendered)
        readers = tuple(service.format.reader(conversation, service.tokenizer) for _ in range(answers))
        return Question(service, conversation, prompt, readers, compiled)

    return await service.rendered(request.receive, render, texts_of(conversation), param, chat=True)
