"""Request bodies: every field once, with its type, bounds, and in words what is allowed.

The words are both the description in /openapi.json and the hint in an error message ("temperature must be ...").
Fields that are not listed are ignored, as DeepSeek does; those that would change an answer are in unsupported.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from deepwell import bounds
from deepwell.bounds import words
from deepwell.chat.conversation import EFFORTS
from deepwell.engine.types import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS
from deepwell.engine.validate import MAX_LISTED_TOKENS, MAX_STOP_CHARACTERS
from deepwell.server.unsupported import Unsupported

MAX_INT = 2**31 - 1

MAX_TOOLS = 128
MAX_ANSWERS = 16
"""To one question."""

ROLES = ("system", "developer", "user", "assistant", "tool", "latest_reminder")

Role = Annotated[str, Meta(extra_json_schema={"enum": list(ROLES)})]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_INT)]
Tokens = Annotated[int, Meta(ge=-1, le=MAX_INT)]
Penalty = Annotated[float, bounds.PENALTY]
StopString = Annotated[str, Meta(max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)]


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a message; only text so far."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """What was called; `arguments` is the text of a JSON object, or what a model wrote instead of one."""

    name: str
    arguments: str


class CalledTool(msgspec.Struct, frozen=True, kw_only=True):
    """A call in an assistant message."""

    id: CallId
    function: FunctionCall
    type: Annotated[str, Meta(extra_json_schema={"enum": ["function"]})] = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of the conversation.

    An assistant message needs `content` or `tool_calls`, every other one `content`. A tool message answers the call of
    the id `tool_call_id`. `prefix` on a last assistant message has the model continue it.
    """

    role: Role
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: CallId | None = None
    prefix: bool | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`include_usage` has the usage come in a chunk of its own, the last; else it is in the last of the answer's."""

    include_usage: bool | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """An object whose `type` says what it asks for."""

    type: str


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON schema as OpenAI wraps it. Its answers always keep to it, whether or not it is called `strict`."""

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must be: JSON, JSON of a schema, what a regular expression matches or a Lark grammar derives."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "json_object", "json_schema", "regex", "grammar"]})]
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | None = None
    regex: str | None = None
    pattern: str | None = None
    grammar: str | None = None


Schema = Annotated[dict[str, Any] | str | None, Meta(description="a JSON schema, as an object or as its text")]
Regex = Annotated[str | None, Meta(description="a regular expression that the answer must match")]
Choices = Annotated[
    Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1024)] | None,
    Meta(description="a list of up to 1024 texts, of which the answer must be one"),
]
GrammarText = Annotated[str | None, Meta(description="a Lark grammar, or one of llama.cpp's kind")]


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the answer must be, in vLLM's words; one of these."""

    json: Schema = None
    regex: Regex = None
    choice: Choices = None
    grammar: GrammarText = None
    json_object: Annotated[bool | None, Meta(description="true or false")] = None


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. `parameters` is a JSON schema of an object; none means no arguments."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$(?!\n)")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool on offer; only functions so far."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["function"]})]
    function: Function | None = None


class Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The one tool that must be called."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["function"]})]
    function: Named


class SamplingFields(Unsupported, frozen=True, kw_only=True):
    """What both completion endpoints share."""

    model: Annotated[
        str | None, Meta(description="a text, one of those listed at /v1/models; the first of them if left out")
    ] = None
    temperature: Annotated[
        Annotated[float, bounds.TEMPERATURE] | None,
        Meta(description=f"a number {words(bounds.TEMPERATURE)}; 0 always takes the most likely token"),
    ] = None
    top_p: Annotated[Annotated[float, bounds.TOP_P] | None, Meta(description=f"a number {words(bounds.TOP_P)}")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=MAX_INT)] | None,
        Meta(description=f"an integer of {words(bounds.TOP_K)}; 0 and -1 keep all tokens"),
    ] = None
    min_p: Annotated[Annotated[float, bounds.MIN_P] | None, Meta(description=f"a number {words(bounds.MIN_P)}")] = None
    presence_penalty: Annotated[Penalty | None, Meta(description=f"a number {words(bounds.PENALTY)}")] = None
    frequency_penalty: Annotated[Penalty | None, Meta(description=f"a number {words(bounds.PENALTY)}")] = None
    repetition_penalty: Annotated[
        Annotated[float, bounds.REPETITION_PENALTY] | None,
        Meta(description=f"a number {words(bounds.REPETITION_PENALTY)}; 1 is neutral"),
    ] = None
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, bounds.LOGIT_BIAS]] | None,
        Meta(description=f"an object from token ids to numbers {words(bounds.LOGIT_BIAS)}"),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-1, le=bounds.SEED.le)] | None,
        Meta(description=f"an integer {words(bounds.SEED)}; -1 draws one"),
    ] = None
    stop: Annotated[
        StopString | StopStrings | None,
        Meta(description=f"a text or up to {MAX_STOP_STRINGS} texts, of up to {MAX_STOP_CHARACTERS} characters each"),
    ] = None
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Meta(max_length=MAX_LISTED_TOKENS)] | None,
        Meta(description=f"a list of up to {MAX_LISTED_TOKENS} token ids"),
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="true or false")] = None
    max_tokens: Annotated[Tokens | None, Meta(description="an integer of at least 1, or -1 for as many as usual")] = (
        None
    )
    max_completion_tokens: Annotated[
        Tokens | None, Meta(description="an integer; OpenAI's newer name of max_tokens")
    ] = None
    user_id: Annotated[
        Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,512}$(?!\n)")] | None,
        Meta(description="a text of 1 to 512 letters, digits, _ and -: for whom, among your users, you ask"),
    ] = None
    response_format: Annotated[ResponseFormat | None, Meta(description='an object such as {"type": "json_object"}')] = (
        None
    )
    structured_outputs: Annotated[
        StructuredOutputs | None,
        Meta(description='an object such as {"regex": "[0-9]+"}; one of json, regex, choice, grammar, json_object'),
    ] = None
    json_schema: Schema = None
    guided_json: Schema = None
    regex: Regex = None
    guided_regex: Regex = None
    guided_choice: Choices = None
    grammar: GrammarText = None
    guided_grammar: GrammarText = None
    ebnf: GrammarText = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None,
        Meta(description=f"an integer from 1 to {MAX_ANSWERS}, how many answers there are"),
    ] = None
    stream: Annotated[bool | None, Meta(description="true or false")] = None
    stream_options: Annotated[
        StreamOptions | None, Meta(description='an object such as {"include_usage": true}, with stream: true only')
    ] = None


class TemplateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What templates of other servers are told: two names for whether to think."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[
        list[ChatMessage], Meta(min_length=1, description="a list of at least one message with role and content")
    ]
    logprobs: Annotated[bool | None, Meta(description="true or false")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        Meta(description=f"an integer from 0 to {MAX_TOP_LOGPROBS}, with logprobs: true only"),
    ] = None
    thinking: Annotated[
        Kind | None, Meta(description='an object such as {"type": "enabled"}; types: enabled, disabled, adaptive')
    ] = None
    chat_template_kwargs: Annotated[
        TemplateOptions | None,
        Meta(description='an object such as {"thinking": true}; thinking and enable_thinking are all it may say'),
    ] = None
    enable_thinking: Annotated[bool | None, Meta(description="true or false; another way to say thinking")] = None
    reasoning_effort: Annotated[str | None, Meta(description=f"one of {', '.join(EFFORTS)}")] = None
    tools: Annotated[
        Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(
            description=f"a list of up to {MAX_TOOLS} functions such as "
            '{"type": "function", "function": {"name": ...}}, with names of 1 to 64 letters, digits, _ and -'
        ),
    ] = None
    tool_choice: Annotated[
        str | NamedTool | None,
        Meta(
            description='"none", "auto", "required", or an object such as '
            '{"type": "function", "function": {"name": ...}}'
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="true or false; false shows the first call of an answer only")
    ] = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: Annotated[str | list[Any], Meta(description="a text, a list of token ids, or a list of several of either")]
    suffix: Annotated[str | None, Meta(description="a text: the model fills the gap between prompt and suffix")] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="true or false; false puts no begin-of-sequence token in front of a text")
    ] = None
    parse_special: Annotated[
        bool | None, Meta(description="true or false; false reads what spells a special token as plain text")
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        Meta(description=f"an integer from 0 to {MAX_TOP_LOGPROBS}"),
    ] = None
    echo: Annotated[bool | None, Meta(description="true or false")] = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None,
        Meta(
            description=f"an integer from 1 to {MAX_ANSWERS}, at least n: of so many answers, the n that the model "
            "found likeliest per token are shown; without stream"
        ),
    ] = None
