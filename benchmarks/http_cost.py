"""What HTTP costs: tokens a second of 64 streams through the server, against the engine alone.

    python benchmarks/http_cost.py [MODEL]        # half a minute with the embedded model

Both run in turns in this process, with the same requests; clients of the server are a process of their own. Prints the
medians of the rounds and their ratio. The machine's processors are shared with the clients: use --threads to leave one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import threading
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from deepwell.cli.serve import service_of
from deepwell.engine import AsyncEngine, EngineConfig, Request, SamplingParams
from deepwell.loading.load import LoadedModel, load_model
from deepwell.options import ServeOptions
from deepwell.server import Server, Site, listen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model, threads=args.threads)
    alone, served = [], []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for _ in range(args.rounds):
            alone.append(args.streams * args.tokens / asyncio.run(engine_alone(model, args.streams, args.tokens)))
            served.append(args.streams * args.tokens / through_http(model, pool, args.streams, args.tokens))
    print(f"engine alone {median(alone):,.0f} tokens/s; through HTTP {median(served):,.0f} tokens/s;", end=" ")
    print(f"{100 * median(served) / median(alone):.1f} %")


def prompt_of(number: int) -> list[int]:
    return [20 + (7 * place + number) % 200 for place in range(16)]


async def engine_alone(model: LoadedModel, streams: int, tokens: int) -> float:
    """Seconds until all are answered."""
    engine = AsyncEngine(model.runner, model.tokenizer, EngineConfig(max_running=streams))
    engine.start()
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    async def answer(number: int) -> None:
        async for _ in engine.submit(Request(id=str(number), prompt=tuple(prompt_of(number)), sampling=sampling)):
            pass

    begun = time.perf_counter()
    await asyncio.gather(*map(answer, range(streams)))
    seconds = time.perf_counter() - begun
    await engine.stop()
    return seconds


def through_http(model: LoadedModel, pool: multiprocessing.pool.Pool, streams: int, tokens: int) -> float:
    """Seconds until all are answered."""
    service = service_of(model, ServeOptions(max_running=streams, speculate="off"))
    ready = threading.Event()
    server = Server(service, listen(port=0), lambda _: ready.set(), Site(log="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    ready.wait()
    seconds: float = pool.apply(clients, (server.address, streams, tokens))
    server.should_exit = True
    thread.join()
    return seconds


def clients(address: str, streams: int, tokens: int) -> float:
    """Ask for all at once, and read to the end; the seconds it took."""
    return asyncio.run(_clients(address, streams, tokens))


async def _clients(address: str, streams: int, tokens: int) -> float:
    parts = urlsplit(address)

    async def client(number: int) -> None:
        asked = {
            "prompt": prompt_of(number),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        body = json.dumps(asked).encode()
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read(-1)
        if b'"completion_tokens":%d' % tokens not in answer:
            raise SystemExit(f"the server answered {answer[-300:]!r}")
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*map(client, range(streams)))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
