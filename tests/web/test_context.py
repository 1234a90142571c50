"""Answers that ended too early go on; the context is shown, and what can be done when it is full."""

from __future__ import annotations

from fake_server import Fake
from playwright.sync_api import Page, expect
from talking import answer, ask, last


def test_an_answer_that_was_cut_by_length_goes_on(page: Page, fake: Fake) -> None:
    assert ask(page, "up to the limit") == "The first half,"
    page.get_by_role("button", name="Continue").click()
    expect(last(page)).to_contain_text("The first half, and the second.")
    assert answer(page) == "The first half, and the second."
    expect(last(page).locator(".notice")).to_have_count(0)
    expect(page.locator(".message.assistant")).to_have_count(1)
    assert fake.bodies[-1]["messages"] == [
        {"role": "user", "content": "up to the limit"},
        {"role": "assistant", "content": "The first half,", "prefix": True},
    ]
    page.reload()
    assert answer(page) == "The first half, and the second."


def test_a_completion_goes_on(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_label("Before the gap").fill("limit:")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#middle")).to_have_text("    return n\n")
    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.locator("#middle")).to_have_text("    return n\n    return n\n")
    assert fake.bodies[-1]["prompt"] == "limit:    return n\n"


def test_a_gauge_shows_the_context_and_hints_before_it_is_full(page: Page) -> None:
    gauge = page.locator("#gauge")
    expect(gauge).to_be_hidden()
    ask(page, "hello")
    expect(gauge).to_contain_text("108 of 1,000 tokens")
    expect(gauge.get_by_text("Nearly full")).to_be_hidden()
    ask(page, "nearly")
    expect(gauge).to_contain_text("912 of 1,000 tokens")
    expect(gauge.get_by_text("Nearly full")).to_be_visible()
    ask(page, "to the brim")
    expect(gauge).to_contain_text("Full: start a new chat")
    gauge.get_by_role("button", name="start a new chat").click()
    expect(page.locator(".empty-state")).to_be_visible()
    expect(gauge).to_be_hidden()


def test_a_full_context_offers_what_can_succeed(page: Page) -> None:
    ask(page, "an overlong question")
    expect(last(page).locator(".notice.error")).to_contain_text("maximum context length is 1000 tokens")
    for gone in ("Try again", "Continue", "Regenerate"):
        expect(last(page).get_by_role("button", name=gone)).to_have_count(0)
    last(page).get_by_role("button", name="Shorten the question").click()
    page.get_by_role("textbox", name="Edit message").fill("a short one")
    page.keyboard.press("Enter")
    assert answer(page) == "Answer 1 to: a short one"


def test_a_chat_that_filled_its_context_goes_on_in_a_new_one(page: Page) -> None:
    assert ask(page, "to the brim") == "To the brim"
    expect(last(page).locator(".notice")).to_contain_text("nothing more fits into this chat")
    expect(last(page).get_by_role("button", name="Continue")).to_have_count(0)
    last(page).get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.get_by_label("Message", exact=True)).to_have_value("to the brim")
