"""Asking and answering on the page, for the tests."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Send", exact=True).click()


def last(page: Page) -> Locator:
    return page.locator(".message.assistant").last


def answer(page: Page) -> str:
    """Waits for the last answer to end; returns its text."""
    expect(last(page)).to_have_attribute("aria-busy", "false")
    return last(page).locator("> .markdown").inner_text()


def ask(page: Page, text: str) -> str:
    count = page.locator(".message.assistant").count()
    say(page, text)
    expect(page.locator(".message.assistant")).to_have_count(count + 1)
    return answer(page)
