"""Models that answer from a script, through the real engine, tokenizer and reader."""

from __future__ import annotations

from itertools import count
from typing import Any

from serving import make_service, noted

from deepwell.server import Service
from fakes import FakeRunner
from toy_format import TOY


class Script:
    """A `next_token` that gives the n-th request the n-th answer. `prompts` are those of the requests so far."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers = answers
        self.prompts: list[tuple[int, ...]] = []

    def __call__(self, context: tuple[int, ...]) -> int | None:
        for prompt, answer in zip(self.prompts, self.answers, strict=False):
            said = context[len(prompt) :]
            if context[: len(prompt)] == prompt and len(said) < len(answer) and said == tuple(answer[: len(said)]):
                return answer[len(said)]
        return None


def scripted(
    *answers: list[int],
    format: str = TOY.name,
    context: int = 4096,
    delay: float = 0.0,
    broken_after: int | None = None,
    **config: Any,
) -> tuple[Service, Script]:
    """A service that chats in `format` and answers the n-th request with the n-th list of tokens.

    Its model breaks after `broken_after` steps.
    """
    script, steps = Script(*answers), count()

    def fail(_: Any) -> None:
        if broken_after is not None and next(steps) >= broken_after:
            raise RuntimeError("the machine is on fire")

    runner = FakeRunner(context=context, next_token=script, delay=delay, fail=fail)
    service = make_service(runner, format=format, **config)
    noted(service.engine, lambda request: script.prompts.append(request.prompt))
    return service, script


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
