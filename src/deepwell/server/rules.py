"""Rules that one field's type cannot say: names, roles, pairs of fields, and what fits the model."""

from __future__ import annotations

from typing import cast

from deepwell.chat import Message, Role
from deepwell.engine.types import SamplingParams
from deepwell.errors import RequestError
from deepwell.server.protocol import MAX_INT, ChatMessage, ChatRequest, CompletionRequest, SamplingFields
from deepwell.server.service import Service

ROLES = ("system", "user", "assistant", "tool")


def check_common(asked: SamplingFields, service: Service) -> None:
    """Model name and streaming options; the engine checks token ids. Raises RequestError."""
    if asked.model not in service.names:
        raise RequestError(f"unknown model {_shown(asked.model)}; allowed: {', '.join(service.names)}", "model")
    if asked.stream_options is not None and not asked.stream:
        raise RequestError("stream_options is only allowed with stream: true", "stream_options")


def check_chat(asked: ChatRequest) -> None:
    """Pairs of fields, and what is not supported yet. Raises RequestError."""
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RequestError("top_logprobs is only allowed with logprobs: true", "top_logprobs")
    if asked.tools:
        raise RequestError("tools are not supported yet; leave tools out", "tools")
    if asked.tool_choice not in (None, "none", "auto"):
        raise RequestError('tool_choice must be "none" or "auto": tools are not supported yet', "tool_choice")
    if asked.response_format is not None and asked.response_format.type != "text":
        kind = _shown(asked.response_format.type)
        raise RequestError(f"response_format {kind} is not supported yet; allowed: text", "response_format.type")
    if asked.thinking is not None and asked.thinking.type not in ("disabled", "adaptive"):
        kind = _shown(asked.thinking.type)
        raise RequestError(f"thinking {kind} is not supported yet; allowed: disabled, adaptive", "thinking.type")


def messages_of(asked: ChatRequest) -> list[Message]:
    """The conversation, text parts joined by a blank line. Raises RequestError naming the message at fault."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(asked.messages)]


def prompt_of(asked: CompletionRequest, service: Service) -> str | tuple[int, ...]:
    """The one prompt of a request: a text, or token ids, whose range the engine checks."""
    prompt = asked.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise RequestError(
                "prompt holds several prompts, which is not supported; send one request for each", "prompt"
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if len(prompt) > service.context:
        raise RequestError(f"prompt has {len(prompt)} tokens, more than the context of {service.context}", "prompt")
    for index, id in enumerate(prompt):
        if type(id) is not int or not 0 <= id <= MAX_INT:
            raise RequestError(f"prompt[{index}] must be a token id; prompt must be a text or a list of them", "prompt")
    return tuple(prompt)


def max_tokens_of(wanted: int | None, prompt: int, param: str, service: Service) -> int:
    """How many tokens the answer to a prompt of `prompt` tokens, given as `param`, may have.

    Raises RequestError if it cannot fit.
    """
    room = service.context - prompt
    if prompt == 0:
        raise RequestError("the prompt must have at least one token", param)
    if room < 0 or (room == 0 and wanted != 0):
        raise RequestError(
            f"the prompt has {prompt} tokens, which leaves no room for an answer in the context of {service.context}",
            param,
        )
    if wanted is None:
        return min(room, service.limits.default_max_tokens)
    if wanted > room:
        raise RequestError(
            f"max_tokens is {wanted} and the prompt has {prompt} tokens: together {prompt + wanted}, more than the "
            f"context of {service.context}; max_tokens can be at most {room} here",
            "max_tokens",
        )
    return wanted


def sampling_of(
    asked: SamplingFields, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingParams:
    """The request's sampling rules; what it leaves out is neutral."""
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        min_p=asked.min_p or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        logit_bias=asked.logit_bias or {},
        seed=asked.seed,
        stop=tuple(stop),
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _message(message: ChatMessage, where: str) -> Message:
    role = message.role
    if role not in ROLES:
        raise RequestError(f"{where}.role: unknown role {_shown(role)}; allowed: {', '.join(ROLES)}", f"{where}.role")
    if role == "tool" or message.tool_calls:
        raise RequestError(f"{where}: tool calls and their results are not supported yet", where)
    if message.content is None:
        raise RequestError(f"{where}.content is missing; it must be a text or a list of text parts", f"{where}.content")
    # The check against ROLES and "tool" above leaves the three roles that Message knows.
    return Message(cast(Role, role), _text(message, where), prefix=bool(message.prefix))


def _text(message: ChatMessage, where: str) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content or ()):
        field = f"{where}.content[{index}]"
        if part.type != "text":
            raise RequestError(f"{field}.type {_shown(part.type)} is not supported; allowed: text", f"{field}.type")
        if part.text is None:
            raise RequestError(f"{field}.text is missing", f"{field}.text")
        texts.append(part.text)
    return "\n\n".join(texts)


def _shown(value: str) -> str:
    """A value in an error message, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
