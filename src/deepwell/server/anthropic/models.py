"""GET /anthropic/v1/models: the model names in Anthropic's shape, and which model a name stands for."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deepwell.accounts.clock import SECOND
from deepwell.errors import ModelUnknown
from deepwell.server.callers import allowed, caller_of
from deepwell.server.errors import JsonResponse
from deepwell.server.query import iso
from deepwell.server.service import Service

FAMILY = "claude-"
"""Programs made for Anthropic's models ask for them by names that begin so; the served model answers."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model. `max_input_tokens` is its context."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelInfos(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of GET /anthropic/v1/models; there is but one page."""

    data: list[ModelInfo]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


def named(model: str | None, service: Service) -> str:
    """The name of the model that answers where `model` is asked for. Raises ModelUnknown."""
    if model and model.startswith(FAMILY) and model not in service.names:
        return service.model
    return service.named(model or None)


async def models(request: Request) -> Response:
    """The model names that requests may use."""
    service: Service = request.app.state.service
    infos = [_info(name, service) for name in allowed(service.names, caller_of(request))]
    first, last = (infos[0].id, infos[-1].id) if infos else (None, None)
    return JsonResponse(ModelInfos(data=infos, first_id=first, last_id=last))


async def model(request: Request) -> Response:
    """One of them."""
    service: Service = request.app.state.service
    name = named(request.path_params["id"], service)
    if not allowed([name], caller_of(request)):
        raise ModelUnknown(f"this key may not use {name!r}", "model")
    return JsonResponse(_info(name, service))


def asks_anthropic(request: Request) -> bool:
    """Whether a path that two APIs share is asked for by a client of this one."""
    return "anthropic-version" in request.headers


def _info(name: str, service: Service) -> ModelInfo:
    return ModelInfo(
        id=name,
        display_name=name,
        created_at=iso(service.created * SECOND),
        max_input_tokens=service.context,
        max_tokens=service.limits.max_tokens or service.context,
    )
