"""Keys, limits and money at the door of a server: who may ask, what others are told, what the ledger says."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripting import Script
from serving import CONTEXT, MODEL, chat, client_of, endless, live, make_service, noted, prompt, says, wait_idle
from starlette.testclient import TestClient

from deepwell.accounts import Database, Keys, Ledger, Limits, Platform, Prices, Row, open_database
from deepwell.accounts.money import Price
from deepwell.errors import LedgerDown
from deepwell.server import Service, create_app
from fakes import FakeRunner
from toy_format import END_THINK, EOS, TOY, ids

CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"


class Flat(Prices):
    """One price for all: 1, 2 and 8 dollars per million tokens."""

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        return Price(1_000_000, 2_000_000, 8_000_000)


class House:
    """A server with accounts, and its books."""

    def __init__(self, database: Database, runner: FakeRunner | None = None, prices: Prices | None = None, **how: Any):
        patience, isolate = how.pop("patience", 5.0), how.pop("isolate", False)
        self.database = database
        self.platform = Platform(database, prices, patience=patience, isolate=isolate)
        self.service: Service = make_service(
            runner or FakeRunner(context=CONTEXT, next_token=says("Hello, wörld 🐳.")), aliases=("other",), **how
        )
        self.service.platform = self.platform

    def key(self, name: str = "ada", dollars: int = 0, **what: Any) -> dict[str, str]:
        """Headers with a new key."""
        secret, key = Keys(self.database).add(name, **what)
        if dollars:
            Ledger(self.database).move(key.account, "USD", "top_up", dollars * 1_000_000, 1)
        self.platform._any = (0, False)
        return {"Authorization": f"Bearer {secret}"}

    def rows(self) -> list[Row]:
        assert self.platform.flush(5)
        assert Ledger(self.database).audit() == []
        return list(Ledger(self.database).rows())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = open_database(str(tmp_path / "accounts.sqlite"), busy_seconds=0.1)
    yield made
    made.close()


@pytest.fixture
def house(database: Database) -> Iterator[House]:
    made = House(database)
    yield made
    made.platform.close()


@pytest.fixture
def client(house: House) -> Iterator[TestClient]:
    with client_of(house.service) as client:
        yield client


def test_without_any_key_everybody_is_answered_and_noted(house: House, client: TestClient) -> None:
    usage = client.post(CHAT, json=chat()).json()["usage"]
    assert client.get("/user/balance").json() == {"is_available": True, "balance_infos": []}
    [row] = house.rows()
    assert (row.account, row.key, row.model, row.kind, row.cost) == (0, 0, MODEL, "chat", 0)
    assert (row.hit + row.miss, row.output) == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize(
    "path", [CHAT, TEXT, MESSAGES, "/v1/models", "/v1/tokenize", "/user/balance", "/v1/infill", "/x"]
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-wrong"}, {"x-api-key": "sk-" + "a" * 9000}])
def test_a_key_that_does_not_hold_is_refused(
    path: str, headers: dict[str, str], house: House, client: TestClient
) -> None:
    house.key()
    answer = client.request("GET" if "models" in path or "user" in path else "POST", path, headers=headers, json={})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["type"] == "authentication_error"
    assert error["message"].startswith("Authentication Fails")
    assert "sk-wrong" not in answer.text


def test_revoked_and_expired_keys_are_refused(house: House, client: TestClient) -> None:
    keys = Keys(house.database)
    house.key()
    revoked, key = keys.add("bob")
    keys.revoke(key.id)
    expired, _ = keys.add("bob", expires=1)
    for secret in (revoked, expired):
        assert client.post(CHAT, json=chat(), headers={"Authorization": f"Bearer {secret}"}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json"])
def test_the_page_and_signs_of_life_need_no_key(path: str, house: House, client: TestClient) -> None:
    house.key()
    assert client.get(path).status_code == 200


def test_metrics_are_for_administrators(house: House, client: TestClient) -> None:
    user, admin = house.key(), house.key("root", role="admin")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=user).status_code == 403
    assert client.get("/metrics", headers=admin).status_code == 200


def test_metrics_are_there_for_this_machine_but_not_for_a_proxy_on_it(house: House) -> None:
    house.key()
    with live(house.service) as address:
        assert httpx.get(address + "/metrics").status_code == 200
        assert httpx.get(address + "/metrics", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401
        assert httpx.get(address + "/v1/models").status_code == 401


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_key_is_taken_in_either_header_by_every_protocol(header: str, house: House, client: TestClient) -> None:
    secret = house.key()["Authorization"].removeprefix("Bearer ")
    headers = {header: f"Bearer {secret}" if header == "Authorization" else secret}
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    assert client.post(TEXT, json=prompt(max_tokens=2), headers=headers).status_code == 200
    assert client.post(MESSAGES, json={**chat(), "max_tokens": 4}, headers=headers).status_code == 200
    assert sorted(row.kind for row in house.rows()) == ["chat", "completion", "messages"]


@pytest.mark.parametrize("streamed", [True, False])
def test_the_ledger_says_how_much_was_thought(streamed: bool, database: Database) -> None:
    answer, thought = ids("Hm, hm.", END_THINK, "Yes.", EOS), len(ids("Hm, hm."))
    script = Script(answer, answer, answer)
    house = House(database, FakeRunner(context=CONTEXT, next_token=script), format=TOY.name)
    noted(house.service.engine, lambda request: script.prompts.append(request.prompt))
    with client_of(house.service) as client:
        for limits in ({}, {"max_tokens": 3}, {"thinking": {"type": "disabled"}, "max_tokens": 3}):
            client.post(CHAT, json={"thinking": {"type": "enabled"}} | chat(stream=streamed, **limits))
    assert [(row.output, row.reasoning) for row in house.rows()] == [(len(answer), thought), (3, 3), (3, 0)]
    house.platform.close()


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_is_billed_once_with_its_usage(streamed: bool, database: Database) -> None:
    house = House(database, prices=Flat())
    headers = house.key(dollars=1)
    with client_of(house.service) as client:
        answer = client.post(CHAT, json=chat(stream=streamed), headers=headers)
        data = json.loads(answer.text.split("data: ")[-2]) if streamed else answer.json()
        usage = data["usage"]
        [row] = house.rows()
        assert row.id == data["id"]
        assert (row.hit, row.miss) == (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"])
        assert (row.output, row.reason) == (usage["completion_tokens"], "stop")
        assert row.cost == row.hit + 2 * row.miss + 8 * row.output
        left = 1_000_000 - row.cost
        assert client.get("/user/balance", headers=headers).json() == {
            "is_available": True,
            "balance_infos": [
                {
                    "currency": "USD",
                    "total_balance": f"0.{left:06}".rstrip("0"),
                    "granted_balance": "0.00",
                    "topped_up_balance": f"0.{left:06}".rstrip("0"),
                }
            ],
        }
    house.platform.close()


def test_each_of_several_answers_is_billed(house: House, client: TestClient) -> None:
    headers = house.key()
    answer = client.post(TEXT, json=prompt(["one", "two"], max_tokens=3, n=2), headers=headers).json()
    rows = house.rows()
    assert len(rows) == 4
    assert sum(row.output for row in rows) == answer["usage"]["completion_tokens"]


def test_who_has_nothing_left_gets_a_402(database: Database) -> None:
    house = House(database, prices=Flat())
    headers = house.key()
    with client_of(house.service) as client:
        answer = client.post(CHAT, json=chat(), headers=headers)
        said = "Insufficient Balance: the account 'ada' has no USD left"
        assert (answer.status_code, answer.json()["error"]["message"]) == (402, said)
        assert client.get("/user/balance", headers=headers).json()["is_available"] is False
        assert house.rows() == []
    house.platform.close()


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_ends_when_the_money_does(streamed: bool, database: Database) -> None:
    house = House(database, FakeRunner(context=CONTEXT, next_token=endless), prices=Flat())
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", 200, 1)
    with client_of(house.service) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        answer = client.post(CHAT, json=chat(stream=streamed, max_tokens=200), headers=headers)
        data = json.loads(answer.text.split("data: ")[-2]) if streamed else answer.json()
        assert data["choices"][0]["finish_reason"] == "insufficient_system_resource"
        usage = data["usage"]
        assert 1 <= usage["completion_tokens"] < 200
        [row] = house.rows()
        assert (row.output, row.reason) == (usage["completion_tokens"], "cut")
        assert 200 <= row.cost <= 200 + 8
        assert client.post(CHAT, json=chat(), headers=headers).status_code == 402
    house.platform.close()


def test_a_stream_ends_when_its_key_does(database: Database) -> None:
    house = House(database, FakeRunner(context=CONTEXT, next_token=endless, delay=0.05), prices=Flat())
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", 1_000_000, 1)
    revoking = threading.Timer(0.3, Keys(database).revoke, [key.id])
    revoking.start()
    with client_of(house.service) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        answer = client.post(CHAT, json=chat(stream=True, max_tokens=400), headers=headers)
        data = json.loads(answer.text.split("data: ")[-2])
        assert data["choices"][0]["finish_reason"] == "insufficient_system_resource"
        [row] = house.rows()
        assert (row.output, row.reason) == (data["usage"]["completion_tokens"], "cut")
        assert 1 <= row.output < 200
    revoking.join()
    house.platform.close()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (MESSAGES, {"max_tokens": 200, "metadata": {"user_id": '{"device_id": "0"}'}}, "messages"),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 200}, "responses"),
    ],
)
def test_an_answer_of_another_protocol_ends_as_if_it_had_been_as_long_as_it_may_be(
    path: str, body: dict[str, Any], kind: str, streamed: bool, database: Database
) -> None:
    house = House(database, FakeRunner(context=CONTEXT, next_token=endless), prices=Flat())
    secret, key = Keys(database).add("ada")
    Ledger(database).move(key.account, "USD", "top_up", 200, 1)
    body = {"model": MODEL, "stream": streamed} | body
    if "input" not in body:
        body["messages"] = chat()["messages"]
    with client_of(house.service) as client:
        answer = client.post(path, json=body, headers={"x-api-key": secret})
        events = [json.loads(data) for data in answer.text.split("data: ")[1:] for data in data.splitlines()[:1]]
        if kind == "messages":
            last = events[-2] if streamed else answer.json()
            assert (last["delta"] if streamed else last)["stop_reason"] == "max_tokens"
        else:
            last = events[-1]["response"] if streamed else answer.json()
            assert last["incomplete_details"] == {"reason": "max_output_tokens"}
        [row] = house.rows()
        assert (row.output, row.reason, row.kind) == (last["usage"]["output_tokens"], "cut", kind)
        refused = client.post(path, json=body, headers={"x-api-key": secret})
    assert refused.status_code == 402
    assert refused.json()["error"]["type"] == ("billing_error" if kind == "messages" else "insufficient_balance")
    house.platform.close()


def test_a_keys_own_limits_are_a_429_that_says_when(house: House, client: TestClient) -> None:
    headers = house.key(limits=Limits(requests_per_minute=1))
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    answer = client.post(CHAT, json=chat(), headers=headers)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "requests_per_minute"


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=2), Limits(concurrent=2), Limits(tokens_per_minute=8)])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["Hi you", "Hi me", "Hi all"]}),
        (TEXT, prompt(["Hi you", "Hi me", "Hi all"])),
        (CHAT, chat(n=3)),
    ],
)
def test_what_is_several_requests_is_within_the_limits_or_not_begun(
    path: str, body: dict[str, Any], limits: Limits, house: House, client: TestClient
) -> None:
    answer = client.post(path, json=body, headers=house.key(limits=limits))
    assert answer.status_code == 429, answer.text
    assert house.rows() == []
    assert client.post(path, json=body, headers=house.key("bob", limits=Limits(concurrent=3))).status_code == 200
    assert len(house.rows()) == 3


def test_a_full_server_is_a_503_for_those_with_keys(database: Database) -> None:
    house = House(database, max_running=1, max_waiting=0)
    headers = house.key()
    with client_of(house.service) as client:
        with house.service.engine.place():
            answer = client.post(CHAT, json=chat(), headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    house.platform.close()


def test_a_key_sees_and_uses_the_models_it_may(house: House, client: TestClient) -> None:
    headers = house.key(models=["other"])
    assert [one["id"] for one in client.get("/v1/models", headers=headers).json()["data"]] == ["other"]
    assert client.get(f"/v1/models/{MODEL}", headers=headers).status_code == 404
    for body in (chat(), {"messages": chat()["messages"]}):
        refused = client.post(CHAT, json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert client.post(CHAT, json=chat() | {"model": "other"}, headers=headers).status_code == 200
    assert [row.model for row in house.rows()] == ["other"]


def test_a_request_id_of_the_client_names_nothing_in_the_ledger(house: House, client: TestClient) -> None:
    headers = house.key() | {"x-request-id": "mine"}
    for _ in range(2):
        assert client.post(CHAT, json=chat(), headers=headers).headers["x-request-id"] == "mine"
    assert len({row.id for row in house.rows()} - {"mine"}) == 2


@pytest.mark.parametrize(("user", "status"), [("a", 200), ("x" * 512, 200), ("x" * 513, 400), ("a b", 400), ("", 400)])
def test_a_user_id_has_letters_digits_and_dashes(user: str, status: int, client: TestClient) -> None:
    answer = client.post(CHAT, json=chat(user_id=user))
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "user_id"


@pytest.mark.parametrize("isolate", [True, False])
def test_accounts_and_users_find_only_their_own_prompts_in_the_cache_if_asked_for(
    isolate: bool, database: Database
) -> None:
    house = House(database, FakeRunner(context=4096, next_token=says("Hi")), isolate=isolate)
    ada, bob = house.key("ada"), house.key("bob")
    with client_of(house.service) as client:

        def hit(headers: dict[str, str], **fields: Any) -> bool:
            body = chat("a long text " * 60, **fields)
            return bool(client.post(CHAT, json=body, headers=headers).json()["usage"]["prompt_cache_hit_tokens"])

        assert [hit(ada), hit(ada), hit(bob), hit(bob, user_id="x"), hit(bob, user_id="x")] == (
            [False, True, False, False, True] if isolate else [False, True, True, True, True]
        )
    house.platform.close()


def test_who_leaves_is_billed_for_what_was_generated(database: Database) -> None:
    house = House(database, FakeRunner(context=4096, next_token=endless, delay=0.005))
    headers = house.key()
    with live(house.service) as address:
        with httpx.stream("POST", address + CHAT, json=chat(stream=True), headers=headers) as answer:
            seen = sum(1 for _, line in zip(range(20), answer.iter_lines(), strict=False) if '"content":"a"' in line)
        wait_idle(house.service)
        [row] = house.rows()
        assert row.reason == "abort"
        assert row.output == house.service.engine.stats().generated_tokens >= seen > 0
    house.platform.close()


def test_a_locked_database_ends_answers_with_an_error_and_loses_nothing(database: Database, tmp_path: Path) -> None:
    house = House(database, FakeRunner(context=4096, next_token=endless, delay=0.005), patience=0.2)
    headers = house.key()
    with live(house.service) as address:
        lock = sqlite3.connect(tmp_path / "accounts.sqlite", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        assert httpx.post(address + CHAT, json=chat(max_tokens=2), headers=headers).status_code == 200
        answer = httpx.post(address + CHAT, json=chat(stream=True, max_tokens=3000), headers=headers, timeout=30)
        assert "cannot be written down" in answer.text
        begun = time.perf_counter()
        refused = httpx.post(address + CHAT, json=chat(), headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_overloaded")
        assert "retry-after" in refused.headers
        assert time.perf_counter() - begun < 1
        lock.execute("ROLLBACK")
        lock.close()
        wait_idle(house.service)
        assert [row.reason for row in house.rows()] == ["length", "error"]
        assert httpx.post(address + CHAT, json=chat(max_tokens=2), headers=headers).status_code == 200
    house.platform.close()


def test_a_service_without_accounts_knows_nobody() -> None:
    with TestClient(create_app(make_service())) as client:
        assert client.get("/user/balance").json() == {"is_available": True, "balance_infos": []}


def test_a_full_disk_ends_answers_with_an_error_and_loses_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SQLite says it, when it writes."""
    house = House(database, FakeRunner(context=4096, next_token=endless, delay=0.005), patience=0.2)
    headers = house.key()
    append, full = Ledger.append, threading.Event()

    def failing(ledger: Ledger, *what: Any) -> Any:
        if full.is_set():
            raise LedgerDown("the database accounts.sqlite does not answer: database or disk is full")
        return append(ledger, *what)

    monkeypatch.setattr(Ledger, "append", failing)
    with live(house.service) as address:
        full.set()
        assert httpx.post(address + CHAT, json=chat(max_tokens=2), headers=headers).status_code == 200
        answer = httpx.post(address + CHAT, json=chat(stream=True, max_tokens=3000), headers=headers, timeout=30)
        assert "cannot be written down" in answer.text
        assert httpx.post(address + CHAT, json=chat(), headers=headers).status_code == 503
        full.clear()
        wait_idle(house.service)
        assert [row.reason for row in house.rows()] == ["length", "error"]
    house.platform.close()
