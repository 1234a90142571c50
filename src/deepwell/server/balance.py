"""GET /user/balance: what an account has left, in DeepSeek's words. Amounts are texts."""

from __future__ import annotations

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deepwell.accounts.money import units
from deepwell.server.callers import caller_of
from deepwell.server.errors import JsonResponse
from deepwell.server.service import Service


class BalanceInfo(msgspec.Struct, frozen=True):
    """What there is of one currency; granted money is spent first."""

    currency: str
    total_balance: str
    granted_balance: str
    topped_up_balance: str


class UserBalance(msgspec.Struct, frozen=True):
    """Whether the account can ask for more, and what it has."""

    is_available: bool
    balance_infos: list[BalanceInfo]


async def balance(request: Request) -> Response:
    """The caller's balance. Who needs no key, owes nothing, and has no currency either."""
    service: Service = request.app.state.service
    caller = caller_of(request)
    if service.platform is None or caller is None or caller.anonymous:
        return JsonResponse(UserBalance(True, []))
    found = await run_in_threadpool(service.platform.balance, caller.account)
    infos = [BalanceInfo(one.currency, units(one.total), units(one.granted), units(one.topped_up)) for one in found]
    is_available = service.platform.is_free(service.model) or any(one.total > 0 for one in found)
    return JsonResponse(UserBalance(is_available, infos))
