"""A server with accounts whose slow model says "a" as often as it may, to be killed in the middle of a batch.

python tests/server/batch_server.py FOLDER PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from serving import CONTEXT, endless, make_service  # noqa: E402

from deepwell.accounts import Platform, Prices, open_database  # noqa: E402
from deepwell.accounts.money import Price  # noqa: E402
from deepwell.server import Site, listen, serve  # noqa: E402
from fakes import FakeRunner  # noqa: E402


class Flat(Prices, frozen=True):
    """A dollar for a million tokens of any kind."""

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        return Price(1_000_000, 1_000_000, 1_000_000)


def main(folder: Path, port: int) -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=endless, delay=0.01))
    service.platform = Platform(open_database(str(folder / "accounts.sqlite")), Flat())
    serve(service, listen(port=port), lambda _: print("ready", flush=True), Site(data=folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
