"""What is read: following a growing answer, maths, tables, thoughts, hostile Markdown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from talking import ask, last, say


def flood(page: Page) -> None:
    """An answer under way that is longer than the window."""
    say(page, "a flood")
    grown(page, 0)


def grown(page: Page, height: int) -> None:
    """Waits until the thread is a good deal longer than the window and than `height`."""
    longer = "(e, height) => e.scrollHeight > Math.max(e.clientHeight, height) + 150"
    for _ in range(200):
        if page.locator("#scroller").evaluate(longer, height):
            return
        page.wait_for_timeout(40)
    pytest.fail("The thread does not grow.")


def wheel(page: Page) -> None:
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -40)


def key(page: Page) -> None:
    page.locator("#scroller").focus()
    page.keyboard.press("PageUp")


def key_in_the_composer(page: Page) -> None:
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("PageUp")


def bar(page: Page) -> None:
    """As dragging the bar does: a place that no wheel and no key led to."""
    page.locator("#scroller").evaluate("e => e.scrollTop -= 60")


@pytest.mark.parametrize("scroll", [wheel, key, key_in_the_composer, bar])
def test_any_upward_wish_ends_the_following_and_a_button_brings_it_back(
    page: Page, scroll: Callable[[Page], None]
) -> None:
    flood(page)
    scroll(page)
    expect(page.get_by_label("Jump to the latest message")).to_be_visible()
    page.wait_for_timeout(300)
    place, height = page.locator("#scroller").evaluate("e => [e.scrollTop, e.scrollHeight]")
    grown(page, height)
    assert page.locator("#scroller").evaluate("e => e.scrollTop") == place
    page.get_by_label("Jump to the latest message").click()
    expect(page.get_by_label("Jump to the latest message")).to_be_hidden()
    page.wait_for_timeout(300)
    assert page.locator("#scroller").evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 60
    page.keyboard.press("Escape")


def test_scrolling_down_to_the_end_follows_again(page: Page) -> None:
    flood(page)
    wheel(page)
    expect(page.get_by_label("Jump to the latest message")).to_be_visible()
    page.mouse.wheel(0, 4000)
    expect(page.get_by_label("Jump to the latest message")).to_be_hidden()
    page.keyboard.press("Escape")


def test_maths_is_typeset_and_money_is_not(page: Page) -> None:
    text = ask(page, "maths please")
    formulas = last(page).locator(".math.set")
    expect(formulas).to_have_count(5)
    expect(last(page).locator("math mtable mtd")).to_have_text(["1", "2", "3", "4"])
    assert "costs $5 or $6, for" in text
    assert last(page).locator("math").first.evaluate("e => e.getBoundingClientRect().height") > 10
    index = "e => e.children[1].getBoundingClientRect().bottom - e.children[0].getBoundingClientRect().bottom"
    assert last(page).locator("msub").first.evaluate(index) > 1
    assert last(page).locator("mfrac").evaluate("e => e.getBoundingClientRect().height") > 25


def test_formulas_are_copied_as_they_were_written(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "maths please")
    expect(last(page).locator(".math.set")).to_have_count(5)
    last(page).locator("> .markdown").evaluate("e => getSelection().selectAllChildren(e)")
    page.keyboard.press("Control+c")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(r"Since \(a_1 * b_1 * c_1\) costs $5 or $6, for $n$ holds")
    assert "\\[\n\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}\n=\n\\frac{\\sqrt{x}}{y}\n\\]\n" in copied
    assert copied.rstrip().endswith(r"and $$\sum_{i=1}^n i$$ with \(\pmb{v}\).")
    page.get_by_label("Copy answer").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert r"1 & 2 \\ 3" in page.evaluate("navigator.clipboard.readText()")


def test_thoughts_are_marked_up_too(page: Page) -> None:
    ask(page, "muse")
    page.get_by_text("Thought", exact=True).click()
    expect(page.locator(".thought-text strong")).to_have_text("bold")
    expect(page.locator(".thought-text math msup")).to_be_visible()


def test_a_wide_table_scrolls_and_keeps_its_words_whole(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 680})
    ask(page, "a table")
    cell = last(page).locator("td").first
    assert cell.evaluate("e => e.getClientRects()[0].height") < 50
    assert last(page).locator(".table-scroll").evaluate("e => e.scrollWidth > e.clientWidth")
    assert page.locator("#scroller").evaluate("e => e.scrollWidth <= e.clientWidth + 1")


def test_deep_quotes_do_not_break_the_page(page: Page) -> None:
    ask(page, "> " * 2500 + "deep")
    expect(last(page)).to_contain_text("deep")
    assert ask(page, "still there?") == "Answer 1 to: still there?"
