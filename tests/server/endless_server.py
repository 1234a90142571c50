"""A server process for tests of signals: prints its address, then answers "a" for ever, 20 ms per token."""

from serving import endless, make_service

from deepwell.server import serve
from fakes import FakeRunner

if __name__ == "__main__":
    service = make_service(FakeRunner(context=4096, next_token=endless, delay=0.02))
    serve(service, port=0, on_ready=lambda address: print(address, flush=True))
