"""Real servers around a fake model: in the process for most tests, on a loopback port where sockets matter."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from starlette.testclient import TestClient

from deepwell.chat import detect, find_format
from deepwell.engine.engine import AsyncEngine, EngineConfig, Stream
from deepwell.engine.types import Request
from deepwell.server import Server, ServerLimits, Service, create_app, listen
from deepwell.weights.tokenizer import Tokenizer
from fakes import EOS, FakeRunner, reply, tiny_tokenizer

MODEL = "deepwell-test"
CONTEXT = 512
T = tiny_tokenizer()
END = T.special(EOS)
ASSISTANT = T.special("<｜Assistant｜>")


def says(text: str, *, ends: bool = True) -> Callable[[tuple[int, ...]], int | None]:
    """A model that answers every chat with `text`."""
    assert END is not None
    assert ASSISTANT is not None
    return reply([*T.encode(text), *([END] if ends else [])], after=ASSISTANT)


def endless(context: tuple[int, ...]) -> int:
    """A model that says "a" for ever."""
    return T.encode("a")[0]


def make_service(
    runner: FakeRunner | None = None,
    *,
    limits: ServerLimits | None = None,
    aliases: tuple[str, ...] = (),
    tokenizer: Tokenizer = T,
    format: str | None = None,
    chats: bool = True,
    **config: Any,
) -> Service:
    """A service of the name MODEL with a context of CONTEXT tokens; it chats in the format called `format`."""
    runner = runner or FakeRunner(context=CONTEXT)
    engine = AsyncEngine(runner, tokenizer, EngineConfig(**{"drain_seconds": 0.5, **config}))
    chosen = find_format(format, tokenizer) if format else detect(tokenizer)
    limits = limits or ServerLimits()
    return Service(engine, tokenizer, MODEL, runner.context, chosen, chats, aliases, limits)


def noted(engine: AsyncEngine, note: Callable[[Request], object]) -> None:
    """Have every request that reaches the engine told to `note`."""
    fill = engine._fill

    def noting(request: Request, after: Stream | None = None) -> Stream:
        note(request)
        return fill(request, after)

    engine._fill = noting  # type: ignore[method-assign]


def chat(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def prompt(text: Any = "A deep well", **fields: Any) -> dict[str, Any]:
    """The body of a completion request."""
    return {"model": MODEL, "prompt": text, **fields}


def wait_idle(service: Service, seconds: float = 5.0) -> None:
    """Wait until nothing runs; fail if a request or a block is still held."""
    deadline = time.monotonic() + seconds
    while True:
        stats = service.engine.stats()
        if stats.running == stats.waiting == 0 and stats.blocks_free == stats.blocks_total:
            service.engine.check_integrity()
            return
        assert time.monotonic() < deadline, f"not idle: {stats}"
        time.sleep(0.01)


@contextlib.contextmanager
def live(service: Service) -> Iterator[str]:
    """A uvicorn server on a free loopback port; its base address. Nothing may leak by the end."""
    ready = threading.Event()
    server = Server(service, listen(port=0), on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(10)
        yield server.address
        wait_idle(service)
        assert httpx.get(server.address + "/health").json() == {"status": "ok"}
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextlib.contextmanager
def client_of(service: Service) -> Iterator[TestClient]:
    """A client in the process. Nothing may leak by the end."""
    with TestClient(create_app(service)) as client:
        yield client
        wait_idle(service)
