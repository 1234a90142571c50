"""What stands around the endpoints: names, other sites, paths, ids, and the log."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from raw import connect, exchange, head, post, status_of
from serving import CONTEXT, chat, live, make_service, says, wait_idle
from starlette.testclient import TestClient
from test_live import slow

from deepwell.server import Site, create_app
from deepwell.server.hosts import Hosts
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
MACHINE = socket.gethostname()


@contextmanager
def client_of(**site: Any) -> Iterator[TestClient]:
    service = make_service(FakeRunner(context=CONTEXT, next_token=says("Hello.")))
    with TestClient(create_app(service, Site(**site))) as client:
        yield client
        wait_idle(service)


@pytest.mark.parametrize(
    ("bound", "host", "known"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "LOCALHOST.:8000", True),
        ("127.0.0.1", "chat.localhost:8000", True),
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "127.9.9.9", True),
        ("127.0.0.1", "[::1]:8000", True),
        ("127.0.0.1", MACHINE, True),
        ("127.0.0.1", f"{MACHINE}.local:80", True),
        ("127.0.0.1", "mine.example", True),
        ("127.0.0.1", "also.example:443", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "evil.example:8000", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "notlocalhost", False),
        ("127.0.0.1", "192.0.2.7", False),
        ("127.0.0.1", "2130706433", False),
        ("127.0.0.1", "evil.example@localhost", False),
        ("127.0.0.1", "localhost/evil.example", False),
        ("127.0.0.1", "local host", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "192.0.2.7:8000", True),
        ("0.0.0.0", "[2001:db8::1]:8000", True),
        ("0.0.0.0", "localhost", True),
        ("::", "[fe80::1%25eth0]", True),
        ("0.0.0.0", "evil.example", False),
        ("192.0.2.7", "192.0.2.7", True),
    ],
)
def test_names_that_lead_here(bound: str, host: str, known: bool) -> None:
    assert Hosts(bound, ("mine.example", "Also.Example.")).knows(host) is known


def test_every_name_may_be_allowed() -> None:
    assert Hosts("127.0.0.1", ("*",)).knows("evil.example")


def test_a_name_of_a_stranger_reaches_nothing() -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=says("Hello.")))
    with live(service) as address:
        for asked in (
            head("GET /v1/models HTTP/1.1", "Host: evil.example:8000"),
            post(CHAT, chat(), "Host: evil.example"),
        ):
            answer = exchange(
                address,
                asked.replace(b"Host: localhost\r\n", b"").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1),
            )
            assert status_of(answer) == 403
            assert b"--allow-host" in answer
        assert service.engine.stats().steps == 0


def test_no_other_site_may_ask_by_default() -> None:
    with client_of() as client:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        assert client.options(CHAT, headers=asked).status_code == 405
        assert not [
            name for name in client.get("/v1/models", headers=asked).headers if name.startswith("access-control")
        ]


@pytest.mark.parametrize("allowed", [(PAGE, "http://other.example:3000"), ("*",)])
def test_an_allowed_site_may_ask(allowed: tuple[str, ...]) -> None:
    wanted = "authorization,content-type,x-stainless-arch,x-stainless-retry-count,x-request-id"
    with client_of(allow_origins=allowed) as client:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
        leave = client.options(CHAT, headers=asked)
        assert leave.status_code == 200
        granted = {name.strip() for name in leave.headers["access-control-allow-headers"].split(",")}
        assert set(wanted.split(",")) <= granted
        assert "POST" in leave.headers["access-control-allow-methods"]
        for answer in (
            client.post(CHAT, json=chat(), headers={"Origin": PAGE}),
            client.post(CHAT, headers={"Origin": PAGE}),
        ):
            assert answer.headers["access-control-allow-origin"] == ("*" if allowed == ("*",) else PAGE)
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        stranger = client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert stranger.headers.get("access-control-allow-origin") == ("*" if allowed == ("*",) else None)


def test_a_failure_of_ours_can_be_read_by_an_allowed_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepwell.server.question.render_chat", lambda *_: 1 / 0)
    with client_of(allow_origins=(PAGE,)) as client:
        answer = client.post(CHAT, json=chat(), headers={"Origin": PAGE})
        assert answer.status_code == 500
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["x-request-id"]


def test_everything_is_under_the_base_path() -> None:
    with client_of(base_path="/deep/well") as client:
        assert client.get("/deep/well/v1/models").json()["object"] == "list"
        assert client.post("/deep/well" + CHAT, json=chat()).status_code == 200
        assert client.get("/deep/well/health").json() == {"status": "ok"}
        assert client.get("/deep/well/openapi.json").status_code == 200
        assert client.get("/deep/well/").headers["content-type"].startswith("text/html")
        for asset in re.findall(r'(?:src|href)="\.?/?(assets/[^"]+)"', client.get("/deep/well/").text):
            assert client.get(f"/deep/well/{asset}").status_code == 200
        moved = client.get("/deep/well", follow_redirects=False)
        assert (moved.status_code, moved.headers["location"]) == (308, "well/")
        assert client.get("/health").status_code == 200, "for what watches the server itself, and proxies that cut"
        assert client.get("/deep/wells/health").status_code == 404
        page = client.get("/metrics").text
        assert f'path="{CHAT}",status="200"' in page


@pytest.mark.parametrize(("sent", "kept"), [("abc-123_x.y:z", True), ("a b", False), ("x" * 129, False), ("ö", False)])
def test_an_answer_has_the_requests_id(sent: str, kept: bool) -> None:
    with client_of() as client:
        for path in ("/v1/models", "/nowhere"):
            id = client.get(path, headers={"x-request-id": sent.encode()}).headers["x-request-id"]
            assert (id == sent) is kept
            assert re.fullmatch(r"[\w.:-]{6,128}", id)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "deepwell.requests"]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("deepwell.requests"), "propagate", True)
    caplog.set_level(logging.INFO, "deepwell.requests")
    return caplog


def test_a_request_is_a_line_without_its_text(logged: pytest.LogCaptureFixture) -> None:
    with client_of() as client:
        client.post(CHAT, json=chat("a secret " * 40, max_tokens=3))
        client.post(CHAT, json=chat("a secret " * 40, max_tokens=3, stream=True), headers={"x-request-id": "mine"})
        client.post(CHAT, json=chat("a secret", model="n\x1b[31mone\n"))
        client.get("/v1/models?key=%0asecret")
        client.get("/health")
        client.get("/metrics")
    whole, streamed, refused, models = lines_of(logged)
    times = r"\d+\.\d{3}s"
    tokens = r"in=\d{2,} cached=%s out=3 first=" + times
    path, model = re.escape(CHAT), "model='deepwell-test'"
    assert re.fullmatch(rf"testclient POST {path} 200 {times} {model} {tokens % '0'} id=\w{{32}}", whole[1])
    assert re.fullmatch(rf"testclient POST {path} 200 {times} {model} {tokens % '[1-9][0-9]*'} id=mine", streamed[1])
    assert re.fullmatch(rf"testclient POST {path} 404 {times} model='n\\x1b\[31mone\\n' id=\w{{32}}", refused[1])
    assert re.fullmatch(rf"testclient GET /v1/models 200 {times} id=\w{{32}}", models[1])
    assert [level for level, _ in (whole, streamed, refused, models)] == ["INFO", "INFO", "WARNING", "INFO"]
    assert "secret" not in logged.text


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_left_is_a_499_in_log_and_metrics(logged: pytest.LogCaptureFixture, streamed: bool) -> None:
    service = make_service(slow())
    with live(service) as address:
        logging.getLogger("deepwell.requests").propagate = True
        with connect(address) as connection:
            connection.sendall(post(CHAT, chat(stream=streamed, max_tokens=4000)))
            while service.engine.stats().generated_tokens < 3:
                pass
        wait_idle(service)
        page = httpx.get(address + "/metrics").text
    assert f'path="{CHAT}",status="499"}} 1.0' in page
    ((level, line),) = lines_of(logged)
    assert level == "WARNING"
    assert re.search(r" 499 [\d.]+s model='deepwell-test' in=\d+ cached=0 out=[1-9]\d* first=[\d.]+s id=", line)


def test_a_failure_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepwell.server.question.render_chat", lambda *_: 1 / 0)
    with client_of() as client:
        assert client.post(CHAT, json=chat()).status_code == 500
    (record,) = [record for record in caplog.records if record.name == "deepwell.server"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
