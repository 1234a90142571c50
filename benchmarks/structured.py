"""What structure costs, and whether it holds: masks per token in a large vocabulary, compiling, random documents.

    python benchmarks/structured.py [--vocab 129280] [--schemas 200] [--documents 1000]

Masks are timed along documents that a random model said, encoded in a vocabulary drawn from a seed; compiling with what
is cached left out. Prints a Markdown table, and how many random documents validate, are cut off at 400 tokens, or fail.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema

from deepwell.chat import Structure
from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.grammar.compiled import Compiled
from deepwell.grammar.source import of_structure
from deepwell.grammar.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "grammar"))
from random_schemas import random_schema

from fakes import FakeRunner, tiny_tokenizer

BATCH, LONGEST = 25, 400


class Drawn:
    """A vocabulary of `size` tokens: bytes, words with and without a blank before them, numbers, brackets, runes."""

    bos, ends = None, (0,)

    def __init__(self, size: int) -> None:
        draw = random.Random(0)
        found = {bytes([byte]): None for byte in range(256)}
        found |= {str(number).encode(): None for number in range(1000)}
        while len(found) < size - 1:
            kind = draw.random()
            letters = "".join(draw.choices("etaoinshrdlucmfwypvbgkjqxz", k=draw.randint(2, 9)))
            runes = "".join(chr(draw.randint(0x4E00, 0x9000)) for _ in range(draw.randint(1, 3)))
            signs = "".join(draw.choices('{}[]":, \n', k=draw.randint(2, 4)))
            text = letters if kind < 0.3 else " " + letters if kind < 0.7 else runes if kind < 0.97 else signs
            found[text.encode()] = None
        self.tokens = [b"<end>", *found][:size]
        self.vocab_size = size
        self._ids = {text: id for id, text in enumerate(self.tokens)}

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def is_control(self, id: int) -> bool:
        return id == 0

    def special(self, text: str) -> int | None:
        return None

    def encode(self, text: str) -> list[int]:
        """The longest token each time."""
        data, at, ids = text.encode(), 0, []
        while at < len(data):
            size = next(n for n in range(min(24, len(data) - at), 0, -1) if data[at : at + n] in self._ids)
            ids.append(self._ids[data[at : at + size]])
            at += size
        return ids


def structure(seed: int) -> Structure:
    return Structure(kind="json", field="schema", schema=random_schema(seed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocab", type=int, default=129_280)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--documents", type=int, default=1000)
    options = parser.parse_args()
    documents = dict(said(options.documents))
    whole = {seed: text for seed, (text, reason) in documents.items() if reason == "stop"}
    wrong = [seed for seed, text in whole.items() if not validates(text, seed)]
    cut = sum(reason == "length" for _, reason in documents.values())
    drawn = Drawn(options.vocab)
    begun = time.perf_counter()
    vocabulary = Vocabulary(drawn, options.vocab)  # type: ignore[arg-type]
    made = time.perf_counter() - begun
    compiled, masks, guesses = [], [], []
    for seed in range(options.schemas):
        begun = time.perf_counter()
        grammar = Compiled(of_structure(structure(seed)), vocabulary)
        compiled.append(time.perf_counter() - begun)
        constraint = grammar.constraint()
        ids = drawn.encode(whole.get(seed, "{"))
        for at, token in enumerate(ids):
            begun = time.perf_counter()
            constraint.allowed(())
            masks.append(time.perf_counter() - begun)
            if at % 4 == 0:
                begun = time.perf_counter()
                constraint.allowed(ids[at : at + 3])
                guesses.append(time.perf_counter() - begun)
            constraint.accept([token])
    print(f"{options.vocab:,} tokens, made ready once in {made * 1000:.0f} ms; milliseconds")
    print("| what | times | median | 99 % below | worst |\n|---|---|---|---|---|")
    for name, seconds in (
        ("compile a schema", compiled),
        ("a token's mask", masks),
        ("masks of a place and three guesses", guesses),
    ):
        worst = sorted(seconds)
        figures = (statistics.median(worst), worst[int(len(worst) * 0.99)], worst[-1])
        print(f"| {name} | {len(worst)} | " + " | ".join(f"{figure * 1000:.3f}" for figure in figures) + " |")
    valid = len(whole) - len(wrong)
    print(f"{len(documents)} random documents: {valid} valid, {cut} cut off, {len(documents) - valid - cut} failed")


def validates(text: str, seed: int) -> bool:
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(json.loads(text), random_schema(seed), format_checker=checker)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def said(count: int) -> Iterator[tuple[int, tuple[str, str]]]:
    """What a random model says under each schema, and why it ends."""
    tokenizer = tiny_tokenizer()
    core = EngineCore(FakeRunner(), tokenizer, EngineConfig(speculate="lookup", max_running=BATCH))
    vocabulary = Vocabulary(tokenizer, 320)
    for first in range(0, count, BATCH):
        texts = {str(seed): "" for seed in range(first, min(count, first + BATCH))}
        for id in texts:
            constraint = Compiled(of_structure(structure(int(id))), vocabulary).constraint()
            sampling = SamplingParams(max_tokens=LONGEST, seed=int(id))
            core.add(Request(id=id, prompt=(30, 31), sampling=sampling, constraint=constraint))
        while core.live:
            for id, delta in core.step():
                texts[id] += delta.text
                if delta.finish_reason is not None:
                    yield int(id), (texts[id], delta.finish_reason)


if __name__ == "__main__":
    main()
