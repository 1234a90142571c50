"""/tokenize, /detokenize and /tokenizer_info: the token ids of a text or a conversation, and the text of token ids.

Bodies and answers are vLLM's, and llama.cpp's, which calls a prompt `content`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import opening, render_chat
from deepwell.errors import ContextExceeded, RequestError
from deepwell.server.conversations import conversation_of, texts_of
from deepwell.server.errors import JsonResponse
from deepwell.server.protocol import ChatMessage, ChatRequest, OfferedTool, TemplateOptions, TokenId
from deepwell.server.service import Service


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize: one of `prompt`, `content` and `messages`.

    A begin-of-sequence token is put in front of a `prompt`, but not of a `content`, unless asked otherwise. What spells
    a special token is one in either; in `messages` it is text.
    """

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[OfferedTool] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class TokenPiece(msgspec.Struct, frozen=True):
    """A token, and its text, or its bytes where they are no text."""

    id: int
    piece: str | list[int]


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of POST /tokenize. `max_model_len` is the context."""

    count: int
    max_model_len: int
    tokens: list[int | TokenPiece]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(description="a list of token ids")]


class Detokenized(msgspec.Struct, frozen=True):
    """Answer of POST /detokenize: the text under both names."""

    prompt: str
    content: str


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /tokenizer_info: what programs need that lay out prompts themselves, as vLLM has it."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    model_max_length: int


async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of the prompt that a conversation makes."""
    service: Service = request.app.state.service
    async with service.bodies.kept(request, TokenizeRequest) as asked:
        service.named(asked.model)
        ids = await _ids(request, asked, service)
        spelled = [service.tokenizer.token_bytes(id) for id in ids]
        return JsonResponse(
            Tokenized(
                count=len(ids),
                max_model_len=service.context,
                tokens=[TokenPiece(id, _piece(one)) for id, one in zip(ids, spelled, strict=True)]
                if asked.with_pieces
                else list(ids),
                token_strs=[one.decode("utf-8", "replace") for one in spelled] if asked.return_token_strs else UNSET,
            )
        )


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    service: Service = request.app.state.service
    async with service.bodies.kept(request, DetokenizeRequest) as asked:
        service.named(asked.model)
        if len(asked.tokens) > service.context:
            raise ContextExceeded(service.context, len(asked.tokens), 0, "tokens")
        vocabulary = service.tokenizer.vocab_size
        if (highest := max(asked.tokens, default=0)) >= vocabulary:
            raise RequestError(f"tokens has token id {highest}; ids go from 0 to {vocabulary - 1}", "tokens")
        text = service.tokenizer.decode(asked.tokens)
        return JsonResponse(Detokenized(prompt=text, content=text))


async def tokenizer_info(request: Request) -> Response:
    """The tokens that open and end a text, and the template of conversations."""
    service: Service = request.app.state.service
    tokenizer = service.tokenizer
    named = tokenizer.named
    return JsonResponse(
        TokenizerInfo(
            bos_token=None if tokenizer.bos is None else tokenizer.decode([tokenizer.bos]),
            eos_token=named.get("eos_token") or tokenizer.decode(tokenizer.eos[:1]) or None,
            pad_token=named.get("pad_token"),
            unk_token=named.get("unk_token"),
            chat_template=tokenizer.template,
            model_max_length=service.context,
        )
    )


async def _ids(request: Request, asked: TokenizeRequest, service: Service) -> tuple[int, ...]:
    tokenizer = service.tokenizer
    given = [name for name in ("prompt", "content", "messages") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise RequestError("give one of prompt, content and messages", given[1] if given else "prompt")
    if asked.messages is not None:
        chat = ChatRequest(messages=asked.messages, tools=asked.tools, chat_template_kwargs=asked.chat_template_kwargs)
        told = await service.understood(request, lambda: conversation_of(chat, service.format))
        return await service.rendered(
            request.receive,
            lambda: render_chat(told, tokenizer, service.format),
            texts_of(told),
            "messages",
            chat=True,
        )
    text = asked.prompt if asked.content is None else asked.content
    said = asked.add_special if asked.add_special_tokens is None else asked.add_special_tokens
    opens = asked.content is None if said is None else said
    assert text is not None

    def encode() -> tuple[int, ...]:
        ids = tokenizer.encode(text, controls=asked.parse_special is not False)
        return (*(opening(ids, tokenizer) if opens else ()), *ids)

    return await service.rendered(request.receive, encode, [text], given[0])


def _piece(token: bytes) -> str | list[int]:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
