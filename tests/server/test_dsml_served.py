"""V3.2, V4 and V4.1 as clients meet them: tool loops that hit the cache, and the very chunks of deepseek-recipe."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripting import TOOLS, Script
from serving import MODEL, client_of, noted
from test_chat_completions import events
from test_continued import gathered, hits

from deepwell.chat import find_format
from deepwell.engine.engine import AsyncEngine, EngineConfig
from deepwell.server import Service
from fakes import FakeRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "chat"))
recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe has no wheel for this platform")
import dsml_fakes as fakes_of_dsml  # noqa: E402

T = fakes_of_dsml.dsml_tokenizer()
DSML_SPECIALS, tokenizer_json = fakes_of_dsml.DSML_SPECIALS, fakes_of_dsml.tokenizer_json
CHAT = "/v1/chat/completions"
BLOCKS = {"deepseek-v3.2": "function_calls", "deepseek-v4": "tool_calls", "deepseek-v4.1": "tool_calls"}
EOS = "<｜end▁of▁sentence｜>"
USER: Any = {"role": "user", "content": "What is the weather, and what time is it? " * 8}
D = "｜DSML｜"
INVOKED = (
    f'<{D}invoke name="weather">\n<{D}parameter name="city" string="true">Köln "am" Rhein</{D}parameter>\n'
    f'<{D}parameter name="days" string="false">[1, 2]</{D}parameter>\n</{D}invoke>\n'
    f'<{D}invoke name="clock">\n</{D}invoke>\n'
)
CALLED = [("weather", r'{"city": "Köln \"am\" Rhein", "days": [1, 2]}'), ("clock", "{}")]


def sampled(text: str, *, letters: bool = False) -> list[int]:
    """The tokens of an answer, special ones where they are spelled; texts letter by letter if asked for."""
    ids: list[int] = []
    while text:
        places = ((text.find(special), special) for special in DSML_SPECIALS)
        at, special = min(((at, s) for at, s in places if at >= 0), default=(len(text), ""))
        ids += [id for part in (text[:at] if letters else [text[:at]]) for id in T.encode(part)]
        if special:
            ids.append(T.special(special) or 0)
        text = text[at + len(special) :]
    return ids


def served(format: str, *answers: list[int]) -> tuple[Service, Script]:
    script = Script(*answers)
    runner = FakeRunner(vocab_size=T.vocab_size, context=4096, next_token=script)
    engine = AsyncEngine(runner, T, EngineConfig(drain_seconds=0.5))
    noted(engine, lambda request: script.prompts.append(request.prompt))
    return Service(engine, T, MODEL, runner.context, find_format(format), chats=True), script


@pytest.mark.parametrize("format", BLOCKS)
@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_tool_loop_hits_the_whole_earlier_length(format: str, thinking: str, streamed: bool) -> None:
    thought = "I need two tools.</think>" if thinking == "enabled" else ""
    block = BLOCKS[format]
    first = sampled(f"{thought}I look.\n\n<{D}{block}>\n{INVOKED}</{D}{block}>{EOS}", letters=True)
    service, script = served(format, first, sampled(f"{thought and '</think>'}Cold at noon.{EOS}"))
    body: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "thinking": {"type": thinking}}
    with client_of(service) as client:
        if streamed:
            message = gathered(events(client.post(CHAT, json={**body, "messages": [USER], "stream": True}).text))
        else:
            message = client.post(CHAT, json={**body, "messages": [USER]}).json()["choices"][0]["message"]
        assert message["content"] == "I look."
        assert message.get("reasoning_content") == ("I need two tools." if thought else None)
        assert [tuple(call["function"].values()) for call in message["tool_calls"]] == CALLED
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "so"} for call in message["tool_calls"]]
        answer = client.post(CHAT, json={**body, "messages": [USER, message, *reversed(results)]}).json()
    assert answer["choices"][0]["message"]["content"] == "Cold at noon."
    before = [*script.prompts[0], *first]
    assert list(script.prompts[1][: len(before)]) == before
    assert answer["usage"]["prompt_cache_hit_tokens"] == hits(script, 0)


def recipes(version: str, body: dict[str, Any], ids: list[int]) -> list[dict[str, Any]]:
    """The chunks that deepseek-recipe makes of an answer."""
    request = recipe.ChatCompletionRequest(body | {"model": version})
    asked = request.convert(recipe.ConversionOptions())
    generator = recipe.ChatCompletionRequest.chunk_generator(asked, "id", version)
    processor = recipe.StreamProcessor(generator, asked.parsing_options, recipe.Tokenizer.from_str(tokenizer_json()))
    fed = [recipe.InferenceChunk.ready(prompt_usage=recipe.PromptUsage(prompt_tokens=0))]
    fed += [recipe.InferenceChunk.tokens([id]) for id in ids]
    fed.append(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    return [json_of(chunk) for part in fed for chunk in processor.push(part)]


def json_of(chunk: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(chunk.to_json())
    return decoded


def shape(chunks: list[dict[str, Any]]) -> list[Any]:
    """Deltas and ends, neighbours that add to the same text joined, ids of calls by their form."""
    out: list[Any] = []
    for kind, group in itertools.groupby((chunk["choices"][0] for chunk in chunks), key=_kind):
        choices = list(group)
        if kind == ("other",):
            for choice in choices:
                for call in choice["delta"].get("tool_calls", ()):
                    call["id"] = call["id"][:8] + "*" * len(call["id"][8:])
                out.append((choice["delta"], choice["finish_reason"]))
        else:
            out.append((kind, "".join(_text(choice["delta"]) for choice in choices)))
    return out


def _kind(choice: dict[str, Any]) -> tuple[Any, ...]:
    delta = choice["delta"]
    if "role" in delta or choice["finish_reason"] or any("id" in call for call in delta.get("tool_calls", ())):
        return ("other",)
    if "tool_calls" in delta:
        return ("arguments", delta["tool_calls"][0]["index"])
    return tuple((field, value is None) for field, value in delta.items())


def _text(delta: dict[str, Any]) -> str:
    if "tool_calls" in delta:
        return str(delta["tool_calls"][0]["function"]["arguments"])
    return "".join(value for value in delta.values() if value)


@pytest.mark.parametrize(
    ("format", "version"), [("deepseek-v4", "DeepSeek-V4-Pro"), ("deepseek-v4.1", "DeepSeek-V4.1-Flash")]
)
@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize(
    "said",
    [
        "Cold.",
        "Größe 🐳\n\nand more",
        f"I look.\n\n<{D}tool_calls>\n{INVOKED}</{D}tool_calls>",
        f"<{D}tool_calls>\n{INVOKED}</{D}tool_calls>",
    ],
)
def test_chunks_are_those_of_deepseek_recipe(format: str, version: str, thinking: str, said: str) -> None:
    ids = sampled(("Hm, hm 🐳</think>\n\n" if thinking == "enabled" else "") + said)
    body: dict[str, Any] = {"messages": [USER], "tools": TOOLS, "thinking": {"type": thinking}, "stream": True}
    service, _ = served(format, [*ids, *sampled(EOS)])
    with client_of(service) as client:
        ours = events(client.post(CHAT, json={"model": MODEL, **body}).text)
    theirs = recipes(version, body, ids)
    assert shape(ours) == shape(theirs)
    assert list(ours[0]["choices"][0]) == list(theirs[0]["choices"][0])
    assert list(ours[-1]["usage"]) == list(theirs[-1]["usage"])
    details = [chunks[-1]["usage"].get("completion_tokens_details") for chunks in (ours, theirs)]
    assert details[0] == details[1]
