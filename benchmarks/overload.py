"""Two thousand clients against a queue of 64: is each request answered or refused in bounded time, and nothing lost?

    python benchmarks/overload.py                 # 60 seconds
    python benchmarks/overload.py --model model.gguf --clients 500 --seconds 10

Clients ask as fast as they are answered, and wait as long as a refusal says (Retry-After), in processes of their own
beside the real server. A time is all of a request: connecting, asking, the last byte of the answer. Printed: answers,
refusals by status, their times (p50, p99, longest), the server's memory when all were connected and at its end, blocks
held and the state of the ledger afterwards. Ends with status 1 if a request got neither an answer nor a refusal, a
block was leaked, or the ledger does not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from accounts_server import AccountsServer

BODY = {"prompt": "import os\n", "max_tokens": 32, "ignore_eos": True}
LIMIT_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--accounts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="what is served; the embedded model if left out")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        names = [f"account {number}" for number in range(args.accounts)]
        room = ["--threads", str(args.threads), "--max-running", "32", "--max-waiting", "64"]
        server = AccountsServer(Path(folder), names, *room, *([args.model] if args.model else []))
        server.start()
        found = overloaded(server, names, args.clients, args.seconds)
        held = until_idle(server)
        server.stop()
        rows = server.audited()
    sys.exit(reported(found, held, len(rows)))


def overloaded(server: AccountsServer, names: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """What clients saw: seconds by status, and the server's memory in MiB after a fifth of the time and at the end."""
    times: dict[int, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        headers = [server.headers(name)["Authorization"] for name in names]
        work = [(server.address, headers, clients // 2, seconds)] * 2
        parts = pool.starmap_async(crowd, work)
        time.sleep(seconds / 5)
        memory = [megabytes(server.pid)]
        time.sleep(seconds * 0.75)
        memory.append(megabytes(server.pid))
        for part in parts.get(timeout=seconds + 2 * LIMIT_SECONDS):
            for status, found in part.items():
                times.setdefault(status, []).extend(found)
    return {"times": times, "memory": memory}


def crowd(address: str, keys: list[str], clients: int, seconds: float) -> dict[int, list[float]]:
    """Seconds that requests took, by status; 0 for those that got none."""
    return asyncio.run(_crowd(address, keys, clients, seconds))


async def _crowd(address: str, keys: list[str], clients: int, seconds: float) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {}
    end = time.perf_counter() + seconds

    async def client(key: str, delay: float) -> None:
        await asyncio.sleep(delay)
        while time.perf_counter() < end:
            begun = time.perf_counter()
            try:
                status, pause = await asyncio.wait_for(asked(address, key), LIMIT_SECONDS)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                status, pause = 0, 1.0
            times.setdefault(status, []).append(time.perf_counter() - begun)
            await asyncio.sleep(min(pause, max(0.0, end - time.perf_counter())))

    await asyncio.gather(*(client(keys[n % len(keys)], seconds / 10 * n / clients) for n in range(clients)))
    return times


async def asked(address: str, key: str) -> tuple[int, float]:
    """One request on a connection of its own, with no more of a client than that takes; its status, and the seconds to
    wait before the next."""
    parts = urlsplit(address)
    body = json.dumps(BODY).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: {key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(head.encode() + body)
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        pause = re.search(rb"(?i)\r\nretry-after: (\d+)\r\n", await reader.read())
        return status, float(pause[1]) if pause else 0.0
    finally:
        writer.close()


def megabytes(pid: int) -> float:
    """Memory that a process holds, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def until_idle(server: AccountsServer) -> int:
    """Blocks that are held when nothing runs any more."""
    for _ in range(100):
        page = httpx.get(server.address + "/metrics", timeout=30).text
        lines = (line for line in page.splitlines() if line.startswith("deepwell:"))
        value = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
        if value["deepwell:num_requests_running"] == value["deepwell:num_requests_waiting"] == 0:
            break
        time.sleep(0.2)
    return int(value["deepwell:kv_blocks"] - value["deepwell:kv_blocks_free"])


def reported(found: dict[str, Any], held: int, rows: int) -> int:
    """Print it; 1 if something was lost."""
    counts = Counter({status: len(times) for status, times in found["times"].items()})
    print("| status | requests | p50 (ms) | p99 (ms) | longest (ms) |")
    print("|---|---|---|---|---|")
    for status, times in sorted(found["times"].items()):
        ordered = sorted(times)
        middle, late, last = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1.0))
        print(f"| {status or 'none'} | {len(times)} | {middle:,.1f} | {late:,.1f} | {last:,.1f} |")
    before, after = found["memory"]
    print(f"memory of the server: {before:,.1f} MiB, then {after:,.1f} MiB; blocks held at the end: {held}")
    print(f"the ledger adds up: {rows} rows for {counts[200]} answers")
    return int(counts[0] > 0 or held > 0 or rows != counts[200])


if __name__ == "__main__":
    main()
