"""/openapi.json: the endpoints, and the schemas of the very structs that validate requests and encode answers."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from deepwell import __version__
from deepwell.server.admin import AccountCard, AccountPage, ChangeBody, KeyBody, KeyCard, KeyPage, MovementBody
from deepwell.server.anthropic.errors import AnthropicError
from deepwell.server.anthropic.models import ModelInfo, ModelInfos
from deepwell.server.anthropic.protocol import CountRequest, MessagesRequest
from deepwell.server.anthropic.replies import MessageAnswer, MessageEvent, TokenCount
from deepwell.server.batches.objects import Batch, BatchList, BatchRequest, FileDeleted, FileList, FileObject
from deepwell.server.books import BooksAnswer, UsageAnswer
from deepwell.server.embeddings import EmbeddingRequest, Embeddings
from deepwell.server.errors import ErrorBody
from deepwell.server.infill import Infilled, InfillRequest
from deepwell.server.protocol import ChatRequest, CompletionRequest
from deepwell.server.replies import ChatChunk, ChatCompletion, ModelCard, ModelList, TextCompletion
from deepwell.server.responses.protocol import ResponsesRequest
from deepwell.server.responses.replies import InputTokens, ResponseAnswer, ResponseEvent
from deepwell.server.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest, TokenizerInfo

ERRORS = {
    "400": "The request is malformed or a field has a value that is not allowed; the message names it.",
    "404": "There is no such model, file or batch.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "429": "The queue is full; retry after the seconds in Retry-After.",
    "500": "The server failed.",
    "503": "The server is stopping; retry after the seconds in Retry-After.",
}

_KEYLESS = {"401": "There is no key, or one that does not hold.", "403": "The key is of a role that may not do this."}
_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    asked = (
        ChatRequest,
        CompletionRequest,
        InfillRequest,
        EmbeddingRequest,
        ResponsesRequest,
        MessagesRequest,
        CountRequest,
        TokenizeRequest,
        DetokenizeRequest,
        BatchRequest,
        KeyBody,
        ChangeBody,
        MovementBody,
    )
    answers = (
        ChatCompletion,
        ChatChunk,
        TextCompletion,
        Infilled,
        Embeddings,
        ResponseAnswer,
        InputTokens,
        *get_args(ResponseEvent),
        MessageAnswer,
        TokenCount,
        *get_args(MessageEvent),
        ModelInfo,
        ModelInfos,
        AnthropicError,
        Tokenized,
        Detokenized,
        TokenizerInfo,
        ModelList,
        FileObject,
        FileList,
        FileDeleted,
        Batch,
        BatchList,
        KeyCard,
        KeyPage,
        AccountCard,
        AccountPage,
        BooksAnswer,
        UsageAnswer,
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
            "/v1/models/{id}": _with_id(_get("One of them.", _json(ModelCard))),
            **_batches(),
            **_responses(),
            **_messages(),
            **_admin(),
            "/health": _get("Whether the server takes requests.", {"application/json": {}}),
            "/metrics": _get("Metrics in Prometheus' text format.", {"text/plain": {}}),
        },
        "components": {"schemas": schemas},
    }


def _batches() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["purpose", "file"],
        "properties": {
            "purpose": {"type": "string", "enum": ["batch"]},
            "file": {"type": "string", "contentMediaType": "application/jsonl"},
        },
    }
    upload = _post("Keep a file of requests.", None, FileObject)
    upload["post"]["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    delete = {"delete": _get("Remove one.", _json(FileDeleted))["get"]}
    return {
        "/v1/files": upload | _listing("The caller's files, the newest first.", FileList, "purpose"),
        "/v1/files/{id}": _with_id(_get("One of them.", _json(FileObject)) | delete),
        "/v1/files/{id}/content": _with_id(_get("What is in one.", {"application/jsonl": {}})),
        "/v1/batches": _post("Begin a batch.", BatchRequest, Batch)
        | _listing("The caller's batches, the newest first.", BatchList),
        "/v1/batches/{id}": _with_id(_get("One of them.", _json(Batch))),
        "/v1/batches/{id}/cancel": _with_id(_post("End one soon.", None, Batch)),
    }


def _responses() -> dict[str, Any]:
    path = "/v1/responses"
    return {
        path: _post("Answer items with items.", ResponsesRequest, ResponseAnswer, ResponseEvent),
        f"{path}/input_tokens": _post("How long the prompt is.", ResponsesRequest, InputTokens),
    }


def _messages() -> dict[str, Any]:
    """Each below /anthropic; the first two also without it."""
    message = _post("Answer a conversation, in Anthropic's words.", MessagesRequest, MessageAnswer, MessageEvent)
    count = _post("How long the prompt of a conversation is.", CountRequest, TokenCount)
    models = _get("The model names that requests may use.", _json(ModelInfos))
    paths = {
        "/v1/messages": message,
        "/v1/messages/count_tokens": count,
        "/anthropic/v1/messages": message,
        "/anthropic/v1/messages/count_tokens": count,
        "/anthropic/v1/models": models,
        "/anthropic/v1/models/{id}": _with_id(_get("One of them.", _json(ModelInfo))),
    }
    return {path: _with_errors(item, AnthropicError) for path, item in paths.items()}


def _admin() -> dict[str, Any]:
    """For keys of the role admin."""
    span = {"from": _TEXT, "until": _TEXT}
    page = {"after": _WHOLE, "limit": _WHOLE, "name": _TEXT}
    books = _get("The books of a span, by the hour or day.", _json(BooksAnswer))
    usage = _get("What was used, summed by key, account, model and so on.", _json(UsageAnswer))
    keys = _get("Keys, page by page.", _json(KeyPage))
    accounts = _get("Accounts and their money, page by page.", _json(AccountPage))
    paths = {
        "/admin/books": _asked(books, by={"type": "string", "enum": ["hour", "day"]}, **span),
        "/admin/usage": _asked(usage, by=_TEXT, limit=_WHOLE, offset=_WHOLE, **span),
        "/admin/keys": _asked(keys, **page) | _post("Make a key.", KeyBody, KeyCard),
        "/admin/keys/{id}": _with_id(_post("Change a key.", ChangeBody, KeyCard)),
        "/admin/keys/{id}/revoke": _with_id(_post("End a key for good.", None, KeyCard)),
        "/admin/accounts": _asked(accounts, **page),
        "/admin/accounts/{id}/movements": _with_id(_post("Give money to an account.", MovementBody, AccountCard)),
    }
    for item in paths.values():
        for how in {"get", "post"} & item.keys():
            item[how]["responses"] |= {code: {**_ERRORS["400"], "description": text} for code, text in _KEYLESS.items()}
    return paths


def _asked(item: dict[str, Any], **query: dict[str, Any]) -> dict[str, Any]:
    """A path with what may stand in its query."""
    item["get"]["parameters"] = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]
    return item


def _with_errors(item: dict[str, Any], kind: type) -> dict[str, Any]:
    """A path whose errors have a shape of their own."""
    worded = {code: {**error, "content": _json(kind)} for code, error in _ERRORS.items()}
    done = {how: {**item[how], "responses": item[how]["responses"] | worded} for how in ("get", "post") if how in item}
    return item | done


def _post(text: str, body: type | None, answer: type, chunk: Any = None) -> dict[str, Any]:
    """`chunk` is what a stream consists of: one kind, or a union of several."""
    kinds = [_ref(kind) for kind in get_args(chunk) or ([chunk] if chunk else [])]
    events = {"text/event-stream": {"schema": {"anyOf": kinds} if len(kinds) > 1 else kinds[0]}} if kinds else {}
    content = _json(answer) | events
    how = "The answer, whole or streamed." if chunk else "The answer."
    asked: dict[str, Any] = {"requestBody": {"required": True, "content": _json(body)}} if body else {}
    return {
        "post": {"summary": text, **asked, "responses": {"200": {"description": how, "content": content}, **_ERRORS}}
    }


def _get(text: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"get": {"summary": text, "responses": {"200": {"description": text, "content": content}, **_ERRORS}}}


def _listing(text: str, kind: type, *more: str) -> dict[str, Any]:
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}}
    texts = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("after", *more)]
    found = _get(text, _json(kind))
    found["get"]["parameters"] = [limit, *texts]
    return found


def _with_id(item: dict[str, Any]) -> dict[str, Any]:
    """A path that has an id in it."""
    return {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}], **item}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(kind)}}


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


_ERRORS = {code: {"description": words, "content": _json(ErrorBody)} for code, words in ERRORS.items()}
