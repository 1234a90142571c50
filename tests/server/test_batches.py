"""Files and batches: OpenAI's shapes, resumed after a kill, each account's own, and nothing outside their folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import CONTEXT, MODEL, chat, endless, make_service, noted, prompt, says, wait_idle
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.json_lines import append_line
from deepwell.server import Service, Site, create_app
from deepwell.server.batches.objects import Answered, LineAnswer
from deepwell.server.batches.store import KEPT_SECONDS, Store
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
ANSWER = "Hello, wörld 🐳."
MINE = {"x-account": "1"}


class Caller:
    """Whom a request is said to be of."""

    def __init__(self, account: int) -> None:
        self.account = self.key = account


class As:
    """An application that takes the header x-account for who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = dict(scope.get("headers", ())).get(b"x-account")
        if account:
            scope.setdefault("state", {})["caller"] = Caller(int(account))
        await self._app(scope, receive, send)


@contextmanager
def serving(folder: Path, service: Service | None = None) -> Iterator[TestClient]:
    service = service or make_service(FakeRunner(context=CONTEXT, next_token=says(ANSWER)))
    with TestClient(As(create_app(service, Site(data=folder)))) as client:
        yield client
    wait_idle(service)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def line(name: str, body: Any = None, **fields: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body or chat("Hi"), **fields})


def upload(client: TestClient, *lines: str, account: int = 1, name: str = "requests.jsonl") -> dict[str, Any]:
    data = "\n".join(lines).encode()
    answer = client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": (name, data)}, headers={"x-account": str(account)}
    )
    assert answer.status_code == 200, answer.text
    card: dict[str, Any] = answer.json()
    assert card["bytes"] == len(data)
    return card


def begin(client: TestClient, file: str, account: int = 1, endpoint: str = CHAT, **fields: Any) -> Any:
    body = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", **fields}
    return client.post("/v1/batches", json=body, headers={"x-account": str(account)})


def until_over(client: TestClient, id: str, account: int = 1) -> dict[str, Any]:
    for _ in range(1000):
        batch: dict[str, Any] = client.get(f"/v1/batches/{id}", headers={"x-account": str(account)}).json()
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.01)
    raise AssertionError(f"not over: {batch}")


def read(client: TestClient, id: str | None, account: int = 1) -> list[dict[str, Any]]:
    if id is None:
        return []
    text = client.get(f"/v1/files/{id}/content", headers={"x-account": str(account)}).text
    return [json.loads(one) for one in text.splitlines()]


def test_a_batch_from_upload_to_output(client: TestClient) -> None:
    card = upload(client, line("a"), line("b", chat("Ho")), "")
    assert card["purpose"] == "batch"
    assert card["filename"] == "requests.jsonl"
    begun = begin(client, card["id"], metadata={"who": "me"}).json()
    assert begun["object"] == "batch"
    assert begun["status"] == "validating"
    over = until_over(client, begun["id"])
    assert over["status"] == "completed"
    assert over["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert over["error_file_id"] is None
    assert over["metadata"] == {"who": "me"}
    answers = {one["custom_id"]: one for one in read(client, over["output_file_id"])}
    assert answers.keys() == {"a", "b"}
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in answers.values())
    assert answers["a"]["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
    listed = client.get("/v1/files", headers={"x-account": "1"}).json()["data"]
    assert {one["purpose"] for one in listed} == {"batch", "batch_output"}
    assert [one["id"] for one in client.get("/v1/batches", headers={"x-account": "1"}).json()["data"]] == [begun["id"]]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", prompt("A", max_tokens=2)),
        ("/v1/embeddings", {"input": "A"}),
        ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 5}),
        ("/v1/messages", chat(max_tokens=5)),
    ],
)
def test_other_endpoints(client: TestClient, endpoint: str, body: dict[str, Any]) -> None:
    card = upload(client, line("a", body, url=endpoint), line("b", body | {"model": "no"}, url=endpoint))
    over = until_over(client, begin(client, card["id"], endpoint=endpoint).json()["id"])
    (answer,) = read(client, over["output_file_id"])
    usage = answer["response"]["body"]["usage"]
    assert usage.get("prompt_tokens", usage.get("input_tokens")) > 0
    (fault,) = read(client, over["error_file_id"])
    assert fault["response"]["status_code"] == 404
    error = fault["response"]["body"]["error"]
    assert error["type"] == ("not_found_error" if endpoint == "/v1/messages" else "invalid_request_error")


def test_the_lines_of_an_expired_batch_that_have_no_answer_are_error_lines(tmp_path: Path) -> None:
    service = make_service(FakeRunner(context=CONTEXT, next_token=endless, delay=0.01))
    with serving(tmp_path, service) as client:
        worker = client.app._app.state.worker  # type: ignore[attr-defined]
        lines = [line(str(number), chat(max_tokens=20)) for number in range(50)]
        begun = begin(client, upload(client, *lines, "{broken")["id"]).json()
        while not client.get(f"/v1/batches/{begun['id']}", headers=MINE).json()["request_counts"]["completed"]:
            time.sleep(0.01)
        worker.now = lambda: begun["expires_at"]
        over = until_over(client, begun["id"])
        assert over["status"] == "expired"
        assert over["expired_at"] == begun["expires_at"]
        answers, faults = read(client, over["output_file_id"]), read(client, over["error_file_id"])
        counts = over["request_counts"]
        assert (counts["completed"], counts["failed"]) == (len(answers), len(faults))
        names = [one["custom_id"] for one in (*answers, *faults)]
        assert sorted(name for name in names if name) == sorted(str(number) for number in range(50))
        assert {one["error"]["code"] for one in faults} == {"batch_expired", "invalid_line"}


def test_a_key_that_may_ask_no_more_keeps_no_other_batch_waiting(client: TestClient) -> None:
    worker = client.app._app.state.worker  # type: ignore[attr-defined]
    inner = worker._app

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        request = [await receive()]
        if b"Later" not in request[0]["body"]:
            await inner(scope, lambda: again(request.pop()) if request else receive(), send)
            return
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def again(message: Message) -> Message:
        return message

    worker._app = limited
    lines = [line(str(number), chat("Later")) for number in range(8)]
    stuck = begin(client, upload(client, *lines)["id"]).json()
    time.sleep(0.1)
    quick = begin(
        client, upload(client, *[line(str(number)) for number in range(8)], account=2)["id"], account=2
    ).json()
    assert until_over(client, quick["id"], account=2)["request_counts"]["completed"] == 8
    assert client.get(f"/v1/batches/{stuck['id']}", headers=MINE).json()["request_counts"]["completed"] == 0
    client.post(f"/v1/batches/{stuck['id']}/cancel", headers=MINE)
    assert until_over(client, stuck["id"])["status"] == "cancelled"


def test_a_batch_is_removed_with_its_files_a_month_after_its_end(client: TestClient, tmp_path: Path) -> None:
    worker = client.app._app.state.worker  # type: ignore[attr-defined]
    over = until_over(client, begin(client, upload(client, line("a"), "{broken")["id"]).json()["id"])
    path = f"/v1/batches/{over['id']}"
    worker.now = lambda: over["completed_at"] + KEPT_SECONDS - 1
    assert client.get(path, headers=MINE).status_code == 200
    worker.now = lambda: over["completed_at"] + KEPT_SECONDS + 1
    assert client.get(path, headers=MINE).status_code == 404
    worker.store.sweep(worker.now())
    assert [path.name for path in (tmp_path / "batches").rglob("*") if path.is_file()] == ["lock"]


def test_bad_lines_become_error_lines(client: TestClient) -> None:
    lines = [
        "{broken",
        json.dumps({"method": "POST", "url": CHAT, "body": chat()}),
        line("url", url="/v1/completions"),
        line("method", method="GET"),
        line("body", body=[1]),
        line("stream", chat(stream=True)),
        line("good"),
        line("good"),
        line("field", chat(temperature=9)),
        line("model", {"model": "no", "messages": [{"role": "user", "content": "Hi"}]}),
    ]
    over = until_over(client, begin(client, upload(client, *lines)["id"]).json()["id"])
    assert over["status"] == "completed"
    assert over["request_counts"] == {"total": 10, "completed": 1, "failed": 9}
    faults = read(client, over["error_file_id"])
    said = {one["custom_id"]: one["response"]["status_code"] for one in faults if one["response"]}
    assert said == {"field": 400, "model": 404}
    codes = sorted(one["error"]["code"] for one in faults if one["error"])
    assert codes == ["duplicate_custom_id", *["invalid_line"] * 4, "invalid_request", "invalid_url"]


def test_a_batch_goes_on_where_a_killed_server_stopped(tmp_path: Path) -> None:
    """Lines that are answered on the disk are not asked again; a torn last line is."""
    with serving(tmp_path, make_service(FakeRunner(context=CONTEXT, delay=0.05))) as client:
        card = upload(client, *(line(str(number), chat(max_tokens=200)) for number in range(6)))
        begun = begin(client, card["id"]).json()
        while client.get(f"/v1/batches/{begun['id']}", headers={"x-account": "1"}).json()["status"] == "validating":
            time.sleep(0.01)
    store = Store(tmp_path / "batches")
    kept = store.batch(1, begun["id"], 0)
    assert kept.batch.status == "in_progress"
    output = store.content(1, kept.output)
    output.unlink(missing_ok=True)
    for number in (0, 3):
        id = f"batch_req_{begun['id'].removeprefix('batch_')}_{number}"
        append_line(output, Answered(id=id, custom_id=str(number), response=LineAnswer(200, id, {"mine": number})))
    with output.open("ab") as file:
        file.write(b'{"id": "batch_req_torn')
    service = make_service(FakeRunner(context=CONTEXT, next_token=says(ANSWER)))
    asked: list[str] = []
    noted(service.engine, lambda request: asked.append(request.id))
    with serving(tmp_path, service) as client:
        over = until_over(client, begun["id"])
        assert over["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
        answers = {one["custom_id"]: one["response"]["body"] for one in read(client, over["output_file_id"])}
    assert len(asked) == 4
    assert answers["0"] == {"mine": 0}
    assert answers["3"] == {"mine": 3}
    assert len(answers) == 6


def test_another_accounts_things_are_not_there(client: TestClient) -> None:
    card = upload(client, line("a"), account=1)
    begun = begin(client, card["id"]).json()
    over = until_over(client, begun["id"])
    for method, path in (
        ("GET", f"/v1/files/{card['id']}"),
        ("GET", f"/v1/files/{card['id']}/content"),
        ("GET", f"/v1/files/{over['output_file_id']}/content"),
        ("DELETE", f"/v1/files/{card['id']}"),
        ("GET", f"/v1/batches/{begun['id']}"),
        ("POST", f"/v1/batches/{begun['id']}/cancel"),
    ):
        answer = client.request(method, path, headers={"x-account": "2"})
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] == "not_found"
    assert begin(client, card["id"], account=2).status_code == 404
    assert client.get("/v1/files", headers={"x-account": "2"}).json()["data"] == []
    assert client.get("/v1/batches", headers={"x-account": "2"}).json()["data"] == []


@pytest.mark.parametrize(
    "id", ["..%2F1%2Ffile-0", "file-%00", "file-..", "file-" + "A" * 32, "lock", "%2Fetc%2Fpasswd"]
)
def test_ids_are_no_paths(client: TestClient, id: str) -> None:
    for path in (f"/v1/files/{id}", f"/v1/files/{id}/content", f"/v1/batches/{id}"):
        assert client.get(path).status_code == 404


def test_names_of_files_are_no_paths(client: TestClient, tmp_path: Path) -> None:
    card = upload(client, line("a"), name="../../../evil.jsonl")
    assert {path.parent for path in tmp_path.rglob("*.jsonl")} == {tmp_path / "batches" / "1"}
    assert client.get(f"/v1/files/{card['id']}/content", headers={"x-account": "1"}).text == line("a")


def test_cancelling_answers_what_is_under_way_and_no_more(tmp_path: Path) -> None:
    with serving(tmp_path, make_service(FakeRunner(context=CONTEXT, delay=0.01))) as client:
        card = upload(client, *(line(str(number), chat(max_tokens=10, ignore_eos=True)) for number in range(100)))
        begun = begin(client, card["id"]).json()
        cancelled = client.post(f"/v1/batches/{begun['id']}/cancel", headers={"x-account": "1"}).json()
        assert cancelled["status"] == "cancelling"
        over = until_over(client, begun["id"])
        assert over["status"] == "cancelled"
        assert over["request_counts"]["completed"] < 20
        assert len(read(client, over["output_file_id"])) == over["request_counts"]["completed"]


def test_a_batch_waits_behind_everybody(tmp_path: Path) -> None:
    service = make_service(FakeRunner(context=CONTEXT, delay=0.005), max_running=2, max_waiting=2)
    with serving(tmp_path, service) as client:
        card = upload(client, *(line(str(number), chat(max_tokens=20, ignore_eos=True)) for number in range(12)))
        begun = begin(client, card["id"]).json()
        time.sleep(0.05)
        for _ in range(4):
            assert client.post(CHAT, json=chat(max_tokens=2)).status_code == 200
        over = until_over(client, begun["id"])
        assert over["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


@pytest.mark.parametrize(
    ("form", "files", "param"),
    [
        ({"purpose": "fine-tune"}, {"file": ("a", b"{}")}, "purpose"),
        ({}, {"file": ("a", b"{}")}, "purpose"),
        ({"purpose": "batch"}, {"file": ("a", b"\n\n")}, "file"),
        ({"purpose": "batch"}, {"other": ("a", b"{}")}, "file"),
        ({"purpose": "batch"}, {"file": ("a", b"{}\n" * 50_001)}, "file"),
    ],
)
def test_files_that_are_refused(client: TestClient, form: Any, files: Any, param: str) -> None:
    answer = client.post("/v1/files", data=form, files=files)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/form-data; boundary=a", b"--a\r\n\r\n--a--"),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="file"\r\n\r\n{}'),
        ("multipart/form-data; boundary=" + "a" * 71, b"--a--"),
        ("multipart/form-data; boundary=a", b"\r\n--a" * 1000),
    ],
)
def test_forms_that_are_none(client: TestClient, kind: str, body: bytes) -> None:
    answer = client.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"input_file_id": "../lock"}, "file_id"),
    ],
)
def test_batches_that_are_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    body = {"input_file_id": upload(client, line("a"))["id"], "endpoint": CHAT, "completion_window": "24h"}
    answer = client.post("/v1/batches", json=body | fields, headers={"x-account": "1"})
    assert answer.json()["error"]["param"] == param


def test_pages_of_lists_and_deleting(client: TestClient) -> None:
    ids = [upload(client, line("a"))["id"] for _ in range(3)]
    mine = {"x-account": "1"}
    first = client.get("/v1/files?limit=2", headers=mine).json()
    assert first["has_more"]
    rest = client.get(f"/v1/files?limit=2&after={first['last_id']}", headers=mine).json()
    assert {one["id"] for one in first["data"] + rest["data"]} == set(ids)
    assert client.get("/v1/files?limit=x", headers=mine).status_code == 400
    assert client.delete(f"/v1/files/{ids[0]}", headers=mine).json() == {
        "id": ids[0],
        "object": "file",
        "deleted": True,
    }
    assert client.get(f"/v1/files/{ids[0]}", headers=mine).status_code == 404


def test_one_server_works_in_a_folder(tmp_path: Path) -> None:
    with serving(tmp_path) as client, serving(tmp_path) as other:
        upload(client, line("a"))
        answer = other.get("/v1/files")
        assert answer.status_code == 503
        assert "--data-dir" in answer.json()["error"]["message"]


def test_a_server_without_a_folder_says_so() -> None:
    with TestClient(create_app(make_service())) as client:
        assert "--data-dir" in client.get("/v1/files").json()["error"]["message"]
