"""The page against Deepwell's own server, whose model answers "a" for ever: the two speak the same API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import POLICY
from playwright.sync_api import Browser, Page, expect

TESTS = Path(__file__).parents[1]


@pytest.fixture(params=["chat"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server whose model was trained to chat, or was not: "chat" or "base"."""
    paths = os.pathsep.join([str(TESTS), str(TESTS / "server")])
    command = [sys.executable, str(TESTS / "server" / "endless_server.py"), f"--{request.param}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture
def own_page(browser: Browser, address: str) -> Iterator[Page]:
    page = browser.new_page(base_url=address)
    response = page.goto("/")
    assert response is not None
    assert response.header_value("content-security-policy") == POLICY
    expect(page.locator("#status-dot[data-state=online]")).to_be_visible()
    yield page
    page.close()


def test_the_page_and_the_server_understand_each_other(own_page: Page) -> None:
    answer = own_page.locator(".message.assistant")
    own_page.get_by_label("Message", exact=True).fill("hello")
    own_page.keyboard.press("Enter")
    expect(answer).to_contain_text("aaaa")
    own_page.keyboard.press("Escape")
    expect(answer).to_contain_text("Stopped.")

    own_page.keyboard.press("Control+,")
    own_page.get_by_label("Max tokens").fill("12")
    own_page.keyboard.press("Escape")
    own_page.get_by_label("Regenerate").click()
    expect(answer).to_contain_text("The answer reached the largest length allowed.")
    expect(answer.locator(".stats")).to_contain_text(re.compile(r"12 tokens·?first after .*prompt \d+"))

    own_page.get_by_role("button", name="Continue").click()
    expect(answer.locator("> .markdown")).to_have_text("a" * 24)

    own_page.get_by_label("Message", exact=True).fill("too much " * 3000)
    own_page.keyboard.press("Enter")
    expect(answer.last.locator(".notice.error")).to_contain_text("maximum context length is 4096 tokens")
    expect(answer.last.get_by_role("button", name="Shorten the question")).to_be_visible()

    own_page.get_by_role("button", name="Complete", exact=True).click()
    own_page.get_by_role("button", name="Fill a loop").click()
    expect(own_page.locator("#middle")).to_contain_text("aaaa")
    own_page.keyboard.press("Escape")
    expect(own_page.get_by_role("button", name="Accept")).to_be_visible()


@pytest.mark.parametrize("address", ["base"], indirect=True)
def test_a_base_model_opens_in_the_complete_mode(own_page: Page) -> None:
    expect(own_page.locator("body")).to_have_attribute("data-mode", "complete")
    expect(own_page.get_by_role("button", name="Chat", exact=True)).to_be_hidden()
    expect(own_page.locator("#complete .nature")).to_contain_text("trained to continue text, not to chat")


@pytest.mark.parametrize("address", ["chat"], indirect=True)
def test_a_model_that_chats_opens_in_the_chat_mode(own_page: Page) -> None:
    expect(own_page.locator("body")).to_have_attribute("data-mode", "chat")
    expect(own_page.locator(".nature")).to_have_count(0)
