"""Answers keep to JSON, schemas, regular expressions and grammars, whatever the model would rather say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from deepwell.chat import Structure
from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.errors import RequestError
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.grammars import Grammars
from deepwell.grammar.source import Grammar, of_structure
from deepwell.grammar.vocabulary import Vocabulary
from fakes import EOS, FakeRunner, tiny_tokenizer

T = tiny_tokenizer()
RUNNER = FakeRunner()
V = Vocabulary(T, RUNNER.vocab_size)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def of_schema(schema: dict[str, Any], field: str) -> Grammar:
    return of_structure(Structure(kind="json", field=field, schema=schema))


def of_regex(text: str, field: str) -> Grammar:
    return of_structure(Structure(kind="regex", field=field, text=text))


def of_lark(text: str, field: str) -> Grammar:
    return of_structure(Structure(kind="lark", field=field, text=text))


def of_choice(texts: list[str], field: str) -> Grammar:
    return of_structure(Structure(kind="choice", field=field, texts=tuple(texts)))


def said(grammar: Grammar, seed: int = 0, **config: Any) -> tuple[str, str | None]:
    """What a random model says under a grammar, and why it ends."""
    core = EngineCore(FakeRunner(), T, EngineConfig(**config))
    request = Request(
        id="a",
        prompt=(30, 31 + seed),
        sampling=SamplingParams(max_tokens=400, seed=seed),
        constraint=Compiled(grammar, V).constraint(),
    )
    deltas = list(core.generate(request))
    core.check_integrity()
    assert deltas[-1].finish_reason != "error", deltas[-1].error
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_a_random_model_says_json_of_a_schema(seed: int, speculate: Any) -> None:
    text, reason = said(of_schema(PERSON, "f"), seed, speculate=speculate)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), PERSON)
    assert (text, reason) == said(of_schema(PERSON, "f"), seed)


def test_regexes_grammars_and_choices_hold() -> None:
    assert said(of_regex(r"[a-c]{3}/\d", "f"))[0][3] == "/"
    assert said(of_choice(["yes", 'n"o'], "f"))[0] in ("yes", 'n"o')
    assert said(of_lark('start: "<" word ">"\nword: /[xy]{2}/', "f"))[0][1:3] in ("xx", "xy", "yx", "yy")


def test_places_behind_a_guess_are_those_that_it_leads_to() -> None:
    compiled = Compiled(of_schema(PERSON, "f"), V)
    ids = T.encode('{"name": "ab", "age": 7}')
    guessed = compiled.constraint().allowed(ids)
    stepped, step = [], compiled.constraint()
    for token in ids:
        stepped += step.allowed(())
        step.accept([token])
    stepped += step.allowed(())
    assert len(guessed) == len(stepped) == 1 + len(ids)
    for one, other in zip(guessed, stepped, strict=True):
        assert one.may_end == other.may_end
        assert (one.mask == other.mask).all()
    assert guessed[-1].may_end
    end = T.special(EOS)
    assert len(compiled.constraint().allowed([ids[0], end, 5, 6])) == 5


def test_a_grammar_is_compiled_once_beside_the_loop_and_faults_name_the_field() -> None:
    async def run() -> None:
        grammars = Grammars(T, RUNNER.vocab_size)
        grammar = of_schema(PERSON, "f")
        one, other = await asyncio.gather(grammars.compiled(grammar), grammars.compiled(of_schema(PERSON, "f")))
        assert one is other
        for wrong in (of_regex("(", "f"), of_lark("start: nothing", "f"), of_lark("start: start", "f")):
            with pytest.raises(RequestError, match=r"f: |f allows") as fault:
                await grammars.compiled(wrong)
            assert fault.value.param == "f"

    asyncio.run(run())
