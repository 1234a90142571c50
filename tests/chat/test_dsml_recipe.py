"""V4 and V4.1 against `deepseek-recipe`, DeepSeek's own renderer and parser: prompts, their ids, and answers."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from conversations import rendered
from dsml_fakes import Read, dsml_tokenizer, half_marked, marked, read, reader_of, tokenizer_json
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from deepwell.chat import Call, Conversation, Message, Structure, Tool
from deepwell.errors import RequestError

if (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")}:
    pytest.skip(
        "deepseek-recipe, the reference of these tests, has no wheel for "
        f"{sys.platform} on {platform.machine()}: it has them for Linux on x86-64 and ARM64, and macOS on ARM64",
        allow_module_level=True,
    )
import deepseek_recipe as recipe

T = dsml_tokenizer()
MODELS = {"deepseek-v4": "DeepSeek-V4-Pro", "deepseek-v4.1": "DeepSeek-V4.1-Flash"}
_TOKENIZER = recipe.Tokenizer.from_str(tokenizer_json())
ENCODINGS = {
    "deepseek-v4": recipe.DeepseekV4Encoding().with_tokenizer(_TOKENIZER),
    "deepseek-v4.1": recipe.DeepseekV41Encoding().with_tokenizer(_TOKENIZER),
}
FORMAT = st.sampled_from(sorted(MODELS))

TOKENS = "<｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> <think> </think> ｜DSML｜ <｜System｜> <｜latest_reminder｜>"
SPELLINGS = st.sampled_from([*TOKENS.split(), "<tool_result>", "\n", "\n\n", " ", "<", "</", "🐳"])
LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
TEXTS = st.lists(SPELLINGS | LETTERS, max_size=4).map("".join)
NAMES = st.sampled_from(["get_weather", "f", "a-b"])
KEYS = st.sampled_from(["city", "n", "é", 'odd"key', ""])
NUMBERS = st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=3)
ARGUMENTS = OBJECTS.map(json.dumps) | st.sampled_from(
    ["", "null", "[1]", "{", "not json", '{"a":1E400}', '{"a":-0}', '{"a": NaN}', '{"a":1,"a":2}', '"{}"', " {} "]
)


@st.composite
def turns(draw: st.DrawFn, ids: list[int]) -> list[dict[str, Any]]:
    """A few messages that may stand anywhere. A call's id is new in the conversation, and all calls are answered."""
    role = draw(st.sampled_from(["system", "user", "assistant", "latest_reminder", "calls"]))
    if role != "calls":
        thought = draw(st.sampled_from([{}, {"reasoning_content": draw(TEXTS)}])) if role == "assistant" else {}
        return [{"role": role, "content": draw(TEXTS)} | thought]
    calls = []
    for _ in range(draw(st.integers(1, 3))):
        ids.append(len(ids))
        function = {"name": draw(NAMES), "arguments": draw(ARGUMENTS)}
        calls.append({"id": f"call_{ids[-1]}", "type": "function", "function": function})
    asked = {"role": "assistant", "content": draw(TEXTS), "reasoning_content": draw(TEXTS), "tool_calls": calls}
    order = draw(st.permutations(calls))
    return [asked, *({"role": "tool", "tool_call_id": call["id"], "content": draw(TEXTS)} for call in order)]


def strict_objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas of objects that strict tools may have, incomplete, in the order of keys that deepseek-recipe gives them
    (which lays the others out anew, and drops what it does not know)."""
    return st.dictionaries(KEYS, inner, min_size=1, max_size=3).map(
        lambda named: {"type": "object", "properties": named}
    )


LEAVES = st.sampled_from(["string", "number", "integer", "boolean"]).map(
    lambda kind: {"type": kind, "description": "d"}
)
STRICT = strict_objects(
    st.recursive(
        LEAVES,
        lambda inner: (
            strict_objects(inner)
            | inner.map(lambda items: {"type": "array", "items": items})
            | st.lists(inner, min_size=1, max_size=2).map(lambda ways: {"anyOf": ways})
        ),
        max_leaves=5,
    )
)


@st.composite
def tools(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    strict = draw(st.booleans())  # theirs takes all or none
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        function: dict[str, Any] = {"name": name}
        if draw(st.booleans()):
            function["description"] = draw(TEXTS)
        if strict:
            function |= {"parameters": draw(STRICT), "strict": True}
        elif draw(st.booleans()):
            function["parameters"] = {"type": "object", **draw(OBJECTS)}
        found.append({"type": "function", "function": function})
    return found


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    ids: list[int] = []
    messages = [message for turn in draw(st.lists(turns(ids), min_size=1, max_size=5)) for message in turn]
    body: dict[str, Any] = {"messages": messages}
    if draw(st.booleans()):
        body["thinking"] = {"type": draw(st.sampled_from(["enabled", "disabled"]))}
    efforts = ["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
    if draw(st.booleans()):
        body["reasoning_effort"] = draw(st.sampled_from(efforts))
    if draw(st.booleans()):
        body["tools"] = draw(tools())
        choices: list[Any] = ["auto", "none"]
        if body.get("thinking") == {"type": "disabled"}:
            choices += ["required", {"type": "function", "function": {"name": body["tools"][0]["function"]["name"]}}]
        body["tool_choice"] = draw(st.sampled_from(choices))
    elif not ids and draw(st.booleans()):
        thought = draw(st.sampled_from([{}, {"reasoning_content": draw(TEXTS)}]))
        messages.append({"role": "assistant", "content": draw(TEXTS), "prefix": True} | thought)
    return body


def conversation_of(body: dict[str, Any]) -> Conversation:
    """The conversation that a request body tells."""
    known = {tool["function"]["name"]: Tool(**tool["function"]) for tool in body.get("tools", [])}
    choice = body.get("tool_choice", "auto")
    return Conversation(
        messages=tuple(map(_message, body["messages"])),
        tools=tuple(known.values()),
        choice=choice if isinstance(choice, str) else known[choice["function"]["name"]],
        thinking={"enabled": True, "disabled": False, None: None}[body.get("thinking", {}).get("type")],
        effort=body.get("reasoning_effort"),
    )


def _message(said: dict[str, Any]) -> Message:
    return Message.of(
        said["role"],
        said["content"],
        reasoning=said.get("reasoning_content"),
        calls=tuple(Call(id=call["id"], **call["function"]) for call in said.get("tool_calls", [])),
        answers=said.get("tool_call_id"),
        prefix=said.get("prefix", False),
    )


def reference(body: dict[str, Any], format: str) -> Any:
    request = recipe.ChatCompletionRequest(json.dumps({"model": MODELS[format], **body}))
    return request.convert(recipe.ConversionOptions())


def said(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages but for empty system texts."""
    return [message for message in body["messages"] if message["role"] != "system" or message["content"]]


def adjacent_reminders(body: dict[str, Any]) -> bool:
    roles = [message["role"] for message in said(body)]
    return any(one == other == "latest_reminder" for one, other in pairwise(roles))


def nothing_but_a_prefix(body: dict[str, Any]) -> bool:
    return [message.get("prefix") for message in said(body)] == [True]


PROPERTIES = st.dictionaries(KEYS, st.sampled_from([{"type": "integer", "default": 1e-7}, {"type": "string"}]))
SCHEMAS = PROPERTIES.map(lambda known: {"type": "object", "properties": known, "required": [*known][:1]})


@settings(max_examples=100)
@given(bodies(), FORMAT, SCHEMAS | st.none())
def test_what_the_answer_must_be_is_said_in_deepseeks_words(
    body: dict[str, Any], format: str, schema: dict[str, Any] | None
) -> None:
    assume(format == "deepseek-v4" or not (adjacent_reminders(body) or nothing_but_a_prefix(body)))
    assume(not any(message.get("prefix") for message in body["messages"]))
    for tool in body.get("tools", []):
        tool["function"].pop("strict", None)  # theirs takes no structure beside strict tools
    body["messages"].insert(0, {"role": "system", "content": "Say JSON."})
    asked = {"type": "json_object"} if schema is None else {"type": "json_schema", "json_schema": {"schema": schema}}
    theirs = reference({**body, "response_format": asked}, format).conversation
    told = replace(conversation_of(body), structure=Structure(kind="json", field="f", schema=schema))
    assert T.decode(rendered(told, T, format)) == ENCODINGS[format].render_conversation(theirs).prompt


@settings(max_examples=400)
@given(bodies(), FORMAT)
def test_prompt_and_its_ids_are_those_of_deepseek(body: dict[str, Any], format: str) -> None:
    assume(format == "deepseek-v4" or not (adjacent_reminders(body) or nothing_but_a_prefix(body)))
    theirs = reference(body, format).conversation
    ours = rendered(conversation_of(body), T, format)
    assert T.decode(ours) == ENCODINGS[format].render_conversation(theirs).prompt
    assert list(ours) == ENCODINGS[format].encode(theirs)


def test_no_reminder_is_lost() -> None:
    """A difference on purpose: of adjacent reminders, DeepSeek's renderer of V4.1 leaves out all but the first."""
    body = {"messages": [{"role": "latest_reminder", "content": text} for text in ("one", "two")]}
    assert "two" not in prompt_of(body, "deepseek-v4.1")
    with pytest.raises(RequestError, match="one latest_reminder at a time"):
        rendered(conversation_of(body), T, "deepseek-v4.1")


def test_a_prefix_alone_is_continued_where_it_ended() -> None:
    """A difference on purpose: V4.1's renderer closes a thought that comes first, and its parser expects it open."""
    body = {"messages": [{"role": "assistant", "content": "", "reasoning_content": "Well", "prefix": True}]}
    assert prompt_of(body, "deepseek-v4.1").endswith("<｜Assistant｜></think>")
    assert T.decode(rendered(conversation_of(body), T, "deepseek-v4.1")).endswith("<｜Assistant｜><think>Well")


def prompt_of(body: dict[str, Any], format: str) -> str:
    return str(ENCODINGS[format].render_conversation(reference(body, format).conversation).prompt)


TOOLS = [{"type": "function", "function": {"name": "f"}}]
WELL = SPELLINGS.filter(lambda text: "DSML" not in text and "think>" not in text) | LETTERS
PLAIN = st.lists(WELL, max_size=4).map("".join)
TAGS = {"deepseek-v4": ("tool_calls", ""), "deepseek-v4.1": (" calls", " ")}
WRITTEN = st.tuples(st.just(True), PLAIN) | st.tuples(st.just(False), VALUES.filter(lambda v: type(v) is not str))


@st.composite
def answers(draw: st.DrawFn, format: str, thinks: bool) -> str:
    """An answer as the model should write it: a thought, content, calls."""
    block, blank = TAGS[format]
    text = draw(PLAIN) + "</think>" if thinks else ""
    text += draw(PLAIN)
    calls = []
    for _ in range(draw(st.integers(0, 3))):
        call = f'<｜DSML｜{blank}invoke name="{draw(NAMES)}">\n'
        for key, (is_text, value) in draw(st.dictionaries(st.sampled_from(["a", "é", ""]), WRITTEN)).items():
            shown = value if is_text else json.dumps(value, ensure_ascii=draw(st.booleans()))
            call += f'<｜DSML｜{blank}parameter name="{key}" string="{str(is_text).lower()}">{shown}'
            call += f"</｜DSML｜{blank}parameter>\n"
        calls.append(f"{call}</｜DSML｜{blank}invoke>\n")
    if not calls:
        return text
    return f"{text}\n\n<｜DSML｜{block}>\n{''.join(calls)}</｜DSML｜{block}>"


def read_by_recipe(body: dict[str, Any], format: str, text: str, borders: Sequence[int] = ()) -> Read:
    places = sorted({0, *borders, len(text)})
    parts = [text[start:end] for start, end in pairwise(places)]
    request = reference(body, format)
    generator = recipe.ChatCompletionRequest.chunk_generator(request, "id", "model")
    processor = recipe.StreamProcessor(generator, request.parsing_options)
    whole = recipe.ChatCompletionResponse("id", "model", 0, 0, 0)
    chunks = [recipe.InferenceChunk.ready(), *(recipe.InferenceChunk.text(part, 1) for part in parts)]
    chunks.append(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    for chunk in chunks:
        for given_now in processor.push(chunk):
            whole.accumulate(given_now)
    for given_now in processor.finish():
        whole.accumulate(given_now)
    message = json.loads(whole.to_json())["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return message.get("reasoning_content") or "", message.get("content") or "", calls


BORDERS = st.lists(st.integers(0, 400), max_size=8)


@settings(max_examples=300)
@given(st.data(), FORMAT, st.booleans(), BORDERS)
def test_answers_are_read_as_deepseek_reads_them(
    data: st.DataObject, format: str, thinks: bool, borders: list[int]
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    body["thinking"] = {"type": "enabled" if thinks else "disabled"}
    text = data.draw(answers(format, thinks))
    assume(not re.search("[</]\n", text))  # theirs miscounts line breaks behind what might have been a tag
    conversation = conversation_of(body)
    theirs = read_by_recipe(body, format, text, borders)
    assert read(reader_of(format, conversation), marked(text), borders) == theirs
    assert read(reader_of(format, conversation), half_marked(text)) == theirs


SAMPLE = """I wonder.
</think>

Let me see.

<｜DSML｜{block}>
<｜DSML｜{blank}invoke name="get_weather">
<｜DSML｜{blank}parameter name="city" string="true">Köln "am" Rhein</｜DSML｜{blank}parameter>
<｜DSML｜{blank}parameter name="days" string="false">[1, 2]</｜DSML｜{blank}parameter>
</｜DSML｜{blank}invoke>
<｜DSML｜{blank}invoke name="f">
</｜DSML｜{blank}invoke>
</｜DSML｜{block}>"""


@pytest.mark.parametrize("format", sorted(MODELS))
def test_an_answer_is_read_as_deepseek_reads_it_at_every_border(format: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    block, blank = TAGS[format]
    text = SAMPLE.format(block=block, blank=blank)
    answer = marked(text)
    for border in range(len(text)):
        theirs = read_by_recipe(body, format, text, [border])
        assert read(reader_of(format, conversation_of(body)), answer, [border % len(answer)]) == theirs


def test_text_that_spells_the_end_of_a_thought_stays_text() -> None:
    """A difference on purpose: the parser sees no tokens, only their text."""
    body = {"messages": [{"role": "user", "content": "x"}]}
    text = "It writes </think> here"
    assert read_by_recipe(body, "deepseek-v4", text) == ("It writes ", " here", [])
    assert read(reader_of("deepseek-v4", conversation_of(body)), text) == (text, "", [])


def test_a_parameter_name_with_blanks_is_read_whole() -> None:
    """A difference on purpose: this version of the parser drops what follows a blank in a name, and so breaks JSON."""
    text = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
    text += '<｜DSML｜parameter name="a b" string="false">1</｜DSML｜parameter>'
    text += "\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "thinking": {"type": "disabled"}}
    assert read_by_recipe(body, "deepseek-v4", text) == ("", "", [("f", '{"a: 1}')])
    assert read(reader_of("deepseek-v4", conversation_of(body)), marked(text)) == ("", "", [("f", '{"a b": 1}')])


def test_a_continued_text_keeps_its_line_breaks() -> None:
    """A difference on purpose: the parser drops line breaks that begin the rest of a message, unless it thought."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "```python", "prefix": True}]
    body = {"messages": messages, "thinking": {"type": "disabled"}}
    assert read_by_recipe(body, "deepseek-v4", "\nx = 1") == ("", "x = 1", [])
    assert read(reader_of("deepseek-v4", conversation_of(body)), ["\nx = 1"]) == ("", "\nx = 1", [])


CONTINUED = st.fixed_dictionaries(
    {"reasoning_content": st.sampled_from(["", "Hm"]), "content": st.sampled_from(["", "A"])}
)


@settings(max_examples=100)
@given(CONTINUED, PLAIN, PLAIN, FORMAT, BORDERS)
def test_continued_thoughts_are_read_as_deepseek_reads_them(
    begun: dict[str, str], thought: str, content: str, format: str, borders: list[int]
) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "prefix": True, **begun}]
    text = content if begun["content"] else f"{thought}</think>{content}"
    assume(not re.search("[</]\n", text))
    theirs = read_by_recipe({"messages": messages}, format, text, borders)
    ours = reader_of(format, conversation_of({"messages": messages}))
    assert read(ours, marked(text), borders) == theirs


@settings(max_examples=100)
@given(st.data(), FORMAT, BORDERS)
def test_demanded_calls_are_read_as_deepseek_reads_them(data: st.DataObject, format: str, borders: list[int]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "tool_choice": "required"}
    body["thinking"] = {"type": "disabled"}
    block, _ = TAGS[format]
    _, opened, text = data.draw(answers(format, False)).rpartition(f"<｜DSML｜{block}>\n")
    assume(opened and not re.search("[</]\n", text))
    theirs = read_by_recipe(body, format, text, borders)
    assert read(reader_of(format, conversation_of(body)), marked(text), borders) == theirs
