"""Another protocol needs a writer alone: its own opening, names of events, ping, errors and end, over one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from scripting import scripted
from serving import MODEL, chat, wait_idle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from deepwell.chat import Conversation, Message, Tool, render_chat
from deepwell.chat.reading import CallArguments, CallBegin, Content, Reasoning
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.engine.types import Delta, SamplingParams
from deepwell.server import Service, create_app
from deepwell.server.answers import respond
from deepwell.server.turn import Turn
from toy_format import END_THINK, EOS, called, ids


class Body(msgspec.Struct):
    """A whole answer of the other protocol: a list of parts, in its own words."""

    parts: list[dict[str, Any]]
    ended: str


class NamedWriter:
    """Server-sent events with names, parts that begin and grow, and an end that is an event of its own."""

    media_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def opening(self) -> Iterator[bytes]:
        yield self._event("begin", role="assistant")

    def pieces(self, delta: Delta) -> Iterator[bytes]:
        for piece in self._turn.push(delta).pieces:
            match piece:
                case CallBegin(name, id):
                    yield self._event("call", name=name, named=bool(id))
                case Reasoning(text) | Content(text) | CallArguments(text):
                    yield self._event(type(piece).__name__.lower(), text=text)
        if delta.usage is not None:
            yield self._event("end", why=delta.finish_reason, tokens=delta.usage.completion_tokens)

    def ping(self) -> bytes:
        return self._event("ping")

    def failed(self, error: str) -> bytes:
        return self._event("error", message=error)

    def ended(self) -> bytes:
        return b""

    def whole(self, delta: Delta) -> Body:
        self._turn.push(delta)
        parts = self._turn.message.parts
        return Body([{type(part).__name__.lower(): part} for part in parts], str(delta.finish_reason))

    def failure(self, error: str) -> Body:
        return Body([], error)

    def _event(self, name: str, /, **data: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def other(request: Request) -> Response:
    """The other protocol's endpoint: a text in, thought over or not, streamed or not."""
    service: Service = request.app.state.service
    asked = await request.json()
    told = Conversation(
        messages=(Message.of("user", "Hi"),), tools=(Tool(name="clock"),), thinking=asked.get("thinking", False)
    )
    prompt = render_chat(told, service.tokenizer, service.format)
    reader = service.format.reader(told, service.tokenizer)
    turn = Turn(reader, ThoughtMeter(reader.thoughts, service.tokenizer))
    id = service.head(MODEL, request).id
    sampling = SamplingParams(max_tokens=100, temperature=0.0, stop_token_ids=service.ends)
    timer = service.metrics.request()
    with service.engine.place() as place:
        stream = service.submit(place, id, prompt, sampling)
        return await respond(request, stream, NamedWriter(turn), timer, asked["stream"], asked.get("silence", 5.0))


def served(*answers: list[int], **fields: Any) -> tuple[Service, Starlette]:
    """A service, and its application with the other protocol beside DeepSeek's."""
    service, _ = scripted(*answers, **fields)
    app = create_app(service)
    app.router.routes.insert(0, Route("/other", other, methods=["POST"]))
    return service, app


def asked(service: Service, app: Starlette, **fields: Any) -> Any:
    with TestClient(app) as client:
        response = client.post("/other", json={"stream": True, **fields})
        wait_idle(service)
        return response


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


ANSWER = ids("Hm, hm.", END_THINK, "I look. ", *called("clock", '{"at": "noon"}'), EOS)


def test_the_same_stream_in_other_words() -> None:
    response = asked(*served(ANSWER), thinking=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert found[0] == ("begin", {"role": "assistant"})
    assert found[-1] == ("end", {"why": "stop", "tokens": len(ANSWER)})
    names = [name for name, _ in found[1:-1]]
    assert list(dict.fromkeys(names)) == ["reasoning", "content", "call", "callarguments"]
    said = {kind: "".join(data.get("text", "") for name, data in found if name == kind) for kind in names}
    assert said == {"reasoning": "Hm, hm.", "content": "I look. ", "call": "", "callarguments": '{"at": "noon"}'}
    assert ("call", {"name": "clock", "named": True}) in found
    assert "[DONE]" not in response.text


def test_a_whole_answer_in_other_words() -> None:
    body = asked(*served(ANSWER), thinking=True, stream=False).json()
    call = body["parts"].pop()["call"]
    assert body == {"parts": [{"thought": {"text": "Hm, hm."}}, {"text": {"text": "I look. "}}], "ended": "stop"}
    assert (call["name"], call["arguments"]) == ("clock", '{"at": "noon"}')


def test_a_waiting_client_gets_pings() -> None:
    response = asked(*served(ids("Hi", EOS), delay=0.1), silence=0.02)
    names = [name for name, _ in events(response.text)]
    assert names[0] == "ping"
    assert names.count("ping") >= 2
    assert ": keep-alive" not in response.text


@pytest.mark.parametrize(("broken_after", "names"), [(0, ["error"]), (2, ["begin", "content", "content", "error"])])
def test_an_error_in_other_words_ends_the_stream(broken_after: int, names: list[str]) -> None:
    found = events(asked(*served(ids("one two", EOS), broken_after=broken_after)).text)
    assert [name for name, _ in found] == names
    assert found[-1][1]["message"]


def test_an_error_in_place_of_a_whole_answer() -> None:
    response = asked(*served(ids("one two", EOS), broken_after=2), stream=False)
    assert response.status_code == 500
    assert response.json()["parts"] == []
    assert response.json()["ended"]


async def test_a_client_that_leaves_ends_the_request_quietly() -> None:
    service, app = served([*ids("a " * 2000), *ids(EOS)], delay=0.005)
    left, sent = asyncio.Event(), list[Any]()
    body = iter([{"type": "http.request", "body": b'{"stream": true}', "more_body": False}])

    async def receive() -> Any:
        if (first := next(body, None)) is not None:
            return first
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 5:
            left.set()

    scope = {"type": "http", "method": "POST", "path": "/other", "headers": [], "query_string": b"", "app": app}
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app(scope, receive, send), 5)
        await asyncio.to_thread(wait_idle, service)
        text = b"".join(message.get("body", b"") for message in sent).decode()
        assert 2 <= len(events(text)) < 20
        assert events(text)[-1][0] == "content"


def test_one_engine_answers_in_both_protocols() -> None:
    service, app = served(ids("One.", EOS), ids("Two.", EOS))
    with TestClient(app) as client:
        theirs = client.post("/other", json={"stream": True}).text
        ours = client.post("/v1/chat/completions", json=chat("Ho", stream=True)).text
        wait_idle(service)
    assert "".join(data.get("text", "") for _, data in events(theirs)) == "One."
    assert ours.endswith("data: [DONE]\n\n")
    assert "event:" not in ours
    assert MODEL in ours
