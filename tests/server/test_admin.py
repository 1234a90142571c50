"""Administrators' endpoints: who gets in, what they see and change, and the books."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from httpx import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import make_service
from starlette.testclient import TestClient

from deepwell.accounts import Clock, Ledger, Platform, Row, open_database
from deepwell.accounts.prices import Prices, Welcome
from deepwell.server import Service, Site, create_app
from deepwell.server.desk import Desk
from deepwell.server.energy import Energy

HOUR = 3600 * 10**6
NOON = 1_767_268_800 * 10**6
"""2026-01-01, 12:00 UTC"""
NOW = NOON + HOUR // 2


ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["USD", "grant", "adjustment", "admin", "1e999999999", "-0.0000001", "0x10", "NaN", "1" * 40, "\0"]
    ),
    st.lists(st.text(max_size=5), max_size=3),
)
BODY = ("name", "role", "models", "expires", "limits", "kind", "amount", "currency", "note")
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent", "budget", "budget_currency", "budget_period")


def odd(*names: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={**dict.fromkeys(names, ODD), **more})


def send(client: TestClient, path: str, body: dict[str, Any]) -> Response:
    return client.post(f"/admin/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})


def row(id: str, started: int, *, key: int = 1, **fields: Any) -> Row:
    plain: dict[str, Any] = {
        "account": 1, "model": "m", "kind": "chat", "ended": started + 10, "first_us": 100_000, "whole_us": 1_100_000,
        "hit": 64, "miss": 36, "output": 20, "reasoning": 0, "reason": "stop", "price_hit": 0, "price_miss": 0,
        "price_output": 0, "currency": "USD", "cost": 1_500_000,
    }  # fmt: skip
    return Row(id=id, key=key, started=started, **{**plain, **fields})


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    database = open_database(str(tmp_path / "accounts.sqlite"))
    platform = Platform(database, Prices(hourly_cost=2_000_000), clock=Clock(now=lambda: NOW))
    yield platform
    platform.close()
    database.close()


@pytest.fixture
def desk(platform: Platform, tmp_path: Path) -> Desk:
    return Desk(platform, Energy(tmp_path))


@pytest.fixture
def service(platform: Platform) -> Service:
    service = make_service()
    service.platform = platform
    return service


@pytest.fixture
def client(service: Service, desk: Desk) -> Iterator[TestClient]:
    with TestClient(create_app(service, desk=desk)) as client:
        yield client


@pytest.fixture
def admin(desk: Desk, client: TestClient) -> TestClient:
    secret, _ = desk.keys.add("chief", role="admin")
    client.headers["Authorization"] = f"Bearer {secret}"
    return client


def test_without_a_key_nobody_gets_in(client: TestClient, desk: Desk) -> None:
    refused = client.get("/admin/keys")
    assert refused.status_code == 401
    assert "deepwell keys add" in refused.json()["error"]["message"]
    desk.keys.add("chief", role="admin")
    for path in ("/admin/keys", "/admin/accounts"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer sk-wrong"}).status_code == 401


def test_a_users_key_is_not_enough(client: TestClient, desk: Desk) -> None:
    secret, _ = desk.keys.add("user")
    for method, path in (("GET", "keys"), ("POST", "keys"), ("GET", "accounts"), ("GET", "books"), ("GET", "usage")):
        answer = client.request(method, f"/admin/{path}", headers={"x-api-key": secret}, json={})
        assert answer.status_code == 403, path
        assert answer.json()["error"]["type"] == "permission_error"


def test_the_books_of_a_machine_without_keys_are_open_to_it(client: TestClient) -> None:
    assert client.get("/admin/books").status_code == 200
    assert client.get("/admin/usage").json() == {"data": [], "has_more": False, "object": "list"}


def test_the_pages_are_there_to_be_given_a_key(service: Service, desk: Desk) -> None:
    desk.keys.add("chief", role="admin")
    with TestClient(create_app(service, Site(base_path="/deep/er"))) as client:
        for path in ("", "index.html", "books", "admin"):
            for base in ("/", "/deep/er/"):
                page = client.get(base + path)
                assert page.status_code == 200, base + path
                assert "default-src 'self'" in page.headers["content-security-policy"]
        assert client.get("/deep/er/admin/keys").status_code == 401
        assert client.get("/admin/", follow_redirects=False).status_code != 200


def test_an_account_made_here_is_welcomed(platform: Platform, service: Service) -> None:
    platform.prices = Prices(welcome=Welcome(5_000_000, "USD", None))
    desk = Desk(platform)
    secret, _ = desk.keys.add("chief", role="admin")
    with TestClient(create_app(service, desk=desk), headers={"x-api-key": secret}) as client:
        client.post("/admin/keys", json={"name": "newcomer"})
        found = client.get("/admin/accounts", params={"name": "newcomer"}).json()["data"][0]
    assert found["balances"][0]["granted"] == "5.00"


def test_a_server_without_accounts_says_so() -> None:
    with TestClient(create_app(make_service())) as client:
        answer = client.get("/admin/keys")
        assert answer.status_code == 404
        assert "keeps no accounts" in answer.json()["error"]["message"]


def test_a_key_is_shown_once_limited_and_revoked(admin: TestClient, platform: Platform) -> None:
    limits = {"requests_per_minute": 3, "budget": "12.5", "budget_currency": "EUR"}
    made = admin.post("/admin/keys", json={"name": "<b>Eve</b>", "models": ["m"], "expires": 10**10, "limits": limits})
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    card = made.json()
    secret = card.pop("key")
    assert platform.caller(secret).name == "<b>Eve</b>"
    assert card["limits"]["budget"] == "12.50"
    listed = admin.get("/admin/keys")
    assert secret not in listed.text
    assert listed.json()["data"][1] == card
    changed = admin.post(f"/admin/keys/{card['id']}", json={"models": None, "limits": {"concurrent": 2}}).json()
    assert changed["models"] is None
    assert changed["expires"] == 10**10
    assert changed["limits"]["concurrent"] == 2
    assert changed["limits"]["budget"] is None
    assert admin.post(f"/admin/keys/{card['id']}/revoke").json()["revoked"] == NOW // 10**6


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("keys", {"name": ""}, "1 to 200 printable"),
        ("keys", {"name": "a", "role": "king"}, "role"),
        ("keys", {"name": "a", "limits": {"concurrent": 0}}, "limits.concurrent"),
        ("keys", {"name": "a", "limits": {"budget": "-1"}}, "limits.budget must be from 0.00"),
        ("keys", {"name": "a", "limits": {"budget": "NaN"}}, "limits.budget must be a number"),
        ("keys/99", {"models": []}, "there is no key 99"),
        ("keys/99/revoke", {}, "there is no key 99"),
        ("keys/x", {}, "whole number"),
        ("keys/" + "9" * 30, {}, "whole number"),
        ("accounts/99/movements", {"kind": "grant", "amount": "1"}, "there is no account 99"),
        ("accounts/0/movements", {"kind": "grant", "amount": "1"}, "there is no account 0"),
        ("accounts/1/movements", {"kind": "grant", "amount": "-1"}, "must be above 0"),
        ("accounts/1/movements", {"kind": "top_up", "amount": "1", "expires": 10**10}, "only a grant may end"),
        ("accounts/1/movements", {"kind": "grant", "amount": "1", "note": "\0"}, "note must be printable"),
        ("accounts/1/movements", {"kind": "grant", "amount": "1", "currency": "USD\n"}, "currency"),
        ("accounts/1/movements", {"kind": "grant", "amount": "9" * 5000}, "amount must be"),
        ("accounts/1/movements", {"kind": "grant", "amount": "1", "expires": 2**53}, "expires"),
        ("keys", {"name": "a", "expires": 2**53}, "expires"),
        ("keys", {"name": "\ud800"}, ""),
        ("keys", {"name": "a", "models": ["m" * 201]}, "models"),
        ("accounts/1/movements", {"kind": "gift", "amount": "1"}, "kind"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(admin: TestClient, path: str, body: dict[str, Any], said: str) -> None:
    answer = send(admin, path, body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@given(
    path=st.sampled_from(["keys", "keys/2", "accounts/1/movements"]),
    body=odd(*BODY, limits=odd(*LIMITS) | ODD),
    asked=st.sampled_from(["keys", "accounts", "usage", "books"]),
    query=odd("after", "limit", "name", "by", "from", "until", "offset"),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_is_sent_breaks_the_server(
    admin: TestClient, path: str, body: dict[str, Any], asked: str, query: dict[str, Any]
) -> None:
    assert send(admin, path, body).status_code in (200, 400)
    for method in ("GET", "POST"):
        assert admin.request(method, f"/admin/{asked}?{urlencode(query, errors='replace')}").status_code in (
            200,
            400,
            405,
        )


def test_lists_come_in_pages(admin: TestClient, desk: Desk) -> None:
    for n in range(7):
        desk.keys.add(f"user {n % 4} 100%")
    first = admin.get("/admin/keys", params={"limit": 5}).json()
    assert [key["id"] for key in first["data"]] == [1, 2, 3, 4, 5]
    assert first["has_more"]
    second = admin.get("/admin/keys", params={"limit": 5, "after": 5}).json()
    assert [key["id"] for key in second["data"]] == [6, 7, 8]
    assert not second["has_more"]
    found = admin.get("/admin/accounts", params={"name": "2 100%"}).json()["data"]
    assert [(one["name"], one["keys"]) for one in found] == [("user 2 100%", 2)]
    for wrong in ({"limit": "0"}, {"after": "-1"}, {"after": "9" * 99}, {"name": "\0"}, {"name": "a" * 201}):
        assert admin.get("/admin/keys", params=wrong).status_code == 400, wrong


def test_money_comes_by_grants_and_top_ups(admin: TestClient) -> None:
    admin.post("/admin/accounts/1/movements", json={"kind": "grant", "amount": "10", "expires": 10**10, "note": "hi"})
    account = admin.post("/admin/accounts/1/movements", json={"kind": "top_up", "amount": "0.000001"}).json()
    assert account["balances"] == [
        {"currency": "USD", "total": "10.000001", "granted": "10.00", "topped_up": "0.000001"}
    ]
    assert admin.get("/admin/accounts").json()["data"] == [account]


def test_the_books_say_hour_by_hour_what_came_and_went(admin: TestClient, platform: Platform) -> None:
    rows = [row("a", NOON - HOUR), row("b", NOON - HOUR + 5, whole_us=2_100_000), row("c", NOON + 1, hit=0)]
    Ledger(platform.database).append([*rows, row("d", NOON + 2, currency="CNY", first_us=200_000)], NOW)
    answer = admin.get("/admin/books", params={"from": "2026-01-01T10:10Z"}).json()
    assert answer["currency"] == "USD"
    assert answer["other_income"] == {"CNY": "1.50"}
    assert [hour["start"][11:16] for hour in answer["data"]] == ["10:00", "11:00", "12:00"]
    idle, full, running = answer["data"]
    assert (idle["requests"], idle["cost"], idle["hit_rate"], idle["first_ms"]) == (0, "0.00", None, None)
    assert (full["input"], full["hit"], full["miss"], full["output"]) == (200, 128, 72, 40)
    assert full["hit_rate"] == 0.64
    assert full["whole_ms"] == {"p50": 1100.0, "p90": 2100.0, "p99": 2100.0}
    assert full["answer_speed"] == pytest.approx(40 / 3)
    assert (full["income"], full["cost"], full["margin"], full["margin_rate"]) == ("3.00", "2.00", "1.00", 0.5)
    assert (running["requests"], running["income"], running["cost"]) == (2, "1.50", "1.00")
    assert running["first_ms"]["p50"] == 200.0
    assert answer["total"]["requests"] == 4
    assert (answer["total"]["income"], answer["total"]["cost"]) == ("4.50", "3.00")
    assert answer["total"]["energy_wh"] is None
    assert "does not report" in answer["energy_note"]
    by_day = admin.get("/admin/books", params={"by": "day"}).json()
    assert len(by_day["data"]) == 30
    assert by_day["data"][-1]["requests"] == 4


@pytest.mark.parametrize(
    "asked",
    [
        {"by": "week"},
        {"from": "yesterday"},
        {"from": "2027-01-01"},
        {"from": "0"},
        {"until": "9" * 19},
        {"until": "9999-12-31T23:30Z"},
        {"from": "0001-01-01"},
    ],
)
def test_a_span_that_cannot_be_is_refused(admin: TestClient, asked: dict[str, str]) -> None:
    assert admin.get("/admin/books", params=asked).status_code == 400


def test_usage_is_summed_by_what_is_asked(admin: TestClient, platform: Platform) -> None:
    Ledger(platform.database).append([row("a", NOON), row("b", NOON + 1), row("c", NOON, model="n")], NOW)
    answer = admin.get("/admin/usage", params={"by": "key,model"}).json()
    assert [(one["key"], one["model"], one["requests"], one["cost"]) for one in answer["data"]] == [
        (1, "m", 2, "3.00"),
        (1, "n", 1, "1.50"),
    ]
    page = admin.get("/admin/usage", params={"by": "model", "limit": 1, "offset": 1}).json()
    assert [one["model"] for one in page["data"]] == ["n"]
    assert not page["has_more"]
    assert admin.get("/admin/usage", params={"by": "colour"}).status_code == 400


def test_the_running_hour_is_a_metric(admin: TestClient, platform: Platform) -> None:
    Ledger(platform.database).append([row("a", NOON)], NOW)
    text = admin.get("/metrics").text
    assert 'deepwell:hour_income{currency="USD",model_name="deepwell-test"} 1.5' in text
    assert 'deepwell:hour_margin{currency="USD",model_name="deepwell-test"} 0.5' in text
    assert 'deepwell:hour_first_token_seconds{model_name="deepwell-test",quantile="0.99"} 0.1' in text


def counter(folder: Path, value: int, name: str = "package-0") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text("10000000000\n")


def test_energy_is_counted_by_the_hour_past_the_counters_end(tmp_path: Path) -> None:
    moments = [3600.0]
    counter(tmp_path / "intel-rapl:0", 9_000_000_000)
    counter(tmp_path / "intel-rapl:0:0", 5, "core")
    counter(tmp_path / "intel-rapl:1", 5, "psys")
    energy = Energy(tmp_path, lambda: moments[-1])
    assert energy.why_not is None
    counter(tmp_path / "intel-rapl:0", 2_600_000_000)
    energy.sample()
    moments.append(7200.0)
    counter(tmp_path / "intel-rapl:0", 6_200_000_000)
    energy.sample()
    assert energy.microjoules == 7_200_000_000
    assert [energy.between(3600, 7200), energy.between(7200, 10800), energy.between(0, 3600)] == [1.0, 1.0, None]
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    energy.sample()
    assert energy.microjoules == 7_200_000_000
