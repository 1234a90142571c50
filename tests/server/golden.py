"""Scripted conversations, and all bytes that clients get of them.

`PYTHONPATH=tests python tests/server/golden.py` records them anew, where a change of them is meant.
What differs from run to run is replaced: ids, times, and the digits of log-probabilities behind the third.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from scripting import TOOLS, WEATHER, scripted
from serving import T, chat, client_of, make_service, prompt, says

from deepwell.chat import FORMATS
from fakes import FakeRunner
from toy_format import CALL, END_CALL, END_THINK, EOS, TOY, called, ids

RECORD = Path(__file__).parent / "golden.json"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
THINKING: dict[str, Any] = {"thinking": {"type": "enabled"}}
ALL_LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
ARGUMENTS = '{ "city":"Köln" }'
TWO_CALLS = ids("I look. ", *called("weather", ARGUMENTS), *called("clock", "{}"), EOS)
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
CONTINUED: dict[str, Any] = {"role": "assistant", "content": "It is ", "prefix": True}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}


class Scene(msgspec.Struct, frozen=True):
    """A request of `fields`, in `format`, that the model answers with `answer`; it breaks after `broken` steps."""

    answer: list[int]
    fields: dict[str, Any] = {}
    format: str = TOY.name
    broken: int | None = None


SCENES = {
    "plain": Scene(ids("Hello, wörld 🐳.", EOS)),
    "length": Scene(ids("one two three four", EOS), {"max_tokens": 4}),
    "stop text": Scene(ids("one two three", EOS), {"stop": ["two"]}),
    "thought": Scene(ids("Let me think 🐳", END_THINK, "Cold.", EOS), THINKING),
    "calls": Scene(TWO_CALLS, {"tools": TOOLS}),
    "one call": Scene(TWO_CALLS, {"tools": TOOLS, "parallel_tool_calls": False}),
    "thought and call": Scene(ids("Hm.", END_THINK, *called("clock", "{}"), EOS), {"tools": TOOLS, **THINKING}),
    "call that must come": Scene(ids(ARGUMENTS, END_CALL, EOS), {"tools": TOOLS, "tool_choice": NAMED}),
    "broken call": Scene(ids("Well: ", CALL, "wea", EOS), {"tools": TOOLS}),
    "cut off call": Scene(ids(*called("weather", ARGUMENTS), EOS), {"tools": TOOLS, "max_tokens": 9}),
    "logprobs": Scene(
        ids("Hm, hm", END_THINK, "Hi ", *called("clock", "{}"), EOS), {"tools": TOOLS, **ALL_LOGPROBS, **THINKING}
    ),
    "usage": Scene(ids("Yes", EOS), USAGE),
    "error": Scene(ids("one two three four", EOS), broken=3),
    "error at once": Scene(ids("one", EOS), THINKING, broken=0),
    "always thinks": Scene(ids("Hm.\n", END_THINK, "\n\nCold.", EOS), format="deepseek-r1"),
    "prefix": Scene(
        ids("cold.", EOS), {"messages": [USER, {"role": "assistant", "content": "It is ", "prefix": True}]}
    ),
}


def call(id: str = "a", name: str = "clock", arguments: str = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def calls(*of: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "content": None, "tool_calls": list(of), **fields}]


def result(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": "noon", **fields}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


FAULTS: list[dict[str, Any]] = [
    {"logprobs": False, "top_logprobs": 2},
    {"response_format": {"type": "xml"}},
    {"thinking": {"type": "maybe"}},
    {"reasoning_effort": "much"},
    THINKING,
    {"thinking": {"type": "disabled"}},
    {"reasoning_effort": "none"},
    {"tools": TOOLS},
    {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "function", "function": {"name": "a", "parameters": nested(80)}}]},
    {"tools": [*TOOLS, WEATHER]},
    {"tools": TOOLS, "tool_choice": "any"},
    {"tools": TOOLS, "tool_choice": {**NAMED, "function": {"name": "date"}}},
    {"tools": TOOLS, "tool_choice": {**NAMED, "type": "custom"}},
    {"tool_choice": NAMED},
    {"tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": "required", **THINKING},
    {"tools": TOOLS, "tool_choice": NAMED, "messages": [USER, CONTINUED]},
    *(
        {"messages": messages}
        for messages in (
            [{"role": "function", "content": "x"}],
            [{"role": "developer", "content": "x"}, USER],
            [{"role": "latest_reminder", "content": "x"}, USER],
            [{**USER, "reasoning_content": "x"}],
            [{**USER, "tool_calls": [call()]}],
            [{**USER, "prefix": True}],
            [{**USER, "tool_call_id": "a"}],
            [{"role": "user"}],
            [{"role": "assistant"}, USER],
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": []}],
            [{"role": "assistant", "content": "x", "prefix": True}, USER],
            [USER, {"role": "assistant", "prefix": True}],
            [USER, {"role": "assistant", "content": None, "reasoning_content": "x", "prefix": True}],
            calls(call(), prefix=True),
            calls(call()),
            calls(call(), call()),
            calls(call(name="")),
            calls(call(type="custom")),
            calls(call(arguments="{")),
            calls(call(arguments="[1]")),
            calls(call(arguments="null")),
            calls(call(arguments='{"a":' * 100_000 + "1" + "}" * 100_000)),
            calls(call(arguments=msgspec.json.encode(nested(70)).decode())),
            [*calls(call(), call("b")), result("b"), USER],
            [*calls(call(), *(call(f"{n}") for n in range(6)))],
            [*calls(call()), USER],
            [*calls(call()), result("c")],
            [*calls(call()), result(), result()],
            [*calls(call()), result(), USER, result()],
            [*calls(call()), result(content=None)],
            [USER, result()],
            [USER, {"role": "tool", "content": "x"}],
            [*calls(call()), result(), {"role": "system", "content": "x"}, USER],
            [*calls(call(), call("b")), {"role": "system", "content": "x"}, result(), result("b")],
        )
    ),
]
"""Fields of chat requests that some or all of the formats refuse."""

WORDED = {
    "text": prompt(max_tokens=4, temperature=0),
    "text with echo and logprobs": prompt(max_tokens=3, temperature=0, echo=True, logprobs=2),
    "text with usage": prompt(max_tokens=3, temperature=0, **USAGE),
}


def recorded() -> dict[str, Any]:
    """All that is compared, by what was asked."""
    answers = {
        f"{name}, {how}": _normal(_answer(scene, streamed))
        for name, scene in SCENES.items()
        for how, streamed in (("whole", False), ("streamed", True))
        if streamed or "stream_options" not in scene.fields
    }
    for name, body in WORDED.items():
        with client_of(_service(says("Hello, wörld 🐳."))) as client:
            answers[f"{name}, streamed"] = _normal(_shown(client.post(TEXT, json=body | {"stream": True})))
            if "stream_options" not in body:
                answers[f"{name}, whole"] = _normal(_shown(client.post(TEXT, json=body)))
    faults = {format: list(_refusals(format)) for format in (TOY.name, "deepseek-llm", "deepseek-r1", "deepseek-v3.1")}
    return {"answers": answers, "faults": faults}


def _answer(scene: Scene, streamed: bool) -> list[str]:
    service, _ = scripted(scene.answer, format=scene.format, context=2048, broken_after=scene.broken)
    with client_of(service) as client:
        return _shown(client.post(CHAT, json=chat(**scene.fields) | {"stream": streamed}))


def _refusals(format: str) -> Iterator[str]:
    with client_of(_service(lambda _: T.eos[0], format=format)) as client:
        for fields in FAULTS:
            response = client.post(CHAT, json=chat(max_tokens=1) | fields)
            yield response.text if response.status_code == 400 else str(response.status_code)


def _service(next_token: Callable[[tuple[int, ...]], int | None], *, format: str = TOY.name) -> Any:
    return make_service(FakeRunner(context=2048, next_token=next_token), format=format)


def _shown(response: Any) -> list[str]:
    head = [str(response.status_code), *(f"{name}: {response.headers.get(name)}" for name in _HEADERS)]
    return [*head, *response.text.split("\n")]


_HEADERS = ("content-type", "cache-control", "x-accel-buffering")


def _normal(lines: list[str]) -> list[str]:
    for pattern, put in (
        (r'"id":"[0-9a-f-]{36}"', '"id":"ID"'),
        (r'"id":"(call_\d\d_)\w{24}"', r'"id":"\1"'),
        (r'"created":\d+', '"created":0'),
        (r"-?\d+\.\d+e-\d+", "0.000"),  # last digits follow the order in which exponentials are added up
        (r"(-?\d+\.\d{3})\d+", r"\1"),
    ):
        lines = [re.sub(pattern, put, line) for line in lines]
    return lines


if __name__ == "__main__":
    FORMATS[TOY.name] = TOY
    RECORD.write_bytes(msgspec.json.format(msgspec.json.encode(recorded()), indent=1) + b"\n")
