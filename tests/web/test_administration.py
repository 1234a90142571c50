"""Administration: keys, accounts and usage, whatever strangers call themselves."""

from __future__ import annotations

import pytest
from fake_desk import ADMIN, HOSTILE, USER, account, balance, key
from fake_server import Fake
from playwright.sync_api import Page, expect
from talking import ask


@pytest.fixture
def admin(page: Page, fake: Fake) -> Page:
    """The page of administration, with two keys and two accounts."""
    fake.desk.keys += [key(1, "chief", role="admin"), key(2, HOSTILE, models=["<b>m</b>"])]
    fake.desk.accounts += [account(1, "chief", balance("10.00")), account(2, HOSTILE)]
    page.evaluate("key => sessionStorage.setItem('deepwell.key', key)", ADMIN)
    page.goto("/admin")
    expect(page.locator("#keys tbody tr")).to_have_count(2)
    return page


def test_a_new_key_is_shown_once_and_can_be_copied(admin: Page, fake: Fake) -> None:
    admin.get_by_role("button", name="New key").click()
    form = admin.get_by_role("dialog", name="New key")
    form.get_by_label("Account").fill("nobody")
    form.get_by_label("Requests a minute").fill("60")
    form.get_by_label("Budget", exact=True).fill("12.50")
    form.get_by_label("Models").fill("deepseek-chat, deepseek-reasoner")
    form.get_by_label("Ends on").fill("2027-01-31")
    form.get_by_role("button", name="Make the key").click()
    expect(form.get_by_role("alert")).to_have_text("an account's name cannot be 'nobody'")
    form.get_by_label("Account").fill("newcomer")
    form.get_by_role("button", name="Make the key").click()
    shown = admin.get_by_role("dialog", name="The new key")
    expect(shown.locator("code")).to_have_text("sk-shown-once-and-never-again")
    admin.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.get_by_label("Copy the key").click()
    assert admin.evaluate("navigator.clipboard.readText()") == "sk-shown-once-and-never-again"
    shown.get_by_label("Close").click()
    expect(admin.locator("#keys tbody tr")).to_have_count(3)
    expect(admin.locator("body")).not_to_contain_text("sk-shown-once")
    assert fake.desk.sent[-1] == {
        "name": "newcomer",
        "role": "user",
        "models": ["deepseek-chat", "deepseek-reasoner"],
        "expires": 1801353600,
        "limits": {
            "requests_per_minute": 60,
            "tokens_per_minute": None,
            "concurrent": None,
            "budget": "12.50",
            "budget_currency": "USD",
            "budget_period": "month",
        },
    }
    expect(admin.locator("#keys tbody tr").last).to_contain_text("60 requests/min, 12.50 USD a month")


def test_a_key_is_limited_and_revoked_after_a_question(admin: Page, fake: Fake) -> None:
    row = admin.locator("#keys tbody tr").last
    row.get_by_role("button", name="Change").click()
    form = admin.get_by_role("dialog")
    expect(form.get_by_label("Models")).to_have_value("<b>m</b>")
    form.get_by_label("Requests at one time").fill("2")
    form.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("2 at one time")
    assert fake.desk.sent[-1]["models"] == ["<b>m</b>"]
    row.get_by_role("button", name="Revoke").click()
    admin.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(row).to_contain_text("in use")
    row.get_by_role("button", name="Revoke").click()
    admin.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked 2026-01-01")
    expect(row.get_by_role("button")).to_have_count(0)


def test_names_are_texts_wherever_they_stand(admin: Page, fake: Fake) -> None:
    fake.desk.usage.append({"account": HOSTILE, "prefix": "<i>", "requests": 1, "cost": "1.00", "currency": "USD"})
    expect(admin.locator("#keys tbody tr").last).to_contain_text(HOSTILE)
    admin.get_by_role("button", name="Revoke sk-abc002").click()
    expect(admin.get_by_role("dialog")).to_contain_text(HOSTILE)
    admin.keyboard.press("Escape")
    admin.get_by_role("link", name="Accounts").click()
    admin.locator("#accounts").get_by_role("button", name="Give money").last.click()
    expect(admin.get_by_role("dialog")).to_contain_text(HOSTILE)
    admin.keyboard.press("Escape")
    admin.get_by_role("link", name="Usage").click()
    expect(admin.locator("#usage tbody tr")).to_contain_text([HOSTILE])
    assert admin.evaluate("window.hacked") is None
    assert admin.locator("main img, main b, main i").count() == 0


def test_money_is_given(admin: Page, fake: Fake) -> None:
    admin.get_by_role("link", name="Accounts").click()
    admin.locator("#accounts").get_by_role("button", name="Give money to chief").click()
    form = admin.get_by_role("dialog", name="Money for chief")
    form.get_by_label("What it is").select_option("top_up")
    form.get_by_label("Amount").fill("42.00")
    form.get_by_role("button", name="Give").click()
    expect(admin.locator("#accounts tbody tr").first).to_contain_text("42.00 USD")
    assert fake.desk.sent[-1] == {"kind": "top_up", "amount": "42.00", "currency": "USD", "expires": None, "note": ""}


def test_a_huge_list_comes_in_pages(admin: Page, fake: Fake) -> None:
    fake.desk.keys += [key(n, f"user {n}") for n in range(3, 5000)]
    admin.reload()
    rows = admin.locator("#keys tbody tr")
    expect(rows).to_have_count(50)
    expect(admin.get_by_role("button", name="Previous")).to_be_disabled()
    admin.get_by_role("button", name="Next").click()
    expect(rows.first).to_contain_text("user 51")
    admin.get_by_role("button", name="Next").click()
    expect(rows.first).to_contain_text("user 101")
    admin.get_by_role("button", name="Previous").click()
    expect(rows.first).to_contain_text("user 51")
    admin.get_by_label("Find by name").first.fill("user 4999")
    expect(rows).to_have_count(1)


def test_usage_is_summed_as_asked(admin: Page, fake: Fake) -> None:
    fake.desk.usage += [{"account": f"a{n}", "prefix": "sk-1", "requests": n, "currency": "USD"} for n in range(120)]
    admin.get_by_role("link", name="Usage").click()
    rows = admin.locator("#usage tbody tr")
    expect(rows).to_have_count(50)
    admin.get_by_role("button", name="Next").click()
    expect(rows.first).to_contain_text("a50")
    admin.get_by_label("Summed by").select_option("model")
    expect(admin.locator("#usage thead")).to_contain_text("model")
    assert fake.desk.asked[-1]["by"] == "model"
    assert fake.desk.asked[-1]["offset"] == "0"


def test_a_users_key_sees_nothing(page: Page) -> None:
    page.evaluate("key => sessionStorage.setItem('deepwell.key', key)", USER)
    page.goto("/admin")
    expect(page.locator("#banners")).to_contain_text("this key's role is user")
    expect(page.locator("tbody")).to_have_count(0)


def test_the_chat_asks_for_a_key_and_shows_what_is_left(page: Page, fake: Fake) -> None:
    fake.desk.required = True
    page.reload()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("an API key is needed")
    dialog.get_by_label("API key").fill(USER)
    dialog.get_by_label("Remember it in this browser").check()
    dialog.get_by_role("button", name="Use this key").click()
    page.wait_for_selector("#status-dot[data-state=online]")
    assert ask(page, "hello") == "Answer 1 to: hello"
    page.keyboard.press("Control+,")
    expect(page.locator("#balance")).to_have_text("Balance: 12.50 USD")
    other = page.context.new_page()
    other.goto("/")
    other.wait_for_selector("#status-dot[data-state=online]")
    expect(other.get_by_role("dialog")).to_have_count(0)


def test_a_key_that_ends_during_a_chat_is_asked_for_anew(page: Page, fake: Fake) -> None:
    assert ask(page, "one") == "Answer 1 to: one"
    fake.desk.required = True
    ask(page, "two")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key").fill(USER)
    dialog.get_by_role("button", name="Use this key").click()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant").last).to_contain_text("Answer 1 to: two")
