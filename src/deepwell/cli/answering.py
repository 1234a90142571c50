"""An answer on the command line: how it is sampled, what is told while it is computed, and why it ended early."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from deepwell.cli.waiting import Wait
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.engine.types import Delta
from deepwell.options import SamplingOptions
from deepwell.weights.advice import Advice

_RULES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_of(options: SamplingOptions, advice: Advice, room: int) -> SamplingParams:
    """As the options say, else as the model's makers advise, and greedy where neither does; at most `room` tokens."""
    asked = {name: value for name in _RULES if (value := getattr(options, name)) is not None}
    rules: dict[str, Any] = {"temperature": 1.0 if advice.given else 0.0} | advice.given | asked
    most = min(options.max_tokens or room, room)
    return SamplingParams(max_tokens=most, seed=options.seed, stop=options.stop, **rules)


def told(sampling: SamplingParams) -> str:
    """How tokens are chosen, in a few words."""
    if sampling.temperature == 0:
        return "greedy"
    neutral = SamplingParams()
    changed = {name: getattr(sampling, name) for name in _RULES if getattr(sampling, name) != getattr(neutral, name)}
    return ", ".join(f"{name} {value:g}" for name, value in ({"temperature": sampling.temperature} | changed).items())


def answer(core: EngineCore, request: Request, check: Callable[[], None]) -> Generator[Delta]:
    """The answer as it comes, after the prompt was read, which is told of. What `check` raises after a step ends it."""
    total = len(request.prompt)
    with Wait("reading the prompt") as wait:

        def watch(computed: int) -> None:
            wait(min(computed, total), total)
            check()

        for delta in core.generate(request, watch):
            wait.stop()
            yield delta


def cut(last: Delta, options: SamplingOptions) -> str | None:
    """What to say of an answer that did not end by itself; None of one that did."""
    if last.finish_reason != "length" or last.usage is None:
        return None
    count = last.usage.completion_tokens
    asked = options.max_tokens is not None and count >= options.max_tokens
    return f"cut at {count:,} tokens: {'--max-tokens' if asked else 'the context is full'}"
