"""How long from typing `deepwell serve` to an answer, and how much memory that takes.

    python benchmarks/startup.py [MODEL_FOLDER] [--rounds 5]

Starts a server of its own on a free loopback port, waits until /health answers, asks for 16 tokens, reads the resident
memory, stops the server; prints the median and the worst round.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="Time from `deepwell serve` to the first answer.")
    parser.add_argument("model", nargs="?", help="model folder; the embedded model if left out")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rounds = [measure(args.model) for _ in range(args.rounds)]
    for name, unit in (("ready", "s"), ("answered", "s"), ("resident", "MB"), ("peak", "MB")):
        values = [r[name] for r in rounds]
        print(f"{name:9} median {statistics.median(values):7.2f} {unit}   worst {max(values):7.2f} {unit}")


def measure(model: str | None) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("deepwell")),
        "serve",
        *([model] if model else []),
        "--port",
        str(port),
    ]
    begun = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until_healthy(f"http://127.0.0.1:{port}/health", server)
        ready = time.perf_counter() - begun
        body = json.dumps({"model": served(port), "prompt": "import os", "max_tokens": 16}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()
        answered = time.perf_counter() - begun
        status = Path(f"/proc/{server.pid}/status").read_text()
        resident, peak = (int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) / 1000 for key in ("VmRSS", "VmHWM"))
        return {"ready": ready, "answered": answered, "resident": resident, "peak": peak}
    finally:
        server.terminate()
        server.wait(30)


def until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit(f"the server ended with {server.returncode}") from None
            time.sleep(0.01)


def served(port: int) -> str:
    listed = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read())
    return str(listed["data"][0]["id"])


if __name__ == "__main__":
    main()
