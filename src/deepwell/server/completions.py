"""POST /v1/completions: a text continued, or a gap filled in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.engine.types import Delta, SamplingParams
from deepwell.engine.types import Usage as TokenCounts
from deepwell.server.answers import respond
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
from deepwell.server.service import Service
from deepwell.server.together import respond_together
from deepwell.weights.tokenizer import Tokenizer


async def completions(request: Request) -> Response:
    """Continue each prompt."""
    service: Service = request.app.state.service
    async with service.admitted(request, CompletionRequest) as (asked, place):
        model = check_common(asked, service)
        prompts = prompts_of(asked, service)
        timers = [service.metrics.request() for _ in prompts]
        with ExitStack() as stack:
            places = [place, *(stack.enter_context(service.engine.place()) for _ in prompts[1:])]
            read = [await read_prompt(request, prompt, asked, service) for prompt in prompts]
            rules = [rules_of(asked, len(prompt.ids), service) for prompt in read]
            head = service.head(model)
            streams = [
                service.submit(place, f"{head.id}-{number}" if number else head.id, prompt.ids, sampling)
                for number, (place, prompt, sampling) in enumerate(zip(places, read, rules, strict=True))
            ]
            writer = TextWriter(
                head,
                [Shown(service.tokenizer, prompt.text if asked.echo else "", prompt.hidden) for prompt in read],
                with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
            )
            streamed, silence = bool(asked.stream), service.limits.keep_alive_seconds
            if len(streams) == 1:
                return await respond(request, streams[0], writer, timers[0], streamed, silence)
            return await respond_together(request, streams, writer, timers, streamed, silence)


def rules_of(asked: CompletionRequest, prompt: int, service: Service) -> SamplingParams:
    """How the answer to a prompt of so many tokens is sampled. Raises RequestError if it has no room."""
    return sampling_of(
        asked,
        service.advice,
        max_tokens_of(asked, prompt, "prompt", service),
        asked.logprobs,
        prompt_logprobs=asked.logprobs if asked.echo else None,
    )


class Shown:
    """What of one answer is shown: `echo` in front of it, and log-probabilities without the first `hidden` tokens."""

    def __init__(self, tokenizer: Tokenizer, echo: str = "", hidden: int = 0) -> None:
        self._logprobs = TextLogprobsWriter(tokenizer.token_bytes)
        self._echo, self._hidden = echo, hidden

    def choice(self, delta: Delta, number: int, finish: Finish | None = None) -> TextChoice:
        """A piece as clients get it."""
        text, self._echo = self._echo + delta.text, ""
        tokens = delta.prompt_logprobs[self._hidden :] + delta.logprobs
        logprobs = self._logprobs.write(tokens) if tokens else None
        return TextChoice(text=text, index=number, logprobs=logprobs, finish_reason=finish)


class TextWriter(EventWriter):
    """OpenAI's older shape. Several answers, each `shown` in its own choice, share one usage."""

    def __init__(self, head: Head, shown: Sequence[Shown], *, with_usage: bool = False) -> None:
        super().__init__(head, with_usage=with_usage)
        self._shown = shown
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
        choices = [
            shown.choice(delta, number, finish_of(delta.finish_reason or "error"))
            for number, (shown, delta) in enumerate(zip(self._shown, deltas, strict=True))
        ]
        return self._chunk(choices, usage_of(*(delta.usage for delta in deltas if delta.usage is not None)))

    def _chunk(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> TextCompletion:
        return TextCompletion(**self.head, choices=choices, usage=usage)
