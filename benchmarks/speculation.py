"""What guessing ahead gives: tokens per second and accepted guesses of the embedded model, by way of guessing.

    python benchmarks/speculation.py          # about a minute

Greedy answers to a prompt that repeats itself and to plain ones, one stream and eight, medians of three rounds in which
the ways take turns. Every answer is compared with the one without speculation. Prints a Markdown table.
"""

from __future__ import annotations

import time
from statistics import median

from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.loading.load import LoadedModel, load_model
from deepwell.options import Speculate

WAYS: list[tuple[Speculate, int]] = [("off", 1), ("lookup", 3), ("mtp", 1), ("mtp", 3), ("auto", 3)]
ROUNDS, TOKENS = 3, 256
REPETITIVE = "".join(
    f"    def get_{name}(self):\n        return self.{name}\n\n" for name in ("left", "right", "value")
)
PLAIN = (
    "import os\nimport sys\n\n\ndef main(",
    "class Reader:\n    def __init__(self, stream):\n",
    "def parse(text):\n    if not text:\n",
    "try:\n    import ssl\nexcept ImportError:\n",
    "def test_close(self):\n        ",
    "async def read(self, n=-1):\n",
    "for name, value in sorted(",
    "raise ValueError(",
)

Answers = list[tuple[int, ...]]


def main() -> None:
    model = load_model(speculate="auto")
    print("| text | temperature | streams | speculate | draft tokens | tokens/s | guesses accepted |")
    print("|---|---|---|---|---|---|---|")
    for name, prompts in (("repetitive", [REPETITIVE] * 8), ("plain", list(PLAIN))):
        for temperature in (0.0, 0.8):
            for streams in (1, 8):
                compare(model, name, prompts[:streams], temperature)


def compare(model: LoadedModel, name: str, texts: list[str], temperature: float) -> None:
    prompts = [tuple(model.tokenizer.encode(text)) for text in texts]
    cores = [EngineCore(model.runner, model.tokenizer, EngineConfig(speculate=m, draft_tokens=n)) for m, n in WAYS]
    rates: list[list[float]] = [[] for _ in WAYS]
    for _ in range(ROUNDS):
        answers = []
        for core, found in zip(cores, rates, strict=True):
            said, seconds = timed(core, prompts, temperature)
            answers.append(said)
            found.append(len(prompts) * TOKENS / seconds)
        assert all(said == answers[0] for said in answers), "speculation changed an answer"
    for (mode, tokens), core, found in zip(WAYS, cores, rates, strict=True):
        stats = core.stats()
        drafted, accepted = sum(stats.drafted.values()), sum(stats.accepted.values())
        share = f"{accepted / drafted:.0%}" if drafted else "-"
        print(f"| {name} | {temperature} | {len(prompts)} | {mode} | {tokens} | {median(found):,.0f} | {share} |")


def timed(core: EngineCore, prompts: list[tuple[int, ...]], temperature: float) -> tuple[Answers, float]:
    """The answers and the seconds they took together, prompts included."""
    said: dict[str, tuple[int, ...]] = {}
    began = time.perf_counter()
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=index, ignore_eos=True)
        core.add(Request(id=str(index), prompt=prompt, sampling=sampling))
        said[str(index)] = ()
    while core.live:
        for id, delta in core.step():
            said[id] += delta.token_ids
    return list(said.values()), time.perf_counter() - began


if __name__ == "__main__":
    main()
