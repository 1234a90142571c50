"""Strict tools: whatever the model would rather say, its calls have arguments of their schema, in every format."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from dsml_fakes import dsml_tokenizer
from json_fakes import stranger_tokenizer

from deepwell.chat import FORMATS, Conversation, Message, Structure, Tool, find_format, render_chat
from deepwell.chat.reading.dsml_tags import OPENERS
from deepwell.chat.reading.marks import ThoughtMeter
from deepwell.engine import EngineCore, Request, SamplingParams
from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.constraint import ConstraintError
from deepwell.grammar.thoughts import behind_thought
from deepwell.grammar.turns import grammar_of
from deepwell.grammar.vocabulary import Vocabulary
from deepwell.server.turn import Turn
from fakes import FakeRunner, tiny_tokenizer

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "at": {"type": "object", "properties": {"x": {"$ref": "#/$defs/small"}}},
        "tag": {"type": "string", "pattern": "^[ab]{2}$"},
    },
    "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 3}},
}
STRICT = PARAMETERS | {"required": [*PARAMETERS["properties"]], "additionalProperties": False}
WEATHER = Tool(name="weather", parameters=PARAMETERS, strict=True)
CLOCK = Tool(name="clock", parameters={"type": "object", "properties": {}}, strict=True)
TEMPLATES = ["Qwen2.5-7B-Instruct", "Qwen3-0.6B", "llama-like"]
NAMES = ["deepseek-v2.5", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"]


def answer(name: str, seed: int, max_tokens: int = 3000, **fields: Any) -> tuple[Message, str | None]:
    """What a random model answers in a format, or by a template, as its reader reads it."""
    tokenizer = dsml_tokenizer() if name in ("deepseek-v3.2", "deepseek-v4", "deepseek-v4.1") else tiny_tokenizer()
    tokenizer = tokenizer if name in FORMATS else stranger_tokenizer(name)
    format = find_format(name if name in FORMATS else "jinja", tokenizer)
    conversation = Conversation(messages=(Message.of("user", f"Hi {seed}"),), **fields)
    grammar = grammar_of(conversation, format, tokenizer)
    assert grammar is not None
    reader = format.reader(conversation, tokenizer)
    turn = Turn(reader, ThoughtMeter(reader.thoughts, tokenizer))
    runner = FakeRunner(vocab_size=tokenizer.vocab_size)
    compiled = Compiled(grammar, Vocabulary(tokenizer, runner.vocab_size))
    request = Request(
        id="a",
        prompt=render_chat(conversation, tokenizer, format),
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed),
        constraint=behind_thought(compiled, reader.thoughts),
    )
    for delta in EngineCore(runner, tokenizer).generate(request):
        assert delta.finish_reason != "error", delta.error
        turn.push(delta)
    return turn.message, delta.finish_reason


@pytest.mark.parametrize("name", [*NAMES, *TEMPLATES])
@pytest.mark.parametrize("choice", ["required", WEATHER])
def test_a_demanded_call_has_arguments_of_its_schema(name: str, choice: Any) -> None:
    for seed in range(3):
        said, reason = answer(name, seed, tools=(WEATHER, CLOCK), choice=choice)
        assert reason == "stop"
        assert said.content == ""
        assert said.calls
        for call in said.calls:
            assert call.name in ("weather", "clock") if choice == "required" else call.name == "weather"
            jsonschema.validate(json.loads(call.arguments), STRICT if call.name == "weather" else {"maxProperties": 0})


@pytest.mark.parametrize("name", [*NAMES, "Qwen2.5-7B-Instruct"])
def test_an_answer_of_a_structure_may_be_a_call_instead(name: str) -> None:
    structure = Structure(kind="choice", field="f", texts=("yes", "no"))
    kinds = set()
    for seed in range(8):
        said, reason = answer(name, seed, tools=(WEATHER,), structure=structure)
        assert reason == "stop"
        kinds.add(bool(said.calls))
        assert said.calls or said.content in ("yes", "no")
        for call in said.calls:
            jsonschema.validate(json.loads(call.arguments), STRICT)
    assert kinds == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_a_call_behind_free_text_is_strict(name: str) -> None:
    format = FORMATS[name]
    tokenizer = dsml_tokenizer() if name in ("deepseek-v3.2", "deepseek-v4", "deepseek-v4.1") else tiny_tokenizer()
    conversation = Conversation(messages=(Message.of("user", "Hi"),), tools=(WEATHER,))
    grammar = grammar_of(conversation, format, tokenizer)
    constraint = Compiled(grammar, Vocabulary(tokenizer, tokenizer.vocab_size)).constraint()
    constraint.accept(tokenizer.encode("I look."))
    assert constraint.allowed(())[0].may_end
    syntax = format.calls
    parts = (*syntax.begin, *syntax.head("weather"))
    for part in parts:
        ids = tokenizer.encode(part) if isinstance(part, str) else [tokenizer.special(part.spelling)]
        constraint.accept(ids)
    assert not constraint.allowed(())[0].may_end


def test_tools_that_are_not_strict_stay_free_and_a_format_without_calls_is_refused() -> None:
    loose = Conversation(messages=(Message.of("user", "Hi"),), tools=(Tool(name="f"),), choice="required")
    assert grammar_of(loose, FORMATS["deepseek-v3"], tiny_tokenizer()) is None
    strict = Conversation(messages=(Message.of("user", "Hi"),), tools=(WEATHER,))
    with pytest.raises(RequestError, match="no calls"):
        grammar_of(strict, FORMATS["plain"], tiny_tokenizer())
    odd = Tool(name="f", parameters={"type": "object", "anyOf": [{}]}, strict=True)
    with pytest.raises(RequestError, match="anyOf"):
        grammar_of(Conversation(messages=strict.messages, tools=(odd,)), FORMATS["deepseek-v4"], dsml_tokenizer())


@pytest.mark.parametrize("name", ["deepseek-v3.2", "deepseek-v4", "deepseek-v4.1"])
def test_no_call_is_spelled_in_letters_around_strict_tools(name: str) -> None:
    tokenizer = dsml_tokenizer()
    conversation = Conversation(messages=(Message.of("user", "Hi"),), tools=(WEATHER,))
    grammar = grammar_of(conversation, FORMATS[name], tokenizer)
    assert grammar is not None
    compiled = Compiled(grammar, Vocabulary(tokenizer, tokenizer.vocab_size))
    for opener in OPENERS:
        constraint = compiled.constraint()
        with pytest.raises(ConstraintError):
            constraint.accept(tokenizer.encode(f"a <b> {opener}"))
    constraint = compiled.constraint()
    constraint.accept(tokenizer.encode("a <b> </b> <tool"))
    assert constraint.allowed(())[0].may_end


def test_calls_that_are_text_are_strict_only_where_they_must_come() -> None:
    tokenizer = stranger_tokenizer("llama-like")
    conversation = Conversation(messages=(Message.of("user", "Hi"),), tools=(WEATHER,))
    with pytest.raises(RequestError, match="unless a call must come"):
        grammar_of(conversation, find_format("jinja", tokenizer), tokenizer)
