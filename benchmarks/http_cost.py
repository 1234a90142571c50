"""What HTTP costs: tokens a second of 64 streams through the server, against the engine alone.

    python benchmarks/http_cost.py [MODEL]        # half a minute with the embedded model

Both run in turns in this process, with the same requests. Prints the medians of the rounds, and their ratio in time and
in processor time of this process: what HTTP adds to each token, which others on the machine disturb less.

The clients of the server are one process of their own that shares the processors: use --threads to leave one. So that
the server is measured and not they, they read what has come a hundred times a second, count events, and parse nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import selectors
import socket
import threading
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple
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
    alone: list[Cost] = []
    served: list[Cost] = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        through_http(model, pool, args.streams, 8)  # not counted: weights and cache are touched for the first time
        for _ in range(args.rounds):
            alone.append(asyncio.run(engine_alone(model, args.streams, args.tokens)))
            served.append(through_http(model, pool, args.streams, args.tokens))
    tokens = args.streams * args.tokens
    before, after = (tokens / median(cost.seconds for cost in costs) for costs in (alone, served))
    print(f"engine alone {before:,.0f} tokens/s; through HTTP {after:,.0f}; {100 * after / before:.1f} %")
    before, after = (1e6 * median(cost.processor for cost in costs) / tokens for costs in (alone, served))
    print(f"processor time of a token: {before:.1f} us alone, {after:.1f} us served; HTTP adds {after - before:.1f}")


class Cost(NamedTuple):
    """Seconds until all were answered, and those of processors that this process used meanwhile."""

    seconds: float
    processor: float


def prompt_of(number: int) -> list[int]:
    return [20 + (7 * place + number) % 200 for place in range(16)]


async def engine_alone(model: LoadedModel, streams: int, tokens: int) -> Cost:
    engine = AsyncEngine(model.runner, model.tokenizer, EngineConfig(max_running=streams))
    engine.start()
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    async def answer(number: int) -> None:
        async for _ in engine.submit(Request(id=str(number), prompt=tuple(prompt_of(number)), sampling=sampling)):
            pass

    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(answer, range(streams)))
    cost = Cost(time.perf_counter() - begun, time.process_time() - used)
    await engine.stop()
    return cost


def through_http(model: LoadedModel, pool: multiprocessing.pool.Pool, streams: int, tokens: int) -> Cost:
    service = service_of(model, ServeOptions(max_running=streams, speculate="off"))
    ready = threading.Event()
    server = Server(service, listen(port=0), lambda _: ready.set(), Site(log="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    ready.wait()
    used = time.process_time()
    seconds: float = pool.apply(clients, (server.address, streams, tokens))
    cost = Cost(seconds, time.process_time() - used)
    server.should_exit = True
    thread.join()
    return cost


def clients(address: str, streams: int, tokens: int) -> float:
    """Ask for all at once, and read to the end; the seconds it took."""
    parts = urlsplit(address)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    asked = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    selector = selectors.DefaultSelector()
    begun = time.perf_counter()
    for number in range(streams):
        body = json.dumps({**asked, "prompt": prompt_of(number)}).encode()
        client = socket.create_connection((parts.hostname, parts.port))
        client.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        selector.register(client, selectors.EVENT_READ, (client, bytearray()))
    while selector.get_map():
        for key, _ in selector.select():
            client, answer = key.data
            answer += (piece := client.recv(1 << 20))
            if not piece:
                selector.unregister(client)
                client.close()
                check(answer, tokens)
        time.sleep(0.01)
    return time.perf_counter() - begun


def check(answer: bytes, tokens: int) -> None:
    """Exit unless all tokens came, in about as many events: a token may complete no character."""
    if b'"completion_tokens":%d' % tokens not in answer or not tokens / 4 < answer.count(b"data: ") <= tokens + 2:
        raise SystemExit(f"the server answered {bytes(answer[-300:])!r}")


if __name__ == "__main__":
    main()
