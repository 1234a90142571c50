"""A random model with a random schema says a document that validates, or is cut off."""

from __future__ import annotations

import json

import jsonschema
from random_schemas import random_schema

from deepwell.chat import Structure
from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.source import of_structure
from deepwell.grammar.vocabulary import Vocabulary
from fakes import FakeRunner, tiny_tokenizer

T = tiny_tokenizer()


def test_documents_of_a_hundred_random_schemas_validate_or_are_cut_off() -> None:
    """All in one batch at a time, guesses on."""
    core = EngineCore(FakeRunner(), T, EngineConfig(speculate="lookup", max_running=25))
    vocabulary = Vocabulary(T, 320)
    texts: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for first in range(0, 100, 25):
        for seed in range(first, first + 25):
            structure = Structure(kind="json", field="f", schema=random_schema(seed))
            constraint = Compiled(of_structure(structure), vocabulary).constraint()
            sampling = SamplingParams(max_tokens=200, seed=seed)
            core.add(Request(id=str(seed), prompt=(30, 31), sampling=sampling, constraint=constraint))
        while core.live:
            for id, delta in core.step():
                assert delta.finish_reason in (None, "stop", "length"), delta.error
                texts.setdefault(id, []).append(delta.text)
                ends[id] = delta.finish_reason or ""
    core.check_integrity()
    whole = [int(id) for id, reason in ends.items() if reason == "stop"]
    assert len(whole) >= 70
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for seed in whole:
        document = json.loads("".join(texts[str(seed)]))
        jsonschema.validate(document, random_schema(seed), format_checker=checker)
