"""V3, R1 and V3.1 as clients meet them: whole tool loops, thoughts, calls that are asked for, and what is refused."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from scripting import TOOLS, scripted
from serving import MODEL, T, chat, client_of, live
from test_bad_input import error_of
from test_continued import hits, say

from toy_format import CALL, END_CALL, END_THINK, EOS, SEP, THINK, Token, called, ids

V31 = "deepseek-v3.1"
CALLS, END_CALLS = Token("<｜tool▁calls▁begin｜>"), Token("<｜tool▁calls▁end｜>")
ARGUMENTS = '{ "city":"Köln",  "days": [1,2] }'
TWO_CALLS = ids("I look.\n\n", CALLS, *called("weather", ARGUMENTS), *called("clock", "{}"), END_CALLS, EOS)
LONG = "A deep well holds clear water. " * 12
USER: Any = {"role": "user", "content": LONG}
CHAT = "/v1/chat/completions"


def letters(text: str) -> list[int]:
    return [id for letter in text for id in ids(letter)]


async def test_sdk_streams_a_tool_loop_that_hits_the_cache() -> None:
    odd = [*letters("I look.\n\n"), *TWO_CALLS[len(ids("I look.\n\n")) :]]
    service, script = scripted(odd, ids("Cold at noon.", EOS), format=V31)
    with live(service) as address:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            asked: Any = {"model": MODEL, "tools": TOOLS}
            async with client.chat.completions.stream(messages=[USER], **asked) as stream:
                done = await stream.get_final_completion()
            message = done.choices[0].message
            calls = message.tool_calls or []
            assert done.choices[0].finish_reason == "tool_calls"
            assert [(c.function.name, c.function.arguments) for c in calls] == [("weather", ARGUMENTS), ("clock", "{}")]
            turn = message.model_dump(include={"role", "content", "tool_calls"})
            results = [{"role": "tool", "tool_call_id": call.id, "content": "a result"} for call in calls]
            second = await client.chat.completions.create(messages=[USER, turn, *results[::-1]], **asked)
    assert second.choices[0].message.content == "Cold at noon."
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == hits(script, 0)
    before = [*script.prompts[0], *odd]
    assert list(script.prompts[1][: len(before)]) == before


def test_calls_of_v3_come_without_their_fences_and_hit_the_cache() -> None:
    fenced = ("function", SEP, "weather\n```json\n" + ARGUMENTS + "\n\n```")
    answer = ids(CALLS, CALL, *fenced, END_CALL, "\n", CALL, "function", SEP, "clock\n```json\n{}\n```", END_CALL)
    service, script = scripted([*answer, *ids(END_CALLS, EOS)], ids("Cold.", EOS), format="deepseek-v3")
    with client_of(service) as client:
        message, _ = say(client, [USER], tools=TOOLS)
        assert message["content"] == ""
        functions = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
        assert functions == [("weather", ARGUMENTS), ("clock", "{}")]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "so"} for call in message["tool_calls"]]
        _, usage = say(client, [USER, message, *results], tools=TOOLS)
    assert usage["prompt_cache_hit_tokens"] == hits(script, 0)


@pytest.mark.parametrize(("format", "begin"), [("deepseek-r1", ()), ("deepseek-r1-0528", (THINK, "\n"))])
def test_r1_thinks_without_being_asked(format: str, begin: Any) -> None:
    service, script = scripted(ids(*begin, "Hm, hm.\n", END_THINK, "\n\nCold.", EOS), ids("x", EOS), format=format)
    with client_of(service) as client:
        message, usage = say(client, [USER])
        assert (message["reasoning_content"], message["content"]) == ("Hm, hm.", "Cold.")
        said = ids(*begin[1:], "Hm, hm.\n")
        assert usage["completion_tokens_details"] == {"reasoning_tokens": len(said)}
        say(client, [USER, message, {"role": "user", "content": "Sure?"}])
        refused = client.post(CHAT, json=chat(thinking={"type": "disabled"}))
        assert error_of(refused)["param"] == "thinking.type"
    assert not set(ids(END_THINK)) & set(script.prompts[1])


def test_a_thought_is_shown_and_leaves_the_history() -> None:
    thought = ids("\nHm, hm.\n", END_THINK, "\n\nCold.", EOS)
    service, script = scripted(thought, ids("Yes.", EOS), format=V31)
    with client_of(service) as client:
        fields: dict[str, Any] = {"thinking": {"type": "enabled"}}
        message, usage = say(client, [USER], **fields)
        assert (message["reasoning_content"], message["content"]) == ("Hm, hm.", "Cold.")
        assert usage["completion_tokens_details"] == {"reasoning_tokens": len(ids("\nHm, hm.\n"))}
        say(client, [USER, message, {"role": "user", "content": "Sure?"}], **fields)
    tail = ids(Token("<｜Assistant｜>"), END_THINK, "Cold.", EOS, Token("<｜User｜>"), "Sure?")
    opened = ids(Token("<｜Assistant｜>"), Token("<think>"))
    assert list(script.prompts[1]) == [*script.prompts[0][: -len(opened)], *tail, *opened]


@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        ("required", ids("weather", SEP, ARGUMENTS, END_CALL, END_CALLS, EOS)),
        ({"type": "function", "function": {"name": "weather"}}, ids(ARGUMENTS, END_CALL, END_CALLS, EOS)),
    ],
)
def test_a_call_that_is_asked_for_continues_as_any_other(choice: Any, answer: list[int]) -> None:
    service, script = scripted(answer, ids("Cold.", EOS), format=V31)
    with client_of(service) as client:
        message, _ = say(client, [USER], tools=TOOLS, tool_choice=choice)
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": ARGUMENTS}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "cold"}
        _, usage = say(client, [USER, message, result], tools=TOOLS)
    assert usage["prompt_cache_hit_tokens"] == hits(script, 0)


def test_a_broken_call_is_as_it_was_written_and_may_be_sent_back() -> None:
    service, _ = scripted(ids("Well: ", CALLS, CALL, "weather", SEP, "{ no", END_CALL, END_CALLS, EOS), format=V31)
    with client_of(service) as client:
        body = client.post(CHAT, json=chat(tools=TOOLS)).json()
    message = body["choices"][0]["message"]
    assert message["content"] == "Well: "
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": "{ no"}
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "no JSON"}
    service, script = scripted(ids(EOS), format=V31)
    with client_of(service) as client:
        response = client.post(CHAT, json=chat() | {"messages": [USER, message, result]})
    assert response.status_code == 200, response.text
    assert T.decode(ids(*called("weather", "{ no"))) in T.decode(script.prompts[0])


def test_what_the_format_cannot_say_is_a_400_that_says_so() -> None:
    service, _ = scripted(format=V31)
    with client_of(service) as client:
        reminder = {"messages": [{"role": "latest_reminder", "content": "x"}, USER]}
        assert "latest_reminder" in error_of(client.post(CHAT, json=chat() | reminder))["message"]
        forced = chat(tools=TOOLS, tool_choice="required", thinking={"type": "enabled"})
        assert error_of(client.post(CHAT, json=forced))["param"] == "tool_choice"
