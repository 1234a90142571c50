"""A server process for tests: prints its address, then answers "a" for ever, 20 ms per token.

With `--base` its model was not trained to chat; with `--patient` answers may go on for a minute when it is stopped;
with `--database PATH` it keeps accounts there: a million tokens cost a dollar, and an hour two.
"""

import sys

from serving import endless, make_service

from deepwell.accounts import Platform, Prices, open_database
from deepwell.accounts.money import MICRO, Price
from deepwell.accounts.prices import Rate
from deepwell.server import Site, listen, serve
from fakes import FakeRunner

if __name__ == "__main__":
    chats = "--base" not in sys.argv
    drain = 60.0 if "--patient" in sys.argv else 0.5
    runner = FakeRunner(context=4096, next_token=endless, delay=0.02)
    service = make_service(runner, chats=chats, drain_seconds=drain)
    if "--database" in sys.argv:
        prices = Prices(rates={"*": Rate(Price(MICRO, MICRO, MICRO))}, hourly_cost=2 * MICRO)
        service.platform = Platform(open_database(sys.argv[sys.argv.index("--database") + 1]), prices)
    serve(service, listen(port=0), lambda address: print(address, flush=True), Site(log="none"))
