"""Compiling happens beside the event loop: a stuck grammar keeps nobody waiting, and what is kept is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from deepwell.chat import Structure
from deepwell.errors import RequestError
from deepwell.grammar import grammars
from deepwell.grammar.bounds import MAX_PROPERTIES
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.grammars import Grammars
from deepwell.grammar.source import Grammar, of_structure
from deepwell.grammar.vocabulary import Vocabulary
from fakes import tiny_tokenizer

STUCK = of_structure(Structure(kind="regex", field="stuck", text="s"))


def quick(number: int) -> Grammar:
    return of_structure(Structure(kind="regex", field="f", text=f"a{number}"))


async def test_a_stuck_compile_is_refused_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def compiled(grammar: Grammar, vocabulary: Vocabulary) -> Compiled:
        if grammar == STUCK:
            release.wait(20)
        return Compiled(grammar, vocabulary)

    monkeypatch.setattr(grammars, "Compiled", compiled)
    monkeypatch.setattr(grammars, "SECONDS", 1.0)
    made = Grammars(tiny_tokenizer(), 320)
    await made.compiled(quick(0))
    with pytest.raises(RequestError, match="stuck takes more than 1 s") as fault:
        await made.compiled(STUCK)
    assert fault.value.param == "stuck"
    await made.compiled(quick(1))
    release.set()
    await made.compiled(STUCK)


async def test_the_grammars_asked_for_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "KEPT", 2)
    made = Grammars(tiny_tokenizer(), 320)
    first = await made.compiled(quick(0))
    await made.compiled(quick(1))
    assert await made.compiled(quick(0)) is first
    await made.compiled(quick(2))
    assert await made.compiled(quick(0)) is first
    assert len(made._kept) == 2


def lark_chain(count: int) -> Grammar:
    rules = [f'r{n}: "a" r{n + 1}' for n in range(count)]
    text = "\n".join(["start: r0", *rules, f'r{count}: "b"'])
    return of_structure(Structure(kind="lark", field="f", text=text))


def schema_chain(count: int, link: Callable[[dict[str, Any]], dict[str, Any]]) -> Grammar:
    defs = {f"d{n}": link({"$ref": f"#/$defs/d{n + 1}"}) for n in range(count)}
    schema = {"$defs": {**defs, f"d{count}": {"type": "object"}}, "$ref": "#/$defs/d0"}
    return of_structure(Structure(kind="json", field="f", schema=schema))


@pytest.mark.parametrize(
    "grammar",
    [
        lark_chain(12_500),
        schema_chain(7000, lambda ref: ref),
        schema_chain(3200, lambda ref: {"type": "object", "properties": {"a": ref}}),
        schema_chain(3200, lambda ref: {"allOf": [ref, {"type": "object"}]}),
    ],
    ids=["rules", "refs", "properties", "allOf"],
)
async def test_the_longest_chains_of_rules_do_not_end_the_process(grammar: Grammar) -> None:
    made = Grammars(tiny_tokenizer(), 320)
    with suppress(RequestError):
        (await made.compiled(grammar)).constraint().allowed(())


async def test_what_nobody_waits_for_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    release, begun = threading.Event(), []

    def compiled(grammar: Grammar, vocabulary: Vocabulary) -> Compiled:
        begun.append(grammar)
        release.wait(20)
        return Compiled(grammar, vocabulary)

    monkeypatch.setattr(grammars, "Compiled", compiled)
    made = Grammars(tiny_tokenizer(), 320)
    running = [asyncio.ensure_future(made.compiled(quick(number))) for number in range(grammars.THREADS)]
    left, stays, shares = (asyncio.ensure_future(made.compiled(quick(number))) for number in (10, 11, 11))
    await asyncio.sleep(0.05)
    left.cancel()
    shares.cancel()
    await asyncio.wait([left, shares])
    release.set()
    await asyncio.gather(*running, stays)
    assert quick(10) not in begun
    assert quick(11) in begun


@pytest.mark.parametrize("required", [True, False])
async def test_the_most_properties_are_compiled_and_followed_and_more_are_refused(required: bool) -> None:
    def wide(count: int) -> Grammar:
        names = [f"p{number}" for number in range(count)]
        schema: dict[str, Any] = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        schema |= {"required": names} if required else {}
        return of_structure(Structure(kind="json", field="f", schema=schema))

    tokenizer = tiny_tokenizer()
    made = Grammars(tokenizer, 320)
    constraint = (await made.compiled(wide(MAX_PROPERTIES))).constraint()
    for token in tokenizer.encode('{"p0":"a",'):
        constraint.accept([token])
        constraint.allowed(())
    with pytest.raises(RequestError, match="properties at # has 2001"):
        await made.compiled(wide(MAX_PROPERTIES + 1))
