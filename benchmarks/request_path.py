"""How much of the code one chat request runs through: Python files and functions of Deepwell, counted by a profiler.

    python benchmarks/request_path.py             # seconds; --list names them

The embedded model is served on loopback in this process, and one streamed request of two messages is asked twice: the
second time, when everything that is made once has been made, every call in every thread is noted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import deepwell

ROOT = Path(deepwell.__file__).parent


class Counter:
    """Notes the functions of Deepwell that are called while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.found: set[tuple[str, str, int]] = set()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self.on and event == "call":
            code = frame.f_code
            file = code.co_filename
            if file.startswith(f"{ROOT}/") and not code.co_name.startswith("<"):
                self.found.add((file[len(f"{ROOT}/") :], code.co_name, code.co_firstlineno))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every file and function")
    args = parser.parse_args()
    counter = Counter()
    threading.setprofile(counter)  # for threads that begin from here on
    port = serve()
    ask(port)
    counter.on = True
    ask(port)
    counter.on = False
    files = sorted({file for file, _, _ in counter.found})
    print(f"a chat request runs through {len(files)} Python files and {len(counter.found)} functions")
    for file in files if args.list else ():
        names = sorted(name for at, name, _ in counter.found if at == file)
        print(f"  {file}: {', '.join(names)}")


def serve() -> int:
    """Serve the embedded model from a thread of its own; the port."""
    from deepwell.cli import serve as command
    from deepwell.options import ServeOptions

    ready, found = threading.Event(), []

    def welcome(address: str, *args: object) -> str:
        found.append(int(address.rpartition(":")[2]))
        ready.set()
        return ""

    command.welcome = welcome  # type: ignore[assignment]
    options = ServeOptions(port=0, speculate="off", threads=1)
    threading.Thread(target=command.run, args=(options,), daemon=True).start()
    if not ready.wait(60):
        sys.exit("the server did not start within a minute")
    return found[0]


def ask(port: int) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
    body = {
        "model": "deepwell",
        "messages": messages,
        "max_tokens": 8,
        "stream": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    if not answer.endswith(b"data: [DONE]\n\n"):
        sys.exit(f"the server answered {answer!r}")
    connection.close()


if __name__ == "__main__":
    main()
