"""Anthropic's Messages against `deepseek-recipe`, DeepSeek's own library: prompts, token by token, and events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from serving import MODEL, client_of
from test_anthropic import PATH, events, gathered
from test_dsml_served import CALLED, EOS, INVOKED, D, T, json_of, sampled, served, tokenizer_json

from deepwell.chat import find_format, render_chat
from deepwell.server.anthropic.conversation import conversation_of
from deepwell.server.anthropic.protocol import MessagesRequest
from deepwell.server.body import decode

sys.path.insert(0, str(Path(__file__).parents[1] / "chat"))
recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe has no wheel for this platform")
from test_dsml_recipe import ENCODINGS, FORMAT, MODELS, NAMES, OBJECTS, TEXTS  # noqa: E402

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
# Anthropic takes no empty texts, and what the library makes of them depends on their neighbours.
SAID = TEXTS.filter(bool)
TEXT_BLOCKS = st.lists(SAID.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
CONTENTS = SAID | TEXT_BLOCKS


@st.composite
def loops(draw: st.DrawFn, ids: list[int]) -> list[dict[str, Any]]:
    """Calls and their results, in any order, with texts before and behind."""
    said: list[dict[str, Any]] = []
    if draw(st.booleans()):
        said.append({"type": "thinking", "thinking": draw(TEXTS), "signature": "x"})
    if draw(st.booleans()):
        said += draw(TEXT_BLOCKS)
    uses = []
    for _ in range(draw(st.integers(1, 3))):
        ids.append(len(ids))
        uses.append({"type": "tool_use", "id": f"toolu_{ids[-1]}", "name": draw(NAMES), "input": draw(OBJECTS)})
    results = [
        {"type": "tool_result", "tool_use_id": one["id"], "content": draw(CONTENTS)}
        for one in draw(st.permutations(uses))
    ]
    behind = draw(TEXT_BLOCKS) if draw(st.booleans()) else []
    return [{"role": "assistant", "content": [*said, *uses]}, {"role": "user", "content": [*results, *behind]}]


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    ids: list[int] = []
    single = st.tuples(st.sampled_from(["user", "assistant", "system"]), CONTENTS).map(
        lambda pair: [{"role": pair[0], "content": pair[1]}]
    )
    turns = draw(st.lists(single | loops(ids), min_size=1, max_size=5))
    kind = draw(st.sampled_from(["enabled", "disabled"]))
    body: dict[str, Any] = {"messages": [message for turn in turns for message in turn], "thinking": {"type": kind}}
    if draw(st.booleans()):
        body["system"] = draw(CONTENTS)
    if draw(st.booleans()):
        body["output_config"] = {"effort": draw(st.sampled_from(["low", "medium", "high", "max"]))}
    if draw(st.booleans()):
        names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
        schemas = [{"type": "object", **draw(OBJECTS)} for _ in names]
        body["tools"] = [
            {"name": name, "description": draw(TEXTS), "input_schema": schema}
            for name, schema in zip(names, schemas, strict=True)
        ]
        # the library takes "any" for "auto"
        choices = ["auto", "none", *(["tool"] if kind == "disabled" else [])]
        choice = draw(st.sampled_from(choices))
        body["tool_choice"] = {"type": choice, **({"name": names[0]} if choice == "tool" else {})}
    return body


@settings(max_examples=150, deadline=None)
@given(FORMAT, bodies())
def test_prompts_are_those_of_deepseek_recipe(format: str, body: dict[str, Any]) -> None:
    try:
        request = recipe.MessagesRequest(body | {"model": MODELS[format]})
    except OverflowError:
        reject()  # it takes no larger integers
    theirs = ENCODINGS[format].encode(request.convert(recipe.ConversionOptions()).conversation)
    asked = decode(msgspec.json.encode(body), MessagesRequest)
    chosen = find_format(format, T)
    assert list(render_chat(conversation_of(asked, chosen), T, chosen)) == theirs


def recipes(version: str, body: dict[str, Any], ids: list[int], finish: Any) -> list[dict[str, Any]]:
    """The events that deepseek-recipe makes of an answer."""
    request = recipe.MessagesRequest(body | {"model": version})
    asked = request.convert(recipe.ConversionOptions())
    generator = recipe.MessagesRequest.chunk_generator(asked, "id", version)
    processor = recipe.StreamProcessor(generator, asked.parsing_options, recipe.Tokenizer.from_str(tokenizer_json()))
    usage = recipe.PromptUsage(prompt_tokens=70)
    fed = [recipe.InferenceChunk.ready(prompt_usage=usage), *(recipe.InferenceChunk.tokens([id]) for id in ids)]
    found = []
    for part in (*fed, recipe.InferenceChunk.finish(finish)):
        if not processor.finished:
            found += [json_of(chunk) for chunk in processor.push(part)]
    return found


def order(found: list[dict[str, Any]]) -> list[Any]:
    """Kinds of events and the fields of each, neighbours of one kind as one."""
    kinds: list[Any] = []
    for event in found:
        delta = event.get("delta", {})
        kind = (event["type"], *event, *delta, delta.get("type"), event.get("index"))
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return kinds


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from run to run."""
    for block in message["content"]:
        block.pop("signature", None)
        if "id" in block:
            block["id"] = block["id"][:8]
    usage = {name: value for name, value in message["usage"].items() if name != "output_tokens_details"}
    return message | {"id": "", "model": "", "usage": sorted(usage)}


@pytest.mark.parametrize(
    ("format", "version"), [("deepseek-v4", "DeepSeek-V4-Pro"), ("deepseek-v4.1", "DeepSeek-V4.1-Flash")]
)
@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("Cold.", {}),
        ("", {}),
        ("Größe 🐳\n\nand more", {}),
        ("one two three", {"stop_sequences": ["x", "two"]}),
        (f"I look.\n\n<{D}tool_calls>\n{INVOKED}</{D}tool_calls>", {}),
        (f"<{D}tool_calls>\n{INVOKED}</{D}tool_calls>", {}),
    ],
)
@pytest.mark.parametrize("ended", ["Stop", "Length"])
def test_events_are_those_of_deepseek_recipe(
    format: str, version: str, thinking: str, said: str, fields: dict[str, Any], ended: str
) -> None:
    ids = sampled(("Hm, hm 🐳</think>" if thinking == "enabled" else "") + said, letters=True)
    tools = [{"name": name, "input_schema": {"type": "object"}} for name, _ in CALLED]
    body = {"messages": [USER], "tools": tools, "thinking": {"type": thinking}, "stream": True, **fields}
    if ended == "Length" and ids:
        body["max_tokens"] = len(ids)
    service, _ = served(format, [*ids, *sampled(EOS)])
    with client_of(service) as client:
        ours = events(client.post(PATH, json={"model": MODEL, **body}).text)
    finish = getattr(recipe.InferenceFinishReason, ended if ids else "Stop")
    theirs = recipes(version, body, ids, finish)
    assert order(ours) == order(theirs)
    assert plain(gathered(ours)) == plain(gathered(theirs))
