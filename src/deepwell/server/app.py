"""The HTTP application: which path leads where."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec import UNSET
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepwell.accounts import Caller
from deepwell.chat import fills_gaps
from deepwell.errors import ModelUnknown
from deepwell.server import anthropic, batches
from deepwell.server.admin import admin_routes
from deepwell.server.asterisk import AnswerAsterisk
from deepwell.server.balance import balance
from deepwell.server.base_path import BasePath
from deepwell.server.books import BooksMetrics
from deepwell.server.callers import KnowCallers, allowed, caller_of
from deepwell.server.chat_completions import chat_completions
from deepwell.server.completions import completions
from deepwell.server.desk import Desk
from deepwell.server.embeddings import embeddings
from deepwell.server.errors import HANDLERS, AnswerFailures, JsonResponse
from deepwell.server.hosts import CheckHost, Hosts
from deepwell.server.infill import infill
from deepwell.server.openapi import openapi
from deepwell.server.page import page_paths, page_routes
from deepwell.server.replies import Capability, EmbeddingCard, ModelCard, ModelList
from deepwell.server.request_log import ID_HEADER, RecordRequests
from deepwell.server.responses import input_tokens, not_stored, responses
from deepwell.server.service import Service
from deepwell.server.site import Site
from deepwell.server.tokens import detokenize, tokenize, tokenizer_info

PREFIXES = ("", "/v1", "/beta")
"""DeepSeek's base addresses; all three lead to the same endpoints."""
ANTHROPIC = ("/v1", "/anthropic/v1")
"""Where Anthropic's clients look for it, and DeepSeek's own address of it."""
SITE = Site()


def create_app(service: Service, site: Site = SITE, hosts: Hosts | None = None, desk: Desk | None = None) -> Starlette:
    """The application around a service; its lifespan starts and stops the engine.

    It answers to the names that `hosts` knows; to every name, if there is none. `desk` has the accounts that
    administrators work with.
    """

    desk = desk or (Desk(service.platform) if service.platform else None)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        sampling = asyncio.create_task(desk.energy.keep_sampling()) if desk else None
        if app.state.worker is not None:
            await app.state.worker.start()
        try:
            yield
        finally:
            if app.state.worker is not None:
                await app.state.worker.stop()
            if sampling:
                sampling.cancel()
            await service.stop()

    routes = _routes(service)
    app = Starlette(
        routes=[*routes, *page_routes()],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        middleware=_middleware(service, site, hosts, frozenset(route.path for route in routes)),
    )
    app.state.service = service
    app.state.desk = desk
    app.state.worker = _batch_worker(service, site, routes)
    if desk:
        service.metrics.registry.register(BooksMetrics(desk, service.model))
    return app


def _routes(service: Service) -> list[Route]:
    """Every endpoint; the page's files are not among them."""
    return [
        *(Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/completions", completions, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/models", models) for prefix in PREFIXES),
        *(Route(f"{prefix}/models/{{id:path}}", model) for prefix in PREFIXES),
        *(Route(f"{prefix}/responses", responses, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/responses/input_tokens", input_tokens, methods=["POST"]) for prefix in PREFIXES),
        *(
            Route(f"{prefix}/responses/resp_{{id:path}}", not_stored, methods=["GET", "POST", "DELETE"])
            for prefix in PREFIXES
        ),
        *(Route(f"{prefix}/messages", anthropic.messages, methods=["POST"]) for prefix in ANTHROPIC),
        *(Route(f"{prefix}/messages/count_tokens", anthropic.count_tokens, methods=["POST"]) for prefix in ANTHROPIC),
        Route("/anthropic/v1/models", anthropic.models),
        Route("/anthropic/v1/models/{id:path}", anthropic.model),
        Route("/user/balance", balance),
        Route("/v1/user/balance", balance),
        *([] if service.limits.strict else _extras()),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi_document),
        *admin_routes(),
    ]


def _middleware(service: Service, site: Site, hosts: Hosts | None, counted: frozenset[str]) -> list[Middleware]:
    """What stands around the endpoints, the outermost first; requests are counted by the paths in `counted`."""
    return [
        Middleware(RecordRequests, metrics=service.metrics, paths=counted, base_path=site.base_path, tell=site.tell),
        Middleware(anthropic.WordErrors, base_path=site.base_path),
        *([Middleware(CheckHost, hosts=hosts)] if hosts else []),
        *([_allowing(site.allow_origins)] if site.allow_origins else []),
        Middleware(AnswerFailures),
        Middleware(AnswerAsterisk),
        Middleware(BasePath, prefix=site.base_path),
        *([Middleware(KnowCallers, platform=service.platform, page=page_paths())] if service.platform else []),
    ]


async def models(request: Request) -> Response:
    """The model names that requests may use."""
    if anthropic.asks_anthropic(request):
        return await anthropic.models(request)
    service: Service = request.app.state.service
    names = allowed(service.names, caller_of(request))
    return JsonResponse(ModelList(data=[_card(name, service) for name in names]))


async def model(request: Request) -> Response:
    """One of them."""
    if anthropic.asks_anthropic(request):
        return await anthropic.model(request)
    service: Service = request.app.state.service
    name = service.named(request.path_params["id"])
    if name not in allowed([name], caller_of(request)):
        raise ModelUnknown(f"this key may not use {name!r}", "model")
    return JsonResponse(_card(name, service))


async def health(request: Request) -> Response:
    """Whether the server takes requests."""
    service: Service = request.app.state.service
    refusal = service.engine.refusal
    if refusal is not None:
        return JsonResponse({"status": refusal}, status_code=503)
    return JsonResponse({"status": "ok"})


def metrics(request: Request) -> Response:
    """The metrics page; in a thread, for the books are read from the database."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi_document(_: Request) -> Response:
    """The OpenAPI document."""
    return JsonResponse(openapi())


def _card(name: str, service: Service) -> ModelCard:
    capabilities: list[Capability] = ["completion"]
    if service.chats:
        capabilities.append("chat")
        capabilities += ["tools"] if service.format.tools else []
        capabilities += ["thinking"] if service.format.thinks != "never" else []
    if fills_gaps(service.tokenizer):
        capabilities.append("fim")
    if not service.limits.strict:
        capabilities.append("embedding")
    return ModelCard(
        id=name,
        created=service.created,
        context_length=service.context,
        capabilities=capabilities,
        embedding=UNSET if service.limits.strict else EmbeddingCard(dimensions=service.engine.hidden),
        sampling=service.advice if service.advice.given else None,
    )


def _extras() -> list[Route]:
    """What DeepSeek's API does not have."""
    answering = (embeddings, tokenize, detokenize, infill)
    return [
        *(Route(f"{prefix}/{one.__name__}", one, methods=["POST"]) for one in answering for prefix in PREFIXES),
        *(Route(f"{prefix}/tokenizer_info", tokenizer_info) for prefix in PREFIXES),
        *(route for prefix in PREFIXES for route in batches.routes(prefix)),
    ]


def _batch_worker(service: Service, site: Site, routes: Sequence[Route]) -> batches.Worker | None:
    """Answers batches by the same endpoints, behind no other middleware: nobody is at the other end of a connection."""
    if site.data is None or service.limits.strict:
        return None
    words = [Middleware(anthropic.WordErrors, base_path=""), Middleware(AnswerFailures)]
    inner = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=words)
    inner.state.service = service

    def callers(key: int) -> Caller | None:
        return None if service.platform is None else service.platform.caller_of(key)

    return batches.Worker(batches.Store(site.data / "batches"), inner, lambda: int(time.time()), callers)


def _allowing(origins: tuple[str, ...]) -> Middleware:
    """Lets pages of other sites ask. Never with credentials: there are none, and * must not stand for somebody's."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=(ID_HEADER, "retry-after"),
    )
