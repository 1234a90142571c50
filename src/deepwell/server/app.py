"""The HTTP application: which path leads where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.chat import fills_gaps
from deepwell.server.chat_completions import chat_completions
from deepwell.server.completions import completions
from deepwell.server.errors import HANDLERS, JsonResponse
from deepwell.server.infill import infill
from deepwell.server.metrics import Metrics
from deepwell.server.openapi import openapi
from deepwell.server.page import page_routes
from deepwell.server.replies import Capability, ModelCard, ModelList
from deepwell.server.service import Service
from deepwell.server.tokens import detokenize, tokenize

PREFIXES = ("", "/v1", "/beta")
"""DeepSeek's base addresses; all three lead to the same endpoints."""


def create_app(service: Service) -> Starlette:
    """The application around a service; its lifespan starts and stops the engine."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            await service.stop()

    routes = [
        *(Route(f"{prefix}/chat/completions", chat_completions, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/completions", completions, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/models", models) for prefix in PREFIXES),
        *(Route(f"{prefix}/models/{{id:path}}", model) for prefix in PREFIXES),
        *(Route(f"{prefix}/tokenize", tokenize, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/detokenize", detokenize, methods=["POST"]) for prefix in PREFIXES),
        *(Route(f"{prefix}/infill", infill, methods=["POST"]) for prefix in PREFIXES),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi_document),
    ]
    counted = frozenset(route.path for route in routes)
    app = Starlette(
        routes=[*routes, *page_routes()],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        middleware=[Middleware(CountRequests, metrics=service.metrics, paths=counted)],
    )
    app.state.service = service
    return app


async def models(request: Request) -> Response:
    """The model names that requests may use."""
    service: Service = request.app.state.service
    return JsonResponse(ModelList(data=[_card(name, service) for name in service.names]))


async def model(request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    return JsonResponse(_card(service.named(request.path_params["id"]), service))


async def health(request: Request) -> Response:
    """Whether the server takes requests."""
    service: Service = request.app.state.service
    refusal = service.engine.refusal
    if refusal is not None:
        return JsonResponse({"status": refusal}, status_code=503)
    return JsonResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """The metrics page."""
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
    return ModelCard(id=name, created=service.created, context_length=service.context, capabilities=capabilities)


class CountRequests:
    """Counts answers by path and status; paths that are not endpoints count together."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["path"]
            self._metrics.http(path if path in self._paths else "other", status)
