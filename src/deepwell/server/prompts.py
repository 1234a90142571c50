"""The prompts of a completion request: texts, or token ids, one or several."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from deepwell.chat import opening, render_fim
from deepwell.errors import ContextExceeded, RequestError
from deepwell.server.protocol import MAX_INT, CompletionRequest
from deepwell.server.service import Service

Prompt = str | tuple[int, ...]


class Read(msgspec.Struct, frozen=True):
    """A prompt as token ids. `text` is what `echo` shows, in which the first `hidden` tokens do not stand."""

    ids: tuple[int, ...]
    text: str
    hidden: int


def prompts_of(asked: CompletionRequest, service: Service) -> list[Prompt]:
    """All prompts of a request, whose ids the engine checks further. Raises RequestError, naming the one at fault."""
    prompt = asked.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        most = service.engine.config.max_running + service.engine.config.max_waiting
        if len(prompt) > most:
            raise RequestError(f"prompt holds {len(prompt)} prompts; at most {most} are answered together", "prompt")
        found = [prompt_of(one, f"prompt[{at}]", service) for at, one in enumerate(prompt)]
    else:
        found = [prompt_of(prompt, "prompt", service)]
    if asked.suffix is not None and not all(isinstance(one, str) for one in found):
        raise RequestError("suffix needs a prompt given as text, not as token ids", "suffix")
    if asked.suffix is not None and asked.echo and asked.logprobs is not None:
        raise RequestError("echo with logprobs cannot be combined with suffix", "logprobs")
    return found


def prompt_of(value: Any, where: str, service: Service) -> Prompt:
    """A text or token ids, which came as the field `where`. Raises RequestError and ContextExceeded."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a text or a list of token ids", where)
    if len(value) > service.context:
        raise ContextExceeded(service.context, len(value), 1, where)
    for index, id in enumerate(value):
        if type(id) is not int or not 0 <= id <= MAX_INT:
            raise RequestError(f"{where}[{index}] must be a token id; {where} must be a text or a list of them", where)
    return tuple(value)


async def read_prompt(request: Request, prompt: Prompt, asked: CompletionRequest, service: Service) -> Read:
    """The prompt's tokens. Raises what `Service.rendered` does, and RequestError for a gap that cannot be filled."""
    tokenizer = service.tokenizer
    if not isinstance(prompt, str):
        return Read(prompt, tokenizer.decode(prompt) if asked.echo else "", 0)
    text, suffix = prompt, asked.suffix

    def render() -> Read:
        if suffix is not None:
            return Read(render_fim(text, suffix, tokenizer), text, 0)
        ids = tokenizer.encode(text, controls=asked.parse_special is not False)
        front = () if asked.add_special_tokens is False else opening(ids, tokenizer)
        return Read((*front, *ids), text, len(front))

    return await service.rendered(request.receive, render, [text, suffix or ""], "prompt")
