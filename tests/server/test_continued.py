"""A continued conversation finds all that was computed before in the prefix cache, whatever the model sampled."""

from __future__ import annotations

from typing import Any

import pytest
from scripting import TOOLS, Script, scripted
from serving import MODEL, T, client_of
from starlette.testclient import TestClient
from test_chat_completions import events

from deepwell.ops.base import BLOCK_TOKENS
from toy_format import CALL, END_CALL, END_THINK, EOS, SEP, ids

CHAT = "/v1/chat/completions"
LONG = "A deep well holds clear water. " * 12
ODD = [id for letter in "Größe, naïve café" for id in T.encode(letter)]
"""A text token by token as no tokenizer would write it."""
CALLS = [
    *ids(END_THINK),
    *ODD,
    *ids(CALL, "weather", SEP, '{   "city" :"Köln"}', END_CALL, CALL, "clock", SEP, "{ }", END_CALL),
]
ANSWER = [*ODD, *ids(EOS)]


def say(client: TestClient, messages: list[Any], **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message answered, and the usage."""
    body = client.post(CHAT, json={"model": MODEL, "messages": messages, **fields}).json()
    return body["choices"][0]["message"], body["usage"]


def whole_blocks(tokens: int) -> int:
    return tokens // BLOCK_TOKENS * BLOCK_TOKENS


def hits(script: Script, earlier: int) -> int:
    """Tokens of all blocks that request number `earlier` left: its prompt and its answer but for the last token."""
    return whole_blocks(len(script.prompts[earlier]) + len(script.answers[earlier]) - 1)


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("streamed", [True, False])
def test_tool_results_hit_the_whole_earlier_length(thinking: str, streamed: bool) -> None:
    called = [*ids("Hm, " * 40), *CALLS] if thinking == "enabled" else CALLS[1:]
    service, script = scripted([*called, *ids(EOS)], ids(EOS))
    fields: dict[str, Any] = {"tools": TOOLS, "thinking": {"type": thinking}}
    messages: list[Any] = [{"role": "user", "content": LONG}]
    with client_of(service) as client:
        if streamed:
            body = {"model": MODEL, "messages": messages, "stream": True, **fields}
            message = gathered(events(client.post(CHAT, json=body).text))
        else:
            message, _ = say(client, messages, **fields)
        assert len(message["tool_calls"]) == 2
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "a result"} for call in message["tool_calls"]
        ]
        messages += [message, *reversed(results)]
        _, usage = say(client, messages, **fields)
    prompt = [*script.prompts[0], *script.answers[0]]
    assert list(script.prompts[1][: len(prompt)]) == prompt
    assert usage["prompt_cache_hit_tokens"] == hits(script, 0) > whole_blocks(len(script.prompts[0]))


def gathered(chunks: list[Any]) -> dict[str, Any]:
    """The message that a client puts together from a stream."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": []}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] += delta.get("content") or ""
        if delta.get("reasoning_content") is not None:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                message["tool_calls"].append(call | {"function": dict(call["function"])})
            else:
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


def test_turns_of_plain_content_hit_too_over_many_rounds() -> None:
    service, script = scripted(ANSWER, ANSWER, ANSWER)
    messages: list[Any] = []
    with client_of(service) as client:
        for round in range(3):
            messages.append({"role": "user", "content": LONG})
            message, usage = say(client, messages)
            assert usage["prompt_cache_hit_tokens"] == (hits(script, round - 1) if round else 0)
            messages.append(message)


def test_a_changed_turn_is_rendered_from_its_text() -> None:
    service, script = scripted(ANSWER, ids(EOS))
    messages: list[Any] = [{"role": "user", "content": LONG}]
    with client_of(service) as client:
        message, _ = say(client, messages)
        message["content"] += "!"
        _, usage = say(client, [*messages, message, {"role": "user", "content": "And?"}])
    assert T.decode(script.prompts[1]).count("Größe, naïve café!") == 1
    assert usage["prompt_cache_hit_tokens"] == whole_blocks(len(script.prompts[0]))


def test_a_stopped_answer_is_not_put_back_with_what_came_after() -> None:
    service, script = scripted(ids("one two three", EOS), ids(EOS))
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    with client_of(service) as client:
        message, _ = say(client, messages, stop=["two"])
        assert message["content"] == "one "
        say(client, [*messages, message, {"role": "user", "content": "And?"}])
    assert "two" not in T.decode(script.prompts[1])
