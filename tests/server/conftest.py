"""The server that most tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import CONTEXT, client_of, make_service, says
from starlette.testclient import TestClient

from deepwell.chat import FORMATS
from fakes import FakeRunner
from toy_format import TOY


@pytest.fixture(scope="module", autouse=True)
def toy_format() -> Iterator[None]:
    """The toy format is known to the tests of this folder only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, TOY.name, TOY)
        yield


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a server whose model answers chats with "Hello, wörld 🐳."."""
    with client_of(make_service(FakeRunner(context=CONTEXT, next_token=says("Hello, wörld 🐳.")))) as client:
        yield client
