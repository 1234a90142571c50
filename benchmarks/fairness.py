"""How much a greedy account slows a modest one down: a hundred requests at once beside one after the other.

    python benchmarks/fairness.py                 # a minute
    python benchmarks/fairness.py --seconds 5

The real server answers over HTTP. Printed for the modest one, alone and beside the greedy one: the time to its first
token and its tokens a second, medians of its requests; and how many tokens each account got.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
from accounts_server import AccountsServer, Heard

GREEDY_REQUESTS = 100
WORDS = "the quick brown fox jumps over the lazy dog and draws clear water from a deep well "


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each of the two parts takes")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        room = ["--threads", str(args.threads), "--max-running", "64", "--max-waiting", "128"]
        server = AccountsServer(Path(folder), ("greedy", "modest"), *room)
        server.start()
        print("| the modest account | first token (ms) | tokens per second | its tokens | the greedy one's |")
        print("|---|---|---|---|---|")
        for crowd in (0, GREEDY_REQUESTS):
            await part(server, crowd, args.seconds)
        server.stop()
        server.audited()


async def part(server: AccountsServer, crowd: int, seconds: float) -> None:
    """One after the other, beside `crowd` requests at once that never end."""
    end = time.perf_counter() + seconds
    async with httpx.AsyncClient(
        base_url=server.address, timeout=600, limits=httpx.Limits(max_connections=500)
    ) as http:
        greedy = [asyncio.create_task(repeated(http, server, number, end)) for number in range(crowd)]
        await asyncio.sleep(min(2.0, seconds / 4) if crowd else 0)
        firsts, rates, tokens = [], [], 0
        while time.perf_counter() < end:
            heard = Timed()
            await heard.listen(http, body(-len(firsts) - 1, 60), server.headers("modest"))
            firsts.append(heard.first)
            rates.append(heard.rate)
            tokens += heard.tokens
        others = sum(await asyncio.gather(*greedy))
    name = "beside a greedy one" if crowd else "alone"
    print(f"| {name} | {1000 * median(firsts):,.0f} | {median(rates):,.1f} | {tokens} | {others} |", flush=True)


class Timed(Heard):
    """Times what is heard: seconds to the `first` token, and tokens per second after it."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.perf_counter()]

    def _hear(self, chunk: dict[str, object]) -> None:
        before = self.tokens
        super()._hear(chunk)
        if self.tokens > before:
            self.times.append(time.perf_counter())

    @property
    def first(self) -> float:
        return self.times[1] - self.times[0] if len(self.times) > 1 else float("inf")

    @property
    def rate(self) -> float:
        return (self.tokens - 1) / (self.times[-1] - self.times[1]) if len(self.times) > 2 else 0.0


async def repeated(http: httpx.AsyncClient, server: AccountsServer, number: int, end: float) -> int:
    """Ask again and again; the tokens that came."""
    tokens = asked = 0
    while time.perf_counter() < end:
        heard = Heard()
        await heard.listen(http, body(1000 * number + asked, 200), server.headers("greedy"))
        tokens, asked = tokens + heard.tokens, asked + 1
        if heard.status != 200:
            await asyncio.sleep(0.2)
    return tokens


def body(number: int, most: int) -> dict[str, object]:
    prompt = f"# {number}\n" + WORDS * 6
    return {"prompt": prompt, "max_tokens": most, "ignore_eos": True, "stream": True, "logprobs": 0}


if __name__ == "__main__":
    asyncio.run(main())
