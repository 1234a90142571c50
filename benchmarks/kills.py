"""A server killed at random moments under load: does the ledger agree with what its clients received?

    python benchmarks/kills.py                    # 200 kills, about ten minutes
    python benchmarks/kills.py --kills 5

Each round starts the real server on the same database, has clients stream answers, and kills it (SIGKILL) after a
random time. Then the ledger must add up; every answer that came to its end must have one row, of exactly its usage; and
every one that was cut off one row, of at least the tokens that had come. Ends with status 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
from accounts_server import AccountsServer, Heard

from deepwell.accounts import Row

CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-seconds", type=float, default=2.0, help="a kill comes within this time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = run(Path(folder), args.kills, args.seed, args.most_seconds)
    print(f"{args.kills} kills: {counts['whole']} answers were whole, {counts['cut']} were cut off, and of", end=" ")
    print(f"{counts['unheard']} requests nothing had come; {counts['rows']} rows;", end=" ")
    print(f"{counts['ahead']} tokens were billed that had not come yet")
    for fault in faults:
        print("FAULT", fault)
    sys.exit(bool(faults))


def run(folder: Path, kills: int, seed: int = 0, most_seconds: float = 2.0) -> tuple[Counter[str], list[str]]:
    """So many rounds; what was counted, and what was wrong."""
    server = AccountsServer(folder, ("ada", "bob"), "--threads", "1", "--max-running", "6")
    source = random.Random(seed)
    heard: list[Heard] = []
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for _ in range(kills):
        server.start()
        heard += asyncio.run(_round(server, source, source.uniform(0, most_seconds)))
        counts, faults = reconciled(heard, server.audited())
        if faults:
            break
    return counts, faults


async def _round(server: AccountsServer, source: random.Random, seconds: float) -> list[Heard]:
    """Clients ask, one request after another, until the server is killed."""
    heard: list[Heard] = []
    gone = asyncio.Event()

    async def client(name: str, seed: int) -> None:
        mine = random.Random(seed)
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as http:
            while not gone.is_set():
                heard.append(Heard())
                await heard[-1].listen(http, _body(mine), server.headers(name))
                if heard[-1].status is None:
                    return

    tasks = [asyncio.create_task(client("ada" if n % 3 else "bob", source.getrandbits(32))) for n in range(CLIENTS)]
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.kill)
    gone.set()
    await asyncio.gather(*tasks)
    return heard


def _body(source: random.Random) -> dict[str, object]:
    shared = "import os\n" * source.choice((1, 40))
    return {
        "prompt": shared + f"def number_{source.randint(0, 99)}(",
        "max_tokens": source.randint(1, 80),
        "stream": True,
        "logprobs": 0,
        "ignore_eos": source.random() < 0.8,
    }


def reconciled(heard: list[Heard], rows: dict[str, Row]) -> tuple[Counter[str], list[str]]:
    """What clients heard against what the ledger says; what was counted, and what is wrong."""
    counts, faults = Counter[str](rows=len(rows)), []
    for answer in heard:
        if answer.id is None:
            counts["unheard"] += 1
            continue
        row = rows.get(answer.id)
        if row is None:
            faults.append(f"{answer.id} has no row, and {answer.tokens} tokens came")
            continue
        said = (row.hit, row.miss, row.output)
        if answer.usage is None:
            counts["cut"] += 1
            counts["ahead"] += row.output - answer.tokens
            if row.output < answer.tokens:
                faults.append(f"{answer.id} is billed {row.output} tokens, and {answer.tokens} came")
            continue
        counts["whole"] += 1
        usage = answer.usage
        told = (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"], usage["completion_tokens"])
        if said != told:
            faults.append(f"{answer.id} is billed {said}, and its client was told {told}")
    if len(rows) > len(heard):
        faults.append(f"{len(rows)} rows, and {len(heard)} requests")
    return counts, faults


if __name__ == "__main__":
    main()
