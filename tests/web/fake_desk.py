"""Administrators' endpoints of the scripted server: a day of books from formulas, and keys and accounts in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

ADMIN, USER = "sk-admin", "sk-user"
HOSTILE = '<img src=x onerror="window.hacked = 1">\u202e\'; --'
"""The name of an account."""
LIMITS = {
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "concurrent": None,
    "budget": None,
    "budget_currency": "USD",
    "budget_period": "month",
}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass
class FakeDesk:
    """`required`: whether everything needs a key; `asked`: the queries of GETs; `sent`: the bodies of POSTs."""

    required: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    accounts: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)

    def reset(self) -> None:
        self.required = False
        for each in (self.asked, self.sent, self.keys, self.accounts, self.usage):
            each.clear()

    def refusal(self, request: Request, *, admin: bool) -> Response | None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key == ADMIN or (not admin and (key == USER or not self.required)):
            return None
        if key == USER:
            return refused(403, "this needs the key of an administrator, and this key's role is user")
        return refused(401, "an API key is needed" if not key else "there is no such API key")


class Endpoints:
    """What the pages ask."""

    def __init__(self, desk: FakeDesk) -> None:
        self.desk = desk

    async def books(self, request: Request) -> Response:
        query = dict(request.query_params)
        self.desk.asked.append(query)
        start, end = (datetime.fromisoformat(query[name]) for name in ("from", "until"))
        step = timedelta(hours=1) if query["by"] == "hour" else timedelta(days=1)
        data = [period(start + n * step, start + (n + 1) * step) for n in range(int((end - start) / step))]
        whole = period(start.replace(hour=8), end.replace(hour=8)) | {
            "input": 608_000_000_000,
            "hit": 342_000_000_000,
            "hit_rate": 0.5625,
        }
        return JSONResponse(
            {"object": "books", "by": query["by"], "currency": "USD", "hourly_cost": "3628.00", "total": whole,
             "data": data, "other_income": {"CNY": "12.50"}, "energy_note": "This machine does not report its energy."}
        )  # fmt: skip

    async def list_keys(self, request: Request) -> Response:
        return self.page(request, self.desk.keys)

    async def list_accounts(self, request: Request) -> Response:
        return self.page(request, self.desk.accounts)

    async def list_usage(self, request: Request) -> Response:
        self.desk.asked.append(dict(request.query_params))
        offset, limit = (int(request.query_params[name]) for name in ("offset", "limit"))
        found = self.desk.usage[offset:]
        return JSONResponse({"data": found[:limit], "has_more": len(found) > limit})

    async def add_key(self, request: Request) -> Response:
        body = await request.json()
        self.desk.sent.append(body)
        if body["name"] == "nobody":
            return refused(400, "an account's name cannot be 'nobody'")
        made = key(len(self.desk.keys) + 1, body["name"], role=body["role"], models=body["models"])
        self.desk.keys.append(made | {"limits": body["limits"]})
        return JSONResponse(made | {"key": "sk-shown-once-and-never-again"})

    async def change_key(self, request: Request) -> Response:
        body = await request.json()
        self.desk.sent.append(body)
        found = self.desk.keys[int(request.path_params["id"]) - 1]
        found.update(body)
        return JSONResponse(found)

    async def revoke_key(self, request: Request) -> Response:
        found = self.desk.keys[int(request.path_params["id"]) - 1]
        found["revoked"] = 1_767_268_800
        return JSONResponse(found)

    async def move(self, request: Request) -> Response:
        body = await request.json()
        self.desk.sent.append(body)
        found = self.desk.accounts[int(request.path_params["id"]) - 1]
        found["balances"] = [balance(body["amount"])]
        return JSONResponse(found)

    async def balance(self, request: Request) -> Response:
        if refusal := self.desk.refusal(request, admin=False):
            return refusal
        info = {"currency": "USD", "total_balance": "12.50", "granted_balance": "10.00", "topped_up_balance": "2.50"}
        return JSONResponse({"is_available": True, "balance_infos": [info]})

    def page(self, request: Request, entries: list[dict[str, Any]]) -> Response:
        query = dict(request.query_params)
        self.desk.asked.append(query)
        found = [one for one in entries if one["id"] > int(query["after"]) and query["name"] in one["name"]]
        limit = int(query["limit"])
        return JSONResponse({"object": "list", "data": found[:limit], "has_more": len(found) > limit})

    def routes(self, static: Any) -> list[Route]:
        def admin(handler: Handler) -> Handler:
            async def checked(request: Request) -> Response:
                return self.desk.refusal(request, admin=True) or await handler(request)

            return checked

        def file(name: str) -> Handler:
            async def answer(_: Request) -> Response:
                return FileResponse(static / name)

            return answer

        return [
            Route("/books", file("books.html")),
            Route("/admin", file("admin.html")),
            Route("/admin/books", admin(self.books)),
            Route("/admin/usage", admin(self.list_usage)),
            Route("/admin/keys", admin(self.list_keys)),
            Route("/admin/keys", admin(self.add_key), methods=["POST"]),
            Route("/admin/keys/{id}", admin(self.change_key), methods=["POST"]),
            Route("/admin/keys/{id}/revoke", admin(self.revoke_key), methods=["POST"]),
            Route("/admin/accounts", admin(self.list_accounts)),
            Route("/admin/accounts/{id}/movements", admin(self.move), methods=["POST"]),
            Route("/user/balance", self.balance),
        ]


def period(start: datetime, end: datetime) -> dict[str, Any]:
    """A busy server's hour: quiet at night, with an idle hour at three."""
    hours = (end - start) / timedelta(hours=1)
    day = 0.0 if start.hour == 3 and hours == 1 else 1.2 + math.sin((start.hour - 8) / 24 * 2 * math.pi)
    hit, miss, output = (int(n * day * hours) for n in (14.2e9, 11.1e9, 7e9))
    income = hit * 0.14e-6 + miss * 0.55e-6 + output * 2.19e-6
    cost = 3628 * hours
    first, whole = (
        {f"p{n}": base * f * (0.7 + day / 2) for n, f in ((50, 1), (90, 2.1), (99, 4.6))} for base in (600, 9000)
    )
    asked, answered = hit + miss, bool(hit)
    return {
        "start": iso(start), "end": iso(end), "requests": int(5e6 * day * hours), "interrupted": 0,
        "input": asked, "hit": hit, "miss": miss, "output": output, "reasoning": 0,
        "hit_rate": hit / asked if answered else None,
        "first_ms": first if answered else None, "whole_ms": whole if answered else None,
        "answer_speed": 26 - 4 * day if answered else None,
        "input_speed": asked / 3600 / hours, "output_speed": output / 3600 / hours, "energy_wh": None,
        "income": f"{income:.2f}", "cost": f"{cost:.2f}", "margin": f"{income - cost:.2f}",
        "margin_rate": (income - cost) / cost,
    }  # fmt: skip


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key(id: int, name: str, **fields: Any) -> dict[str, Any]:
    plain = {"account": id, "prefix": f"sk-abc{id:03}", "role": "user", "models": None, "created": 1_767_268_800}
    return {"id": id, "name": name, **plain, "expires": None, "revoked": None, "limits": LIMITS, **fields}


def account(id: int, name: str, *balances: dict[str, str]) -> dict[str, Any]:
    return {"id": id, "name": name, "created": 1_767_268_800, "keys": 1, "balances": list(balances)}


def balance(amount: str) -> dict[str, str]:
    return {"currency": "USD", "total": amount, "granted": amount, "topped_up": "0.00"}


def refused(status: int, message: str) -> Response:
    error = {"message": message, "type": "authentication_error", "param": None, "code": "authentication_error"}
    return JSONResponse({"error": error}, status)
