"""A scripted stand-in for Deepwell's API on loopback, serving the built page under the policy it promises to obey.

The last user message picks the script: a word of `SCRIPTS` anywhere in it, otherwise a plain echo. The
page and the API also stand below /deep/er, as behind a proxy.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fake_desk import Endpoints, FakeDesk
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC = Path(__file__).parents[2] / "src" / "deepwell" / "server" / "static"

POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
USAGE = {
    "prompt_tokens": 96,
    "completion_tokens": 12,
    "total_tokens": 108,
    "prompt_cache_hit_tokens": 64,
    "prompt_cache_miss_tokens": 32,
}
MARKDOWN = """## Reversing

A **list** can be turned round in place; see [the manual](https://docs.python.org/3/) and `reversed`.

```python
def reverse(items):
    \"\"\"Turn a list round.\"\"\"
    for i in range(len(items) // 2):
        items[i], items[-1 - i] = items[-1 - i], items[i]
    return items  # the same list
```

| way | cost |
|:----|-----:|
| in place | n / 2 swaps |
| copy | n moves |

1. first
2. second
   - nested
"""
INJECTION = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">

Inline <b onmouseover="window.hacked=3">bold</b> and [a link](javascript:window.hacked=4) and
![picture](https://evil.example/pixel.png) &lt;script&gt; <svg/onload=window.hacked=5>

```html
<script>window.hacked = 6</script>
```

```"><img/src=x/onerror=window.hacked=7>
</code></pre><script>window.hacked = 8</script>
```

<iframe srcdoc="<script>parent.hacked = 9</script>"></iframe>
"""

MATHS = r"""Since \(a_1 * b_1 * c_1\) costs $5 or $6, for $n$ holds

\[
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
=
\frac{\sqrt{x}}{y}
\]

and $$\sum_{i=1}^n i$$ with \(\pmb{v}\).
"""
TABLE = """| configuration | responsibility | internationalisation | acknowledgement | representative |
|---|---|---|---|---|
| straightforward | characteristically | misunderstanding | straightforwardness | telecommunications |
"""

MODEL = {"id": "deepwell-tiny", "object": "model", "context_length": 1000}

Piece = dict[str, Any] | str | float


@dataclass
class Fake:
    """A running server. `bodies`: the JSON bodies of the POSTs so far; `abandoned`: texts whose stream was let go."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    abandoned: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: [MODEL])
    desk: FakeDesk = field(default_factory=FakeDesk)

    def reset(self) -> None:
        self.bodies.clear()
        self.asked.clear()
        self.abandoned.clear()
        self.models = [MODEL]
        self.desk.reset()

    def let_go(self, text: str) -> bool:
        """Waits up to 4 s for the server to notice that nobody reads the answer to `text`."""
        deadline = time.monotonic() + 4
        while text not in self.abandoned and time.monotonic() < deadline:
            time.sleep(0.02)
        return text in self.abandoned


def words(text: str) -> list[Piece]:
    parts = [part for part in text.replace(" ", " \0").split("\0") if part]
    return [{"content": part} for part in parts]


def slow() -> list[Piece]:
    return [piece for n in range(200) for piece in (f"drop {n} ", 0.05)]


SCRIPTS: dict[str, Callable[[], list[Piece]]] = {
    "slow": lambda: [{"content": piece} if isinstance(piece, str) else piece for piece in slow()],
    "markdown": lambda: words(MARKDOWN),
    "inject": lambda: words(INJECTION),
    "think": lambda: [{"reasoning_content": "Let me see."}, 0.2, *words("Thought through.")],
    "tool": lambda: [
        {"content": "I ask."},
        {"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "<b>K</b>"}'}}]},
        {"tool_calls": [{"index": 1, "function": {"name": "clock", "arguments": ""}}]},
    ],
    "queue": lambda: [": keep-alive\n\n", 1.0, ": keep-alive\n\n", *words("At last.")],
    "cut": lambda: [*words("Half an ans"), 0.1, {"cut": True}],
    "long": lambda: words("\n\n".join(f"Paragraph {n} of a long answer." for n in range(60))),
    "flood": lambda: [piece for n in range(500) for piece in ({"content": f"Line {n} of a flood.\n\n"}, 0.03)],
    "maths": lambda: words(MATHS),
    "table": lambda: words(TABLE),
    "muse": lambda: [{"reasoning_content": "So **bold** and $x^2$."}, *words("Done.")],
    "limit": lambda: [*words("The first half,"), {"finish": "length"}],
    "nearly": lambda: [*words("Nearly full."), {"usage": USAGE | {"prompt_tokens": 900}}],
    "brim": lambda: [*words("To the brim"), {"usage": USAGE | {"prompt_tokens": 988}}, {"finish": "length"}],
    "pause": lambda: [*words("Water finds "), 0.4, *words("its own way downhill."), 0.4],
}


class Api:
    """The endpoints; every POST body is kept for the tests to look at."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    async def models(self, request: Request) -> Response:
        if refusal := self.fake.desk.refusal(request, admin=False):
            return refusal
        return JSONResponse({"object": "list", "data": self.fake.models})

    async def chat(self, request: Request) -> Response:
        if refusal := self.fake.desk.refusal(request, admin=False):
            return refusal
        body = await request.json()
        self.fake.bodies.append(body)
        text = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        times = self.fake.asked[text] = self.fake.asked.get(text, 0) + 1
        if "busy" in text and times == 1:
            error = {"message": "The queue is full.", "type": "rate_limit_error", "param": None, "code": "rate_limit"}
            return JSONResponse({"error": error}, 429, {"Retry-After": "2"})
        if "overlong" in text:
            error = {
                "message": "This model's maximum context length is 1000 tokens.",
                "code": "context_length_exceeded",
            }
            return JSONResponse({"error": error}, 400)
        script = next((make for word, make in SCRIPTS.items() if word in text), None)
        pieces = script() if script else words(f"Answer {times} to: {text}")
        if body["messages"][-1].get("prefix"):
            pieces = words(" and the second.")
        return StreamingResponse(self.stream(pieces, "chat", text), media_type="text/event-stream")

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.fake.bodies.append(body)
        text = "middle()\n" if body.get("suffix") else "    return n\n"
        pieces: list[Piece] = slow() if "slow" in body["prompt"] else [text]
        if "limit" in body["prompt"]:
            pieces += [{"finish": "length"}]
        return StreamingResponse(self.stream(pieces, "text", body["prompt"]), media_type="text/event-stream")

    async def stream(self, pieces: list[Piece], shape: str, text: str) -> AsyncIterator[str]:
        finish, usage = "stop", USAGE
        try:
            for piece in pieces:
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                elif isinstance(piece, str) and piece.startswith(":"):
                    yield piece
                elif isinstance(piece, dict) and "cut" in piece:
                    raise ConnectionError("scripted cut")
                elif isinstance(piece, dict) and "finish" in piece:
                    finish = piece["finish"]
                elif isinstance(piece, dict) and "usage" in piece:
                    usage = piece["usage"]
                else:
                    yield chunk(choice(piece, shape))
            last = choice({"content": ""} if shape == "chat" else "", shape) | {"finish_reason": finish}
            yield chunk(last, usage)
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.fake.abandoned.append(text)
            raise


def choice(piece: Piece, shape: str) -> dict[str, Any]:
    return {"index": 0, "finish_reason": None} | ({"delta": piece} if shape == "chat" else {"text": piece})


def chunk(of: dict[str, Any], usage: dict[str, int] | None = None) -> str:
    body: dict[str, Any] = {"id": "1", "object": "chunk", "choices": [of]}
    return f"data: {json.dumps(body | ({'usage': usage} if usage else {}))}\n\n"


class PolicyHeader:
    """Adds the Content-Security-Policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def start(fake: Fake) -> Callable[[], None]:
    """Serves `fake` on a free port and sets its url; returns what stops it."""
    api = Api(fake)
    routes = [
        Route("/v1/models", api.models),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        *Endpoints(fake.desk).routes(STATIC),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]
    app = Starlette(routes=[Mount("/deep/er", routes=routes), *routes], middleware=[Middleware(PolicyHeader)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()

    return stop
