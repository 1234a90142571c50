"""What DeepSeek's own API refuses, ignores and overrides, where --strict asks for exactly that.

`docs/deepseek-api.md` has the rules in a table. They go by era: the family of the prompt format says which one holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec
from starlette.requests import Request

from deepwell.bounds import SEED
from deepwell.chat.conversation import EFFORTS
from deepwell.chat.formats.base import Format
from deepwell.engine.types import SamplingParams
from deepwell.errors import RequestError, shown
from deepwell.server.protocol import ChatRequest, CompletionRequest, Kind, SamplingFields

S = TypeVar("S", bound=SamplingFields)

ROLES = ("system", "user", "assistant", "tool", "latest_reminder")
BETA = "/beta/"
LONGEST = {"deepseek-v4": 393_216, "deepseek-v4.1": 393_216, "deepseek-r1": 32_768, "deepseek-r1-0528": 65_536}
LONGEST_OF_OTHERS = 8192
USUAL = 4096
"""Tokens of an answer where nobody says, of models before V4; those of later ones are in `usual`."""
LONGEST_GAP = 4096
GIVEN = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "max_tokens", "n")
"""What both endpoints know, besides what every request has; and what each knows alone."""
COMMON = ("model", "stream", "stream_options", "user_id", *GIVEN)
CHAT = (
    *("messages", "logprobs", "top_logprobs", "thinking", "reasoning_effort"),
    *("response_format", "tools", "tool_choice"),
)
TEXT = ("prompt", "suffix", "logprobs", "echo")


def strict_chat(asked: ChatRequest, format: Format, request: Request) -> ChatRequest:
    """A chat request as DeepSeek reads it: without what it ignores. Raises RequestError for what it refuses."""
    _check(asked, LONGEST.get(format.name, LONGEST_OF_OTHERS))
    for index, message in enumerate(asked.messages):
        where = f"messages[{index}]"
        if message.role not in ROLES:
            unknown = f"{where}.role: unknown variant {shown(message.role)}, expected one of {', '.join(ROLES)}"
            raise RequestError(unknown, f"{where}.role")
        if message.reasoning_content is not None and format.name == "deepseek-r1":
            raise RequestError(
                f"{where}.reasoning_content may not be sent back to this model", f"{where}.reasoning_content"
            )
    if asked.messages[-1].prefix and not _is_beta(request):
        raise RequestError("prefix is a beta feature: use the base address /beta", "messages")
    if any(tool.function and tool.function.strict for tool in asked.tools or ()):
        _check_strict_tools(asked, request)
    asked = _without_others(asked, CHAT)
    if asked.reasoning_effort is not None and asked.reasoning_effort not in EFFORTS:
        asked = msgspec.structs.replace(asked, reasoning_effort="max")
    thinks = _thinks(asked, format)
    if thinks and asked.tool_choice not in (None, "none", "auto"):
        raise RequestError("tool_choice may be none or auto in thinking mode", "tool_choice")
    if thinks and not format.efforts and asked.logprobs:
        raise RequestError("logprobs is not supported in thinking mode", "logprobs")
    if thinks and format.thinks == "choice" and (asked.thinking is None or asked.thinking.type == "adaptive"):
        asked = msgspec.structs.replace(asked, thinking=Kind(type="enabled"))
    return asked


def strict_completion(asked: CompletionRequest, request: Request) -> CompletionRequest:
    """The same for a completion, which is a beta feature and has one prompt, a text."""
    if not _is_beta(request):
        raise RequestError("completions api is only available when using beta api (the base address /beta)")
    _check(asked, LONGEST_GAP)
    if not isinstance(asked.prompt, str):
        raise RequestError("prompt must be a text", "prompt")
    return _without_others(asked, TEXT)


def strict_sampling(sampling: SamplingParams, thinks: bool, tools: bool, format: Format) -> SamplingParams:
    """What V4 and V4.1 make of the temperature and of top_p, and none of the penalties; others take what is given."""
    if format.name not in ("deepseek-v4", "deepseek-v4.1"):
        return sampling
    top_p = sampling.top_p
    if format.name == "deepseek-v4.1":
        top_p = max(0.95, top_p) if thinks else 1.0
    elif thinks:
        top_p = 0.95 if tools else 1.0
    return msgspec.structs.replace(
        sampling,
        temperature=1.0 if thinks else sampling.temperature,
        top_p=top_p,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )


def usual(format: Format, thinks: bool, effort: str | None) -> int:
    """The longest answer where a request does not say."""
    if format.efforts:
        return (131_072 if effort in ("max", "ultra") else 65_536) if thinks else 8192
    return 32_768 if thinks else USUAL


def _thinks(asked: ChatRequest, format: Format) -> bool:
    """Whether the model thinks, which it does from V4 on unless it is told not to."""
    kind = None if asked.thinking is None else asked.thinking.type
    if format.thinks != "choice":
        return format.thinks == "always"
    if kind == "disabled" or asked.reasoning_effort == "none":
        return False
    return kind == "enabled" or format.names.get(asked.model or "", format.efforts)


def _check(asked: SamplingFields, longest: int) -> None:
    if asked.model is None:
        raise RequestError("model is missing", "model")
    if asked.n not in (None, 1):
        raise RequestError(f"n is {asked.n}; it must be 1", "n")
    if asked.max_tokens is not None and not 1 <= asked.max_tokens <= longest:
        raise RequestError(f"max_tokens is {asked.max_tokens}; the valid range is [1, {longest}]", "max_tokens")
    if asked.seed == -1:
        raise RequestError(f"seed is -1; it must be from 0 to {SEED.le}", "seed")


def _check_strict_tools(asked: ChatRequest, request: Request) -> None:
    if not _is_beta(request):
        raise RequestError("strict tools are a beta feature: use the base address /beta", "tools")
    for index, tool in enumerate(asked.tools or ()):
        if tool.function is None or not tool.function.strict:
            where = f"tools[{index}].function.strict"
            raise RequestError(f"{where} must be true, as it is of another tool", where)


def _without_others(asked: S, own: Iterable[str]) -> S:
    """Without the fields that DeepSeek does not know, and so ignores."""
    known = {*COMMON, *own}
    fields = msgspec.inspect.type_info(type(asked))
    assert isinstance(fields, msgspec.inspect.StructType)
    ignored = {field.name: field.default for field in fields.fields if field.name not in known}
    return msgspec.structs.replace(asked, **ignored)


def _is_beta(request: Request) -> bool:
    return BETA in request.url.path
