"""How long a running stream waits when a long prompt comes: with and without a token budget in seconds.

    python benchmarks/waiting.py MODEL            # a minute or more, by the model

One stream writes; after 20 tokens a prompt of 2,000 tokens comes. Prints, for --step-ms 0 and the default, the longest
and the median pause of the stream while the prompt is read, and the time to its first token: medians of the rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

from deepwell.engine import EngineConfig, EngineCore, Request, SamplingParams
from deepwell.loading.load import LoadedModel, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model, threads=args.threads, context=4096 if args.model else 0)
    length = min(args.prompt_tokens, model.runner.context - 600)
    print("| step_ms | longest pause (ms) | median pause (ms) | first token of the long prompt (s) |")
    print("|---|---|---|---|")
    for step_ms in (0.0, EngineConfig().step_ms):
        rounds = [waited(model, step_ms, length, number) for number in range(args.rounds)]
        longest, middle, first = (median(values) for values in zip(*rounds, strict=True))
        print(f"| {step_ms:g} | {longest * 1000:,.0f} | {middle * 1000:,.0f} | {first:.2f} |", flush=True)


def waited(model: LoadedModel, step_ms: float, length: int, number: int) -> tuple[float, float, float]:
    """Seconds: the stream's longest and median pause while the prompt was read, and until the prompt's first token."""
    core = EngineCore(model.runner, model.tokenizer, EngineConfig(step_ms=step_ms))
    core.add(request(model, "stream", 16, 10_000, number))
    for _ in range(21):
        core.step()
    begun = last = time.perf_counter()
    core.add(request(model, "long", length, 8, number))
    pauses = []
    while True:
        ids = {id for id, _ in core.step()}
        now = time.perf_counter()
        if "stream" in ids:
            pauses.append(now - last)
            last = now
        if "long" in ids:
            break
    for id in list(core.live):
        core.abort(id)
    return max(pauses), median(pauses), now - begun


def request(model: LoadedModel, id: str, length: int, answer: int, number: int) -> Request:
    prompt = tuple((17 * place + 31 * number) % (model.config.vocab - 8) for place in range(1, length + 1))
    most = min(answer, model.runner.context - length)
    return Request(id=id, prompt=prompt, sampling=SamplingParams(max_tokens=most, temperature=0.0, ignore_eos=True))


if __name__ == "__main__":
    main()
