"""OpenAI's Responses against `deepseek-recipe`, DeepSeek's own library: prompts, token by token, and events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from serving import MODEL, client_of
from test_dsml_served import CALLED, EOS, INVOKED, D, T, json_of, sampled, served, tokenizer_json
from test_responses import PATH, events

from deepwell.chat import find_format, render_chat
from deepwell.server.body import decode
from deepwell.server.responses.conversation import conversation_of
from deepwell.server.responses.protocol import ResponsesRequest

sys.path.insert(0, str(Path(__file__).parents[1] / "chat"))
recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe has no wheel for this platform")
from test_dsml_recipe import ARGUMENTS, ENCODINGS, FORMAT, MODELS, NAMES, OBJECTS, TEXTS  # noqa: E402

SAID = TEXTS.filter(bool)
PATCH = {"type": "custom", "name": "apply_patch"}


def parts(kind: str) -> Any:
    return st.lists(SAID.map(lambda text: {"type": kind, "text": text}), min_size=1, max_size=3)


@st.composite
def spoken(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What the model thought and said, in one item or several."""
    said: list[dict[str, Any]] = []
    if draw(st.booleans()):
        said.append({"type": "reasoning", "summary": [], "content": draw(parts("reasoning_text"))[:1]})
    content = draw(SAID | parts("output_text"))
    return [*said, {"type": "message", "role": "assistant", "content": content}]


@st.composite
def loops(draw: st.DrawFn, ids: list[int]) -> list[dict[str, Any]]:
    said = draw(spoken()) if draw(st.booleans()) else []
    calls = []
    for _ in range(draw(st.integers(1, 3))):
        ids.append(len(ids))
        called = {"name": draw(NAMES), "arguments": draw(ARGUMENTS.filter(str.strip))}
        called |= draw(st.sampled_from([{}, {"namespace": "fs"}, {"namespace": "gone_"}]))
        custom = {"type": "custom_tool_call", "name": draw(st.sampled_from(["apply_patch", "x"])), "input": draw(TEXTS)}
        calls.append({"call_id": f"c{ids[-1]}"} | draw(st.sampled_from([{"type": "function_call"} | called, custom])))
    outputs = [
        {"type": call["type"] + "_output", "call_id": call["call_id"], "output": draw(SAID | parts("input_text"))}
        for call in draw(st.permutations(calls))
    ]
    return [*said, *calls, *outputs]


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    ids: list[int] = []
    user = (SAID | parts("input_text")).map(lambda content: [{"role": "user", "content": content}])
    turns = draw(st.lists(user | spoken() | loops(ids), min_size=1, max_size=5))
    effort = draw(st.sampled_from(["none", "low", "medium", "high", "max"]))
    body: dict[str, Any] = {"input": [item for turn in turns for item in turn], "reasoning": {"effort": effort}}
    if draw(st.booleans()):
        body["instructions"] = draw(SAID)
    if draw(st.booleans()):
        names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
        body["tools"] = [
            {
                "type": "function",
                "name": name,
                "description": draw(TEXTS),
                "parameters": {"type": "object", **draw(OBJECTS)},
            }
            for name in names
        ]
        plain = body["tools"][0]
        space = {"type": "namespace", "description": "Files", "tools": [plain]}
        spaces = [space | {"name": name} for name in draw(st.lists(st.sampled_from(["fs", "gone_"]), max_size=3))]
        clash = draw(st.sampled_from([[], [plain | {"name": f"fs__{names[0]}"}]]))
        body["tools"] += [*spaces, *clash]  # no custom tool: deepseek-recipe describes its only one itself
        if effort == "none":
            body["tool_choice"] = draw(st.sampled_from(["auto", "required", {"type": "function", "name": names[0]}]))
    return body


@settings(max_examples=150, deadline=None)
@given(FORMAT, bodies())
def test_prompts_are_those_of_deepseek_recipe(format: str, body: dict[str, Any]) -> None:
    try:
        request = recipe.ResponsesRequest(body | {"model": MODELS[format]})
    except OverflowError:
        reject()  # it takes no larger integers
    theirs = ENCODINGS[format].encode(request.convert(recipe.ConversionOptions()).conversation)
    asked = decode(msgspec.json.encode(body), ResponsesRequest)
    chosen = find_format(format, T)
    assert list(render_chat(conversation_of(asked, chosen), T, chosen)) == theirs


def recipes(version: str, body: dict[str, Any], ids: list[int], finish: Any) -> list[dict[str, Any]]:
    """The events that deepseek-recipe makes of an answer."""
    request = recipe.ResponsesRequest(body | {"model": version})
    spaces = request.namespace_tool_map(recipe.ConversionOptions())
    asked = request.convert(recipe.ConversionOptions())
    generator = recipe.ResponsesRequest.chunk_generator(asked, "id", version)
    generator = generator.with_namespace_tool_map(spaces)
    processor = recipe.StreamProcessor(generator, asked.parsing_options, recipe.Tokenizer.from_str(tokenizer_json()))
    usage = recipe.PromptUsage(prompt_tokens=70)
    fed = [recipe.InferenceChunk.ready(prompt_usage=usage), *(recipe.InferenceChunk.tokens([id]) for id in ids)]
    found = [processor.push(part) for part in (*fed, recipe.InferenceChunk.finish(finish))]
    return [json_of(chunk) for chunks in found for chunk in chunks]


def plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what differs from run to run, neighbouring deltas as one, and responses by what they hold."""
    kept: list[dict[str, Any]] = []
    for event in found:
        event = {name: _plain(name, value) for name, value in event.items() if name != "sequence_number"}
        if event["type"].endswith("arguments.done"):
            event.pop("name", None)
        if kept and "delta" in event and kept[-1]["type"] == event["type"]:
            kept[-1]["delta"] += event["delta"]
        else:
            kept.append(event)
    return kept


def _plain(name: str, value: Any) -> Any:
    if name in ("item_id", "id", "call_id"):
        return str(value).split("_")[0] + ("" if name == "call_id" else str(value)[-2:])
    if name == "item":
        return {key: _plain(key, part) for key, part in value.items() if key != "encrypted_content"}
    if name == "response":
        output = [_plain("item", item) for item in value["output"]]
        kept = ("status", "incomplete_details", "error", "instructions", "object", "tool_choice", "tools", "store")
        usage = value["usage"] and sorted(value["usage"])
        return {key: value[key] for key in kept} | {"output": output, "usage": usage}
    return value


@pytest.mark.parametrize(
    ("format", "version"), [("deepseek-v4", "DeepSeek-V4-Pro"), ("deepseek-v4.1", "DeepSeek-V4.1-Flash")]
)
@pytest.mark.parametrize("effort", ["high", "none"])
@pytest.mark.parametrize(
    "said",
    [
        "Cold.",
        "",
        "Größe 🐳\n\nand more",
        f"I look.\n\n<{D}tool_calls>\n{INVOKED}</{D}tool_calls>",
        f"<{D}tool_calls>\n{INVOKED}</{D}tool_calls>",
    ],
)
@pytest.mark.parametrize("ended", ["Stop", "Length"])
def test_events_are_those_of_deepseek_recipe(format: str, version: str, effort: str, said: str, ended: str) -> None:
    ids = sampled(("Hm, hm 🐳</think>" if effort == "high" else "") + said, letters=True)
    tools = [{"type": "function", "name": name} for name, _ in CALLED]
    body: dict[str, Any] = {"input": "Hi", "tools": tools, "reasoning": {"effort": effort}, "stream": True}
    if ended == "Length" and ids:
        body["max_output_tokens"] = len(ids)
    service, _ = served(format, [*ids, *sampled(EOS)])
    with client_of(service) as client:
        ours = events(client.post(PATH, json={"model": MODEL, **body}).text)
    theirs = recipes(version, body, ids, getattr(recipe.InferenceFinishReason, ended if ids else "Stop"))
    assert plain(ours) == plain(theirs)


def invoked(name: str, key: str, value: str, string: str = "true") -> str:
    value = f'<{D}parameter name="{key}" string="{string}">{value}</{D}parameter>'
    return f'<{D}invoke name="{name}">\n{value}\n</{D}invoke>\n'


@pytest.mark.parametrize(
    "calls",
    [
        invoked("apply_patch", "input", '*** Begin Patch\n"é" \\ 🐳\n'),
        invoked("fs__weather", "city", "Köln") + invoked("apply_patch", "input", ""),
        invoked("apply_patch", "other", "z"),
        invoked("apply_patch", "input", '{"a":1}', "false"),
        f'<{D}invoke name="apply_patch">\n</{D}invoke>\n',
    ],
)
def test_calls_of_custom_tools_and_namespaces_are_those_of_deepseek_recipe(calls: str) -> None:
    ids = sampled(f"<{D}tool_calls>\n{calls}</{D}tool_calls>", letters=True)
    inside = {"type": "function", "name": "weather", "description": "w", "parameters": {"type": "object"}}
    tools = [PATCH, {"type": "namespace", "name": "fs", "description": "Files", "tools": [inside]}]
    body: dict[str, Any] = {"input": "Hi", "tools": tools, "reasoning": {"effort": "none"}, "stream": True}
    service, _ = served("deepseek-v4", [*ids, *sampled(EOS)])
    with client_of(service) as client:
        ours = events(client.post(PATH, json={"model": MODEL, **body}).text)
    theirs = recipes("DeepSeek-V4-Pro", body, ids, recipe.InferenceFinishReason.Stop)
    assert plain(ours) == plain(theirs)
