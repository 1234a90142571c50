"""POST /v1/completions: a text continued, or a gap filled in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import render_fim, render_text, text_ends
from deepwell.engine.types import Delta, TokenLogprob
from deepwell.errors import RequestError
from deepwell.server.answers import respond
from deepwell.server.logprobs import TextLogprobsWriter, TokenBytes
from deepwell.server.protocol import CompletionRequest
from deepwell.server.replies import (
    EventWriter,
    Head,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    Usage,
    finish_of,
    usage_of,
)
from deepwell.server.rules import check_common, max_tokens_of, prompt_of, sampling_of
from deepwell.server.service import Service


async def completions(request: Request) -> Response:
    """Continue a prompt."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    async with service.admitted(request, CompletionRequest) as (asked, place):
        model = check_common(asked, service)
        prompt = prompt_of(asked, service)
        check_completion(asked, prompt)
        tokens = await _tokens(request, prompt, asked.suffix, service)
        max_tokens = max_tokens_of(asked, len(tokens), "prompt", service)
        prompt_logprobs = asked.logprobs if asked.echo else None
        head = service.head(model)
        sampling = sampling_of(
            asked, service.advice, max_tokens, asked.logprobs, prompt_logprobs, text_ends(service.tokenizer)
        )
        stream = service.submit(place, head, tokens, sampling)
        writer = TextWriter(
            head,
            service.tokenizer.token_bytes,
            echo=_echoed(prompt, service) if asked.echo else "",
            hidden=1 if isinstance(prompt, str) and service.tokenizer.bos is not None else 0,
            with_usage=asked.stream_options is not None and bool(asked.stream_options.include_usage),
        )
        return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


def check_completion(asked: CompletionRequest, prompt: str | tuple[int, ...]) -> None:
    """Pairs of fields. Raises RequestError."""
    if asked.suffix is not None and not isinstance(prompt, str):
        raise RequestError("suffix needs a prompt given as text, not as token ids", "suffix")
    if asked.suffix is not None and asked.echo and asked.logprobs is not None:
        raise RequestError("echo with logprobs cannot be combined with suffix", "logprobs")


class TextWriter(EventWriter):
    """OpenAI's older shape. `echo` is put in front of the answer; the first `hidden` prompt tokens are not shown."""

    def __init__(
        self,
        head: Head,
        token_bytes: TokenBytes,
        *,
        echo: str = "",
        hidden: int = 0,
        with_usage: bool = False,
    ) -> None:
        super().__init__(head, with_usage=with_usage)
        self._logprobs = TextLogprobsWriter(token_bytes)
        self._echo = echo
        self._hidden = hidden

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        """See Writer."""
        text, tokens = self._echo + delta.text, self._shown(delta)
        self._echo = ""
        if text or tokens:
            yield self.event(self._chunk([TextChoice(text=text, logprobs=self._written(tokens))], self.no_usage))
        if delta.finish_reason is not None:
            usage = usage_of(delta.usage) if delta.usage else None
            last = TextChoice(text="", finish_reason=finish_of(delta.finish_reason))
            yield self.event(self._chunk([last], None if self.with_usage else usage))
            if self.with_usage:
                yield self.event(self._chunk([], usage))

    def whole(self, delta: Delta) -> TextCompletion:
        """See Writer."""
        assert delta.finish_reason is not None
        assert delta.usage is not None
        choice = TextChoice(
            text=self._echo + delta.text,
            logprobs=self._written(self._shown(delta)),
            finish_reason=finish_of(delta.finish_reason),
        )
        return self._chunk([choice], usage_of(delta.usage))

    def _shown(self, delta: Delta) -> tuple[TokenLogprob, ...]:
        return delta.prompt_logprobs[self._hidden :] + delta.logprobs

    def _written(self, tokens: tuple[TokenLogprob, ...]) -> TextLogprobs | None:
        return self._logprobs.write(tokens) if tokens else None

    def _chunk(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> TextCompletion:
        return TextCompletion(**self.head, choices=choices, usage=usage)


async def _tokens(
    request: Request, prompt: str | tuple[int, ...], suffix: str | None, service: Service
) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    if suffix is None:
        render, texts = partial(render_text, prompt, service.tokenizer), [prompt]
    else:
        render, texts = partial(render_fim, prompt, suffix, service.tokenizer), [prompt, suffix]
    return await service.rendered(request.receive, render, texts, "prompt")


def _echoed(prompt: str | tuple[int, ...], service: Service) -> str:
    return prompt if isinstance(prompt, str) else service.tokenizer.decode(prompt)
