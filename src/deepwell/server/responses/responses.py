"""POST /v1/responses and /v1/responses/input_tokens; nothing is stored, so there is nothing to get or delete."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deepwell.chat import Tool
from deepwell.engine.types import SamplingParams
from deepwell.errors import RequestError, shown
from deepwell.server.answers import respond
from deepwell.server.errors import INVALID, JsonResponse, error_body
from deepwell.server.question import Question, question_of
from deepwell.server.replies import Head
from deepwell.server.responses.conversation import conversation_of
from deepwell.server.responses.protocol import ItemTool, ResponsesRequest
from deepwell.server.responses.replies import (
    CustomEcho,
    FunctionEcho,
    InputTokens,
    NamespaceEcho,
    ResponseAnswer,
    ToolEcho,
)
from deepwell.server.responses.tools import DROPPED, offered
from deepwell.server.responses.writer import ResponsesWriter
from deepwell.server.rules import check_common, max_tokens_of, sampling_of
from deepwell.server.service import Service

CARRIES = "reasoning.encrypted_content"


async def responses(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    timer = service.metrics.request()
    async with service.admitted(request, ResponsesRequest) as (asked, place):
        asked = _with_limit(asked)
        model = check_common(asked, service)
        _check_included(asked)
        conversation = await service.understood(request, lambda: conversation_of(asked, service.format))
        question = await question_of(request, conversation, service, "input")
        max_tokens = max_tokens_of(asked, len(question.prompt), "input", service, question.habit)
        sampling = sampling_of(asked, service.advice, max_tokens, None, ends=service.ends)
        head = service.head(model, request)
        stream = question.submit(place, head.id, sampling)
        writer = ResponsesWriter(
            _echo(asked, question, head, sampling),
            question.turn(asked.parallel_tool_calls is False),
            offered(asked.tools or (), service.format),
            carries=CARRIES in (asked.include or ()),
        )
        return await respond(request, stream, writer, timer, bool(asked.stream), service.limits.keep_alive_seconds)


async def input_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    service: Service = request.app.state.service
    async with service.bodies.kept(request, ResponsesRequest) as asked:
        check_common(asked, service)
        conversation = await service.understood(request, lambda: conversation_of(asked, service.format))
        question = await question_of(request, conversation, service, "input")
        return JsonResponse(InputTokens(input_tokens=len(question.prompt)))


async def not_stored(request: Request) -> Response:
    """What becomes of a request for an earlier answer."""
    message = f"there is no response {shown('resp_' + request.path_params['id'])}: this server stores no responses"
    return JsonResponse(error_body(message, INVALID, "response_id"), status_code=404)


def _with_limit(asked: ResponsesRequest) -> ResponsesRequest:
    """The same with `max_output_tokens` read as max_tokens. Raises RequestError if it is 0, or the other says
    otherwise."""
    if asked.max_output_tokens is None:
        return asked
    if asked.max_output_tokens == 0:
        raise RequestError("max_output_tokens must be at least 1", "max_output_tokens")
    if asked.max_tokens not in (None, asked.max_output_tokens):
        fault = "max_tokens and max_output_tokens mean the same here; give one of them"
        raise RequestError(fault, "max_output_tokens")
    return msgspec.structs.replace(asked, max_tokens=asked.max_output_tokens)


def _check_included(asked: ResponsesRequest) -> None:
    for index, name in enumerate(asked.include or ()):
        if name == "message.output_text.logprobs":
            raise RequestError(f"include[{index}]: log-probabilities are not supported here", f"include[{index}]")


def _echo(asked: ResponsesRequest, question: Question, head: Head, sampling: SamplingParams) -> ResponseAnswer:
    """The answer before it begins: how it was asked for."""
    told = question.conversation
    text: dict[str, Any] = {"format": {"type": "text"}}
    if asked.text is not None and asked.text.format is not None:
        given = msgspec.to_builtins(asked.text.format)
        text["format"] = {name: value for name, value in given.items() if value is not None}
    choice = told.choice
    return ResponseAnswer(
        id=f"resp_{head.id}",
        created_at=head.created,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        model=head.model,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning={"effort": None if asked.reasoning is None else asked.reasoning.effort, "summary": None},
        temperature=sampling.temperature,
        text=text,
        tool_choice=asked.tool_choice if isinstance(choice, Tool) else choice,
        tools=[_tool_echo(tool) for tool in asked.tools or () if tool.type not in DROPPED],
        top_p=sampling.top_p,
        user=asked.user,
    )


def _tool_echo(tool: ItemTool) -> ToolEcho:
    name = tool.name or ""
    if tool.type == "custom":
        return CustomEcho(name=name, description=tool.description, format=tool.format)
    if tool.type == "namespace":
        inside = [_function_echo(inner) for inner in tool.tools or ()]
        return NamespaceEcho(name=name, description=tool.description or "", tools=inside)
    return _function_echo(tool)


def _function_echo(tool: ItemTool) -> FunctionEcho:
    return FunctionEcho(
        name=tool.name or "", description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
