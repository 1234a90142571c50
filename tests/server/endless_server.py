"""A server process for tests: prints its address, then answers "a" for ever, 20 ms per token.

With `--base` its model was not trained to chat.
"""

import sys

from serving import endless, make_service

from deepwell.server import Site, listen, serve
from fakes import FakeRunner

if __name__ == "__main__":
    chats = "--base" not in sys.argv
    service = make_service(FakeRunner(context=4096, next_token=endless, delay=0.02), chats=chats)
    serve(service, listen(port=0), lambda address: print(address, flush=True), Site(log="none"))
