"""Each chat has an address and a draft of its own, below whatever path the page is served."""

from __future__ import annotations

import re

from fake_server import Fake
from playwright.sync_api import Page, expect
from talking import ask

CHAT = re.compile(r"/#/chat/[0-9a-f]+$")


def test_a_reload_shows_the_same_chat(page: Page) -> None:
    ask(page, "here I am")
    expect(page).to_have_url(CHAT)
    expect(page).to_have_title("here I am · Deepwell")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("here I am")


def test_back_and_forward_move_between_chats(page: Page) -> None:
    ask(page, "first")
    page.keyboard.press("Control+k")
    ask(page, "second")
    page.get_by_role("button", name="Complete", exact=True).click()
    expect(page.get_by_label("Before the gap")).to_be_visible()
    page.get_by_role("button", name="first", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("first")
    page.go_back()
    expect(page.get_by_label("Before the gap")).to_be_visible()
    page.go_back()
    expect(page.locator(".bubble")).to_have_text("second")
    page.go_back()
    expect(page.locator(".bubble")).to_have_text("first")
    page.go_forward()
    expect(page.locator(".bubble")).to_have_text("second")


def test_back_from_the_first_chat_that_was_opened_stays_on_the_page(page: Page) -> None:
    ask(page, "kept")
    page.goto("/")
    page.get_by_role("button", name="kept", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("kept")
    page.go_back()
    expect(page.locator(".empty-state")).to_be_visible()
    page.get_by_role("button", name="Complete", exact=True).click()
    page.go_back()
    expect(page.locator(".empty-state")).to_be_visible()


def test_the_address_of_a_chat_that_is_not_here_says_so(page: Page) -> None:
    page.goto("/#/chat/0123abcd")
    expect(page.locator(".toast")).to_contain_text("not in this browser")
    expect(page.locator(".empty-state")).to_be_visible()
    expect(page).to_have_url(re.compile("/#/chat$"))


def test_a_deleted_chat_leaves_no_address_behind(page: Page) -> None:
    ask(page, "short-lived")
    page.get_by_label("Delete short-lived").click()
    expect(page).to_have_url(re.compile("/#/chat$"))
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".bubble")).to_have_text("short-lived")
    expect(page).to_have_url(CHAT)


def test_each_chat_keeps_its_own_draft(page: Page, second: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    ask(page, "first")
    box.fill("more for the first")
    page.keyboard.press("Control+k")
    expect(box).to_have_value("")
    box.fill("for a new one")
    page.get_by_role("button", name="first", exact=True).click()
    expect(box).to_have_value("more for the first")
    page.reload()
    expect(box).to_have_value("more for the first")
    page.go_back()
    expect(box).to_have_value("for a new one")
    second.goto("/")
    expect(second.get_by_label("Message", exact=True)).to_have_value("")
    ask(page, "now a chat")
    page.keyboard.press("Control+k")
    expect(box).to_have_value("")


def test_the_page_works_below_a_path(page: Page, fake: Fake) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/deep/er/")
    page.wait_for_selector("#status-dot[data-state=online]")
    assert ask(page, "show markdown").startswith("Reversing")
    expect(page.locator("pre .hl-keyword").first).to_be_visible()
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_role("button", name="Fill a loop").click()
    expect(page.locator("#middle")).to_contain_text("middle()")
    assert {url for url in asked if not url.startswith(f"{fake.url}/deep/er/")} == set()


def test_each_tab_keeps_its_own_text_to_complete(page: Page, second: Page) -> None:
    for tab, text in ((page, "def one():"), (second, "def two():")):
        tab.goto("/#/complete")
        tab.get_by_label("Before the gap").fill(text)
    for tab, text in ((page, "def one():"), (second, "def two():")):
        tab.reload()
        expect(tab.get_by_label("Before the gap")).to_have_value(text)
