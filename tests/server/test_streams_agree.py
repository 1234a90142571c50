"""Whatever a model samples, a streamed answer and a whole one say the same, and no markup shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripting import TOOLS, Script, scripted
from serving import MODEL, T, client_of
from starlette.testclient import TestClient
from test_chat_completions import events
from test_continued import gathered

from toy_format import CALL, END_CALL, END_THINK, EOS, SEP, THINK, TOY, Token, ids

CHAT = "/v1/chat/completions"
MARKS = (THINK, END_THINK, CALL, SEP, END_CALL, Token("<｜tool▁calls▁begin｜>"), Token("<｜tool▁calls▁end｜>"), EOS)
TEXTS = ("clock", '{"a": 1}', "{}", "{", "Hm. ", "\n\n", "🐳", "Größe", "</think>", "function")
PART = st.sampled_from(MARKS) | st.sampled_from(TEXTS)
HALF = T.encode("🐳")[:1]


@pytest.fixture(scope="module", params=[TOY.name, "deepseek-v3.1"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[TestClient, Script]]:
    service, script = scripted(format=request.param)
    with client_of(service) as client:
        yield client, script


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PART, max_size=12), st.booleans(), st.booleans(), st.sampled_from([None, "Hm", "a"]))
def test_streamed_and_whole_answers_agree(
    served: tuple[TestClient, Script], parts: list[Any], half: bool, thinking: bool, stop: str | None
) -> None:
    client, script = served
    script.answers, script.prompts = ([*ids(*parts), *(HALF if half else ()), *ids(EOS)],), []
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": TOOLS,
        "thinking": {"type": "enabled" if thinking else "disabled"},
        "stop": stop,
    }
    whole = client.post(CHAT, json=body).json()
    chunks = events(client.post(CHAT, json=body | {"stream": True}).text)
    message, streamed = whole["choices"][0]["message"], gathered(chunks)
    for call in (*message.get("tool_calls", ()), *streamed["tool_calls"]):
        del call["id"]
    assert streamed == {"tool_calls": []} | message
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    for count in ("completion_tokens", "completion_tokens_details"):
        assert chunks[-1]["usage"].get(count) == whole["usage"].get(count)
    if not any(mark in parts for mark in (CALL, SEP, END_CALL)):
        spelled = [mark.spelling for mark in MARKS if mark not in (THINK, END_THINK)]  # a later thought is content
        assert not any(spelling in message["content"] for spelling in spelled)
