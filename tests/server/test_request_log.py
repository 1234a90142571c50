"""What operators are told of requests, as JSON and as spans: numbers and ids, and no text."""

from __future__ import annotations

import io
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving import CONTEXT, chat, make_service, says
from starlette.testclient import TestClient

from deepwell.errors import ConfigError
from deepwell.server import Site, create_app
from deepwell.server.request_log import logger, set_log
from deepwell.server.tracing import tracing
from fakes import FakeRunner

CHAT = "/v1/chat/completions"
SECRET_WORD = "xylophone"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    monkeypatch.setattr(logger, "handlers", [handler])
    set_log("requests", "json")
    return lambda: [json.loads(line) for line in said.getvalue().splitlines()]


def app(site: Site) -> TestClient:
    return TestClient(create_app(make_service(FakeRunner(context=CONTEXT, next_token=says(f"a {SECRET_WORD}"))), site))


def test_a_line_of_json_for_each_request_with_numbers_and_ids(lines: Any) -> None:
    with app(Site()) as client:
        answer = client.post(CHAT, json=chat(SECRET_WORD), headers={"x-request-id": "mine"}).json()
        client.post(CHAT, json=chat(max_tokens=-7))
    good, bad = lines()
    assert good["answers"] == [answer["id"]]
    assert (good["id"], good["status"], good["level"], good["model"]) == ("mine", 200, "info", "deepwell-test")
    assert good["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert good["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert (good["method"], good["path"], bad["status"], bad["level"]) == ("POST", CHAT, 400, "warning")
    assert SECRET_WORD not in json.dumps([good, bad])


def test_what_clients_send_cannot_forge_a_line(lines: Any) -> None:
    with app(Site()) as client:
        client.post(CHAT, json=chat() | {"model": 'a"}\n{"id": "forged'}, headers={"x-request-id": 'b"\r\n'})
    [line] = lines()
    assert line["model"].startswith('a"}\n')
    assert line["id"] != "forged"


def test_a_collector_gets_a_span_of_each_request() -> None:
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trace = "0af7651916cd43dd8448eb211c80319c"
    with tracing(f"http://127.0.0.1:{server.server_port}", {}) as tell, app(Site(tell=tell)) as client:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        usage = client.post(CHAT, json=chat(SECRET_WORD), headers=headers).json()["usage"]
        client.get("/v1/nothing")
    server.shutdown()
    sent = b"".join(got)
    assert SECRET_WORD.encode() not in sent
    spans = [
        span
        for body in got
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in spans] == [f"POST {CHAT}", "GET other"]
    assert spans[0].trace_id.hex() == trace
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano
    found = {one.key: one.value.string_value or one.value.int_value for one in spans[0].attributes}
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]


def test_without_an_address_nothing_is_traced_and_without_packages_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with tracing("", {}) as tell:
        assert tell is None
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'deepwell\[tracing\]'"), tracing("http://localhost:4318", {}):
        pass
