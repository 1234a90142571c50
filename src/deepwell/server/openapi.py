"""/openapi.json: the endpoints, and the schemas of the very structs that validate requests and encode answers."""

from __future__ import annotations

from typing import Any

import msgspec

from deepwell import __version__
from deepwell.server.embeddings import EmbeddingRequest, Embeddings
from deepwell.server.errors import ErrorBody
from deepwell.server.infill import Infilled, InfillRequest
from deepwell.server.protocol import ChatRequest, CompletionRequest
from deepwell.server.replies import ChatChunk, ChatCompletion, ModelCard, ModelList, TextCompletion
from deepwell.server.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest, TokenizerInfo

ERRORS = {
    "400": "The request is malformed or a field has a value that is not allowed; the message names it.",
    "413": "The body is too large.",
    "429": "The queue is full; retry after the seconds in Retry-After.",
    "500": "The server failed.",
    "503": "The server is stopping; retry after the seconds in Retry-After.",
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    asked = (ChatRequest, CompletionRequest, InfillRequest, EmbeddingRequest, TokenizeRequest, DetokenizeRequest)
    answers = (
        ChatCompletion,
        ChatChunk,
        TextCompletion,
        Infilled,
        Embeddings,
        Tokenized,
        Detokenized,
        TokenizerInfo,
        ModelList,
        ErrorBody,
    )
    types = (*asked, *answers)
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "Deepwell", "version": __version__},
        "paths": {
            "/v1/chat/completions": _post("Answer a conversation.", ChatRequest, ChatCompletion, ChatChunk),
            "/v1/completions": _post(
                "Continue a text, or fill a gap in it.", CompletionRequest, TextCompletion, TextCompletion
            ),
            "/v1/embeddings": _post("Texts as vectors.", EmbeddingRequest, Embeddings),
            "/infill": _post("Fill a gap, in llama.cpp's words.", InfillRequest, Infilled, Infilled),
            "/tokenize": _post("The token ids of a text or a conversation.", TokenizeRequest, Tokenized),
            "/detokenize": _post("The text of token ids.", DetokenizeRequest, Detokenized),
            "/tokenizer_info": _get("The tokens that open and end a text, and the template.", _json(TokenizerInfo)),
            "/v1/models": _get("The model names that requests may use.", _json(ModelList)),
            "/v1/models/{id}": _get("One of them.", _json(ModelCard)),
            "/health": _get("Whether the server takes requests.", {"application/json": {}}),
            "/metrics": _get("Metrics in Prometheus' text format.", {"text/plain": {}}),
        },
        "components": {"schemas": schemas},
    }


def _post(text: str, body: type, answer: type, chunk: type | None = None) -> dict[str, Any]:
    content = _json(answer) | ({"text/event-stream": {"schema": _ref(chunk)}} if chunk else {})
    how = "The answer, whole or streamed." if chunk else "The answer."
    responses: dict[str, Any] = {"200": {"description": how, "content": content}}
    responses |= {code: {"description": words, "content": _json(ErrorBody)} for code, words in ERRORS.items()}
    asked = {"required": True, "content": _json(body)}
    return {"post": {"summary": text, "requestBody": asked, "responses": responses}}


def _get(text: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": text, "responses": {"200": {"description": text, "content": content}}}}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(kind)}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
