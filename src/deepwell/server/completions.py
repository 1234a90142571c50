"""POST /v1/completions: a text continued, or a gap filled in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.engine.types import Delta, SamplingParams
from deepwell.engine.types import Usage as TokenCounts
from deepwell.errors import RequestError
from deepwell.server.logprobs import TextLogprobsWriter
from deepwell.server.prompts import prompts_of, read_prompt
from deepwell.server.protocol import CompletionRequest
from deepwell.server.replies import (
    EventWriter,
    Finish,
    Head,
    TextChoice,
    TextCompletion,
    Usage,
    finish_of,
    usage_of,
)
from deepwell.server.rules import check_common, max_tokens_of, sampling_of
from deepwell.server.service import Service, count
from deepwell.server.strict import strict_completion
from deepwell.server.structure import structure_of
from deepwell.server.together import enough, respond_together
from deepwell.weights.tokenizer import Tokenizer


async def completions(request: Request) -> Response:
    """Continue each prompt."""
    service: Service = request.app.state.service
    async with service.admitted(request, CompletionRequest) as (asked, place):
        asked = strict_completion(asked, request) if service.limits.strict else asked
        model = check_common(asked, service)
        prompts = prompts_of(asked, service)
        each, best = answers_of(asked)
        timers = [service.metrics.request() for _ in range(len(prompts) * each)]
        with enough(place, len(timers)) as places:
            read = [await read_prompt(request, prompt, asked, service) for prompt in prompts]
            rules = [rules_of(asked, len(prompt.ids), service) for prompt in read]
            held = await service.held(structure_of(asked), request.receive)
            head = service.head(model, request)
            count(place, [len(prompt.ids) for prompt in read for _ in range(each)], len(places))
            streams = [
                stream
                for number, (prompt, sampling) in enumerate(zip(read, rules, strict=True))
                for stream in service.submit_alike(
                    places[number * each : (number + 1) * each], head.id, prompt.ids, sampling, number * each, held
                )
            ]
            writer = TextWriter(
                head,
                [
                    Shown(
                        service.tokenizer,
                        prompt.text if asked.echo else "",
                        prompt.hidden,
                        logprobs=asked.logprobs is not None,
                    )
                    for prompt in read
                    for _ in range(each)
                ],
                with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
                best=(each, best),
            )
            streamed, silence = bool(asked.stream), service.limits.keep_alive_seconds
            return await respond_together(request, streams, writer, timers, streamed, silence)


def answers_of(asked: CompletionRequest) -> tuple[int, int]:
    """How many answers each prompt gets, and how many of them are shown. Raises RequestError."""
    shown = asked.n or 1
    each = asked.best_of or shown
    if each < shown:
        raise RequestError(f"best_of is {each} and n is {shown}; best_of must be at least n", "best_of")
    if each > shown and asked.stream:
        raise RequestError("best_of above n is not allowed with stream: the best is known at the end", "best_of")
    return each, shown


def rules_of(asked: CompletionRequest, prompt: int, service: Service) -> SamplingParams:
    """How the answer to a prompt of so many tokens is sampled. Raises RequestError if it has no room."""
    compared = (asked.best_of or 1) > (asked.n or 1)
    return sampling_of(
        asked,
        service.advice,
        max_tokens_of(asked, prompt, "prompt", service),
        0 if compared and asked.logprobs is None else asked.logprobs,
        prompt_logprobs=asked.logprobs if asked.echo else None,
    )


def likeliest(answers: Sequence[Delta], count: int) -> list[int]:
    """The numbers of the `count` answers of the highest log-probability per token, the best first."""

    def mean(number: int) -> float:
        found = [token.logprob or 0.0 for token in answers[number].logprobs]
        return sum(found) / max(1, len(found))

    return sorted(range(len(answers)), key=mean, reverse=True)[:count]


class Shown:
    """What of one answer is shown: `echo` in front of it, and with `logprobs` those of its tokens, without the first
    `hidden` ones."""

    def __init__(self, tokenizer: Tokenizer, echo: str = "", hidden: int = 0, *, logprobs: bool = True) -> None:
        self._logprobs = TextLogprobsWriter(tokenizer.token_bytes) if logprobs else None
        self._echo, self._hidden = echo, hidden

    def choice(self, delta: Delta, number: int, finish: Finish | None = None) -> TextChoice:
        """A piece as clients get it."""
        text, self._echo = self._echo + delta.text, ""
        tokens = delta.prompt_logprobs[self._hidden :] + delta.logprobs
        logprobs = self._logprobs.write(tokens) if tokens and self._logprobs is not None else None
        return TextChoice(text=text, index=number, logprobs=logprobs, finish_reason=finish)


class TextWriter(EventWriter):
    """OpenAI's older shape. Several answers, each `shown` in its own choice, share one usage.

    `best` (each, count) shows the `count` likeliest of each prompt's `each` answers, if they come in one piece.
    """

    def __init__(
        self, head: Head, shown: Sequence[Shown], *, with_usage: bool = False, best: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__(head, with_usage=with_usage)
        self._shown, self._best = shown, best
        self._counts: list[TokenCounts] = []

    def pieces(self, delta: Delta, number: int = 0) -> Iterator[bytes]:
        """See Writer."""
        choice = self._shown[number].choice(delta, number)
        if choice.text or choice.logprobs:
            yield self.event(self._chunk([choice], self.no_usage))
        if delta.finish_reason is not None:
            if delta.usage is not None:
                self._counts.append(delta.usage)
            ended = len(self._counts) == len(self._shown)
            usage = usage_of(*self._counts) if ended else self.no_usage
            last = TextChoice(text="", index=number, finish_reason=finish_of(delta.finish_reason))
            yield self.event(self._chunk([last], None if self.with_usage else usage))
            if ended and self.with_usage:
                yield self.event(self._chunk([], usage))

    def whole(self, delta: Delta) -> TextCompletion:
        """See Writer."""
        return self.wholes([delta])

    def wholes(self, deltas: Sequence[Delta]) -> TextCompletion:
        """See ManyWriter."""
        each, count = self._best
        groups = range(0, len(deltas), each)
        numbers: Sequence[int] = range(len(deltas))
        if each > count:
            numbers = [first + at for first in groups for at in likeliest(deltas[first : first + each], count)]
        choices = [
            self._shown[number].choice(deltas[number], place, finish_of(deltas[number].finish_reason or "error"))
            for place, number in enumerate(numbers)
        ]
        return self._chunk(choices, usage_of(*(delta.usage for delta in deltas if delta.usage is not None)))

    def _chunk(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> TextCompletion:
        return TextCompletion(**self.head, choices=choices, usage=usage)
