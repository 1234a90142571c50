"""The administrator's desk: who may see the accounts, and how what goes wrong there is said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deepwell.accounts import Caller, Keys, Ledger, Platform
from deepwell.accounts.books import Books
from deepwell.accounts.rolls import Rolls
from deepwell.errors import BadKey, DeepwellError, Forbidden, LedgerDown, NotFound, RequestError
from deepwell.server.callers import caller_of
from deepwell.server.energy import Energy
from deepwell.server.errors import JsonResponse

Handler = Callable[..., object]


class Desk:
    """What an administrator works with: the accounts of a server and its energy."""

    def __init__(self, platform: Platform, energy: Energy | None = None) -> None:
        self.platform = platform
        self.energy = energy or Energy()
        self.keys = Keys(platform.database, platform.clock, platform.prices.welcome)
        self.ledger = Ledger(platform.database)
        self.books = Books(platform.database)
        self.rolls = Rolls(platform.database)

    @property
    def now(self) -> int:
        """In microseconds (UTC)."""
        return self.platform.clock.now()


def endpoint(
    handler: Handler, body: type[msgspec.Struct] | None = None, *, open_without_keys: bool = False
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for keys of the role admin; while no key exists for nobody, or for everybody.

    `handler` runs in a thread, for it reads the database, with the request, the desk, and what was sent if a `body` is.
    """

    async def answer(request: Request) -> Response:
        desk: Desk | None = request.app.state.desk
        if desk is None:
            raise NotFound("this server keeps no accounts")
        _check(caller_of(request), open_without_keys)
        sent = [await request.app.state.service.bodies.read(request, body)] if body else []
        try:
            content = await run_in_threadpool(handler, request, desk, *sent)
        except (LedgerDown, RequestError):
            raise
        except DeepwellError as error:  # what accounts have to say of a name, an amount or an id
            raise RequestError(str(error)) from None
        # Answers hold secrets and sums: no cache may keep them.
        return JsonResponse(content, headers={"Cache-Control": "no-store"})

    return answer


def _check(caller: Caller | None, open_without_keys: bool) -> None:
    if caller is None or caller.anonymous:
        if not open_without_keys:
            raise BadKey("this needs an administrator's key; `deepwell keys add NAME --role admin` makes the first one")
    elif caller.role != "admin":
        raise Forbidden("this needs the key of an administrator, and this key's role is user")
