"""Fields of other servers that would change an answer and are not supported: refused, unless their value asks nothing.

The names are those of OpenAI, llama.cpp, vLLM, SGLang and OpenRouter. Fields that change no answer (metadata, user,
store, cache_prompt, ...) are not listed anywhere, and ignored.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, inspect

from deepwell.errors import RequestError

_NOTHING: tuple[Any, ...] = ("", 0, [], {})
"""Besides null, and false, which equals 0."""


def off(*neutral: Any, instead: str = "") -> Meta:
    """A field that may be null, or a value that asks for nothing; `instead` is what does the same here."""
    allowed = f"leave it out{f', or use {instead}' if instead else ''}"
    if neutral:
        allowed = f"{' or '.join(msgspec.json.encode(value).decode() for value in neutral)} is allowed; {allowed}"
    return Meta(description=f"not supported; {allowed}", extra={"neutral": neutral or _NOTHING})


class Unsupported(msgspec.Struct, frozen=True, kw_only=True):
    """A base of requests, which may declare such a field anew to support it."""

    # what shape the answer must have
    guided_decoding: Annotated[Any, off()] = None
    structural_tag: Annotated[Any, off()] = None
    allowed_token_ids: Annotated[Any, off()] = None
    bad_words: Annotated[Any, off(instead="logit_bias")] = None
    stop_regex: Annotated[Any, off(instead="stop")] = None
    # how tokens are chosen
    best_of: Annotated[Any, off(1)] = None
    use_beam_search: Annotated[Any, off()] = None
    length_penalty: Annotated[Any, off(1)] = None
    typical_p: Annotated[Any, off(1)] = None
    tfs_z: Annotated[Any, off(1)] = None
    top_a: Annotated[Any, off()] = None
    top_n_sigma: Annotated[Any, off(-1, 0)] = None
    mirostat: Annotated[Any, off()] = None
    dynatemp_range: Annotated[Any, off()] = None
    xtc_probability: Annotated[Any, off()] = None
    dry_multiplier: Annotated[Any, off()] = None
    repeat_penalty: Annotated[Any, off(1, instead="repetition_penalty")] = None
    samplers: Annotated[Any, off()] = None
    logits_processors: Annotated[Any, off()] = None
    custom_logit_processor: Annotated[Any, off()] = None
    # how long it is
    min_tokens: Annotated[Any, off()] = None
    n_predict: Annotated[Any, off(-1, instead="max_tokens")] = None
    thinking_token_budget: Annotated[Any, off(-1)] = None
    # what the model is and what it reads
    lora: Annotated[Any, off()] = None
    lora_path: Annotated[Any, off()] = None
    prompt_embeds: Annotated[Any, off()] = None
    truncate_prompt_tokens: Annotated[Any, off()] = None
    # what is told of it
    n_probs: Annotated[Any, off(0, instead="logprobs")] = None
    prompt_logprobs: Annotated[Any, off(instead="echo with logprobs at /v1/completions")] = None
    return_tokens: Annotated[Any, off()] = None
    return_token_ids: Annotated[Any, off()] = None
    return_tokens_as_token_ids: Annotated[Any, off()] = None
    return_hidden_states: Annotated[Any, off()] = None
    include_stop_str_in_output: Annotated[Any, off()] = None
    no_stop_trim: Annotated[Any, off()] = None
    skip_special_tokens: Annotated[Any, off(True)] = None
    # what is said in a chat, and how
    functions: Annotated[Any, off(instead="tools")] = None
    function_call: Annotated[Any, off("none", "auto", instead="tool_choice")] = None
    modalities: Annotated[Any, off(["text"])] = None
    audio: Annotated[Any, off()] = None
    web_search_options: Annotated[Any, off()] = None
    verbosity: Annotated[Any, off("medium")] = None
    reasoning: Annotated[Any, off(instead="thinking or reasoning_effort")] = None
    reasoning_format: Annotated[Any, off("auto", "deepseek")] = None
    separate_reasoning: Annotated[Any, off(True)] = None
    include_reasoning: Annotated[Any, off(True)] = None
    chat_template: Annotated[Any, off()] = None
    documents: Annotated[Any, off()] = None
    add_generation_prompt: Annotated[Any, off(True)] = None
    continue_final_message: Annotated[Any, off(instead="prefix: true in the last message")] = None
    add_special_tokens: Annotated[Any, off(False)] = None
    echo: Annotated[Any, off()] = None


def check_supported(asked: msgspec.Struct, where: str = "") -> None:
    """Raise RequestError, naming the field, for one whose value asks for what is not supported.

    `where` stands in front of its name.
    """
    for name, (neutral, description) in _fields(type(asked)).items():
        value = getattr(asked, name)
        if value is not None and value not in neutral:
            raise RequestError(f"{where}{name} is {description}", f"{where}{name}")


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[tuple[Any, ...], str]]:
    """By field, the values that ask for nothing, and what to say of others."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    found: dict[str, tuple[tuple[Any, ...], str]] = {}
    for field in described.fields:
        if isinstance(field.type, inspect.Metadata) and "neutral" in (extra := field.type.extra or {}):
            found[field.encode_name] = extra["neutral"], (field.type.extra_json_schema or {})["description"]
    return found
