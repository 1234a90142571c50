"""The books: a server's day in figures, charts and tables."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from fake_desk import ADMIN, USER
from fake_server import Fake
from playwright.sync_api import Page, expect

SVG_CHART = ".chart svg"


@pytest.fixture
def books(page: Page) -> Page:
    """The page of books, shown to an administrator."""
    page.evaluate("key => sessionStorage.setItem('deepwell.key', key)", ADMIN)
    page.goto("/books")
    expect(page.locator(SVG_CHART).first).to_be_visible()
    return page


def test_a_day_is_told_in_figures_and_drawn_by_the_hour(books: Page, fake: Fake) -> None:
    assert fake.desk.asked[0]["by"] == "hour"
    tiles = books.locator("#tiles")
    for said in ("608B", "342B from the cache", "56.3 %", "87,072 USD", "3,628.00 USD an hour", "675 % of the cost"):
        expect(tiles).to_contain_text(said)
    expect(tiles).to_contain_text("not reported by this machine")
    expect(books.locator("#notes")).to_contain_text("12.50 CNY")
    expect(books.get_by_role("heading", name="Energy")).to_have_count(0)
    titles = books.locator(".chart h2").all_inner_texts()
    assert titles[:3] == ["Tokens", "Cache hit rate", "Requests"]
    tokens = books.locator(".chart").first
    # Three kinds of tokens in each hour but the idle one.
    expect(tokens.locator("rect.bar")).to_have_count(23 * 3)


def test_each_chart_has_a_table_and_tells_the_value_under_the_pointer(books: Page) -> None:
    latency = books.locator(".chart", has_text="Time to the first token")
    latency.get_by_text("As a table").click()
    rows = latency.locator("tbody tr")
    expect(rows).to_have_count(24)
    idle = rows.filter(has_text="03:00")
    assert idle.locator("td").all_inner_texts() == ["–", "–", "–"]
    expect(latency.locator("thead th").nth(3)).to_have_text("99 % within")
    tokens = books.locator(".chart").first
    tokens.locator(".plot").hover(position={"x": 200, "y": 50})
    expect(tokens.locator(".tip")).to_contain_text(re.compile(r"from the cache: \d"))
    tokens.locator(".plot").focus()
    books.keyboard.press("ArrowRight")
    books.keyboard.press("ArrowRight")
    expect(tokens.locator(".plot")).to_have_attribute("aria-label", re.compile(r"from the cache: \d"))


def test_the_span_is_chosen_kept_in_the_address_and_saved_as_csv(books: Page, fake: Fake) -> None:
    books.get_by_label("Span").select_option("month")
    expect(books.locator(".chart").first.locator("rect.bar")).to_have_count(30 * 3)
    assert books.url.endswith("#month")
    assert fake.desk.asked[-1]["by"] == "day"
    books.goto("/books#2026-03-01")
    books.reload()
    expect(books.get_by_label("Day")).to_have_value("2026-03-01")
    expect(books.locator(SVG_CHART).first).to_be_visible()
    assert fake.desk.asked[-1]["from"] == "2026-03-01T00:00:00.000Z"
    with books.expect_download() as download:
        books.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert len(rows) == 24
    assert rows[0]["start"] == "2026-03-01T00:00:00.000Z"
    assert float(rows[12]["income"]) > float(rows[12]["cost"]) == 3628
    assert rows[3]["first_ms_p50"] == ""


def test_the_key_is_asked_for_and_forgotten_with_the_tab(page: Page) -> None:
    page.goto("/books")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("an API key is needed")
    dialog.get_by_label("API key").fill(USER)
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.locator("#banners")).to_contain_text("needs the key of an administrator")
    page.get_by_role("button", name="Use another key").click()
    dialog.get_by_label("API key").fill(ADMIN)
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.locator(SVG_CHART).first).to_be_visible()
    expect(page.locator("#banners")).to_be_empty()
    assert ADMIN not in page.url
    assert page.evaluate("[localStorage.getItem('deepwell.key'), sessionStorage.getItem('deepwell.key')]") == [
        None,
        ADMIN,
    ]
    other = page.context.new_page()
    other.goto("/books")
    expect(other.get_by_role("dialog", name="API key")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1180, "dark")])
def test_the_books_fit_a_phone_and_the_dark(books: Page, width: int, scheme: str) -> None:
    books.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    books.set_viewport_size({"width": width, "height": 740})
    expect(books.locator(SVG_CHART).first).to_be_visible()
    books.wait_for_function("document.querySelector('.chart svg').clientWidth < innerWidth")
    assert books.evaluate("document.documentElement.scrollWidth") <= width
    seen = (
        "getComputedStyle(document.querySelector('rect.bar')).fill !== getComputedStyle(document.body).backgroundColor"
    )
    assert books.evaluate(seen)
