"""A server process for tests: prints its address, then answers "a" for ever, 20 ms per token.

With `--base` its model was not trained to chat; with `--patient` answers may go on for a minute when it is stopped.
"""

import sys

from serving import endless, make_service

from deepwell.server import Site, listen, serve
from fakes import FakeRunner

if __name__ == "__main__":
    chats = "--base" not in sys.argv
    drain = 60.0 if "--patient" in sys.argv else 0.5
    runner = FakeRunner(context=4096, next_token=endless, delay=0.02)
    service = make_service(runner, chats=chats, drain_seconds=drain)
    serve(service, listen(port=0), lambda address: print(address, flush=True), Site(log="none"))
