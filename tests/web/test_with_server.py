"""The page against Deepwell's own server, whose model answers "a" for ever: the two speak the same API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_server import POLICY
from playwright.sync_api import Browser, Page, expect

from deepwell.accounts import Keys, Ledger, open_database

TESTS = Path(__file__).parents[1]


@pytest.fixture(params=["chat"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server whose model was trained to chat, or was not: "chat" or "base"."""
    yield from running(f"--{request.param}")


def running(*flags: str) -> Iterator[str]:
    """The address of a server."""
    paths = os.pathsep.join([str(TESTS), str(TESTS / "server")])
    command = [sys.executable, str(TESTS / "server" / "endless_server.py"), *flags]
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


@dataclass
class Guarded:
    """A server that needs keys, and an administrator's."""

    address: str
    secret: str


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    path = str(tmp_path / "accounts.sqlite")
    database = open_database(path)
    secret, key = Keys(database).add("chief", role="admin")
    Ledger(database).move(key.account, "USD", "top_up", 5_000_000, time.time_ns() // 1000)
    database.close()
    for address in running("--chat", "--database", path):
        yield Guarded(address, secret)


def give_key(page: Page, secret: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key").fill(secret)
    dialog.get_by_role("button", name="Use this key").click()


def test_a_key_is_asked_for_and_what_it_used_stands_in_the_books(browser: Browser, guarded: Guarded) -> None:
    page = browser.new_page(base_url=guarded.address)
    page.goto("/")
    expect(page.get_by_role("dialog", name="API key")).to_contain_text("an API key is needed")
    give_key(page, guarded.secret)
    expect(page.locator("#status-dot[data-state=online]")).to_be_visible()
    page.keyboard.press("Control+,")
    expect(page.locator("#balance")).to_have_text("Balance: 5.00 USD")
    page.get_by_label("Max tokens").fill("12")
    page.keyboard.press("Escape")
    page.get_by_label("Message", exact=True).fill("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .stats")).to_contain_text("12 tokens")

    page.goto("/books")
    tiles = page.locator("#tiles")
    expect(tiles).to_contain_text("2.00 USD an hour")
    for _ in range(50):
        if page.locator(".tile", has_text="Requests").locator("b").inner_text() == "1":
            break
        page.reload()
        expect(tiles).to_contain_text("2.00 USD an hour")
    expect(page.locator(".tile", has_text="Tokens out").locator("b")).to_have_text("12")
    expect(page.locator(".chart").first.locator("rect.bar.tone-3")).to_have_count(1)

    page.goto("/admin")
    expect(page.locator("#keys tbody tr")).to_have_count(1)
    page.get_by_role("button", name="New key").click()
    page.get_by_role("dialog").get_by_label("Account").fill("newcomer")
    page.get_by_role("button", name="Make the key").click()
    made = page.get_by_role("dialog", name="The new key").locator("code").inner_text()
    assert made.startswith("sk-")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Usage").click()
    expect(page.locator("#usage tbody tr")).to_contain_text(["chief"])
    page.close()

    other = browser.new_page(base_url=guarded.address)
    other.goto("/admin")
    give_key(other, made)
    expect(other.locator("#banners")).to_contain_text("this key's role is user")
    other.close()
