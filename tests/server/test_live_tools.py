"""Tools and thoughts over a real server: the openai SDK as agents use it, and clients that leave in a call."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from scripting import TOOLS, scripted
from serving import MODEL, T, chat, live, wait_idle

from toy_format import CALL, END_THINK, EOS, SEP, called, ids

API_PAGE = Path(__file__).parents[2] / "docs" / "api.md"
ARGUMENTS = '{"city": "Köln 🐳"}'
CALLS = ids("I look. ", *called("weather", ARGUMENTS), *called("clock", "{}"), EOS)
THOUGHT_CALLS = [*ids("I need two tools.", END_THINK), *CALLS]
FINAL = ids("Cold at noon.", EOS)
USER: Any = {"role": "user", "content": "Weather and time in Köln?"}
THINKING: dict[str, Any] = {"thinking": {"type": "enabled"}}
OFFERED: Any = TOOLS


def results(message: Any) -> list[Any]:
    return [
        {"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name}!"} for call in message.tool_calls
    ]


def test_sdk_runs_a_tool_loop() -> None:
    service, script = scripted(CALLS, FINAL)
    with live(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        asked: Any = {"model": MODEL, "tools": OFFERED}
        first = client.chat.completions.create(messages=[USER], **asked)
        message = first.choices[0].message
        assert first.choices[0].finish_reason == "tool_calls"
        assert [(c.function.name, c.function.arguments) for c in message.tool_calls or ()] == [  # type: ignore[union-attr]
            ("weather", ARGUMENTS),
            ("clock", "{}"),
        ]
        second = client.chat.completions.create(messages=[USER, message, *results(message)], **asked)
        assert second.choices[0].message.content == "Cold at noon."
        assert second.choices[0].message.tool_calls is None
    before = [*script.prompts[0], *CALLS]
    assert list(script.prompts[1][: len(before)]) == before


async def test_sdk_streams_a_tool_loop_with_thoughts() -> None:
    service, script = scripted(THOUGHT_CALLS, [*ids("Now I know.", END_THINK), *FINAL])
    with live(service) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            asked: Any = {"model": MODEL, "tools": OFFERED, "extra_body": THINKING}
            thoughts = ""
            async with client.chat.completions.stream(messages=[USER], **asked) as stream:
                async for event in stream:
                    if event.type == "chunk":
                        thoughts += getattr(event.chunk.choices[0].delta, "reasoning_content", None) or ""
                done = await stream.get_final_completion()
            message = done.choices[0].message
            assert thoughts == "I need two tools."
            assert message.content == "I look. "
            assert done.choices[0].finish_reason == "tool_calls"
            calls = message.tool_calls or []
            assert [(c.function.name, c.function.arguments) for c in calls] == [("weather", ARGUMENTS), ("clock", "{}")]
            assert len({c.id for c in calls}) == 2
            turn = {
                "role": "assistant",
                "content": message.content,
                "reasoning_content": thoughts,
                "tool_calls": [c.model_dump(include={"id", "type", "function"}) for c in calls],
            }
            second = await client.chat.completions.create(messages=[USER, turn, *results(message)], **asked)
            answer = second.choices[0].message
            assert answer.content == "Cold at noon."
            assert answer.model_extra == {"reasoning_content": "Now I know."}
            assert second.usage is not None
            assert second.usage.completion_tokens_details is not None
            assert second.usage.completion_tokens_details.reasoning_tokens == len(ids("Now I know."))
    before = [*script.prompts[0], *THOUGHT_CALLS]
    assert list(script.prompts[1][: len(before)]) == before


def test_the_tool_example_of_the_documentation_works(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", API_PAGE.read_text("utf-8"), re.DOTALL) if "tools" in code
    )
    service, script = scripted(
        ids(*called("weather", '{"city": "Oslo"}'), EOS), ids("Take one.", EOS), aliases=("deepwell",)
    )
    with live(service) as address:
        exec(example.replace("http://127.0.0.1:8000", address), {})
    assert capsys.readouterr().out == "Take one.\n"
    assert "Snow in Oslo." in T.decode(script.prompts[1])


def test_sdk_errors_name_the_field() -> None:
    service, _ = scripted()
    with live(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        orphan: Any = {"role": "tool", "tool_call_id": "call_1", "content": "x"}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=[USER, orphan])
        assert caught.value.param == "messages[1].tool_call_id"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_vanishes_in_a_call_frees_everything(streamed: bool) -> None:
    endless = ids("I look. ", CALL, "weather", SEP, '{"city": "' + "a" * 3000)
    service, _ = scripted(endless, FINAL, delay=0.005)
    content = json.dumps(chat(stream=streamed, tools=TOOLS))
    with live(service) as address:
        parts = urlsplit(address)
        fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n{content}".encode())
            deadline = time.monotonic() + 10
            while service.engine.stats().generated_tokens < 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if streamed:
                seen = b""
                while b'"arguments"' not in seen:
                    seen += connection.recv(4096)
        wait_idle(service)
        assert service.engine.stats().aborted == 1
        assert len(service.replay) == 0
        answer = httpx.post(f"{address}/v1/chat/completions", json=chat("And?", tools=TOOLS)).json()
        assert answer["choices"][0]["message"] == {
            "role": "assistant",
            "content": "Cold at noon.",
        }
