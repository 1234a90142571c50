"""Two tabs of one browser on one chat: nothing is ever lost, and each says what the other does."""

from __future__ import annotations

import pytest
from fake_server import Fake
from playwright.sync_api import Page, expect
from talking import ask, last, say

OLD = """async () => {
  const message = (id, parent, role, text, more) => ({ id, parent, role, text, ...more });
  const record = {
    id: "0123", title: "from the old days", updated: 5, leaf: "c",
    messages: [message("a", null, "user", "an old question"), message("b", "a", "assistant", "first", { end: "stop" }),
      message("c", "a", "assistant", "second"), message("d", null, "user", "edited")],
  };
  const request = indexedDB.open("deepwell", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  await new Promise(done => request.onsuccess = done);
  const transaction = request.result.transaction("conversations", "readwrite");
  transaction.objectStore("conversations").put(record);
  await new Promise(done => transaction.oncomplete = done);
  request.result.close();
}"""

MUTE = "BroadcastChannel.prototype.postMessage = () => undefined"
"""As if the tab was always closed between saving and saying so, or was too busy to answer when it is asked."""
NO_LOCKS = "delete Navigator.prototype.locks"
"""As on plain http from another machine."""
STORED = """chat => new Promise(done => {
  indexedDB.open("deepwell").onsuccess = ({ target: { result } }) => {
    const all = result.transaction("messages").objectStore("messages").getAll(IDBKeyRange.bound([chat], [chat, []]));
    all.onsuccess = () => done(all.result.find(({ role }) => role === "assistant"));
  };
})"""


def texts(page: Page) -> list[str]:
    return page.locator(".bubble").all_inner_texts()


def test_two_tabs_on_one_chat_add_to_it_and_lose_nothing(page: Page, second: Page) -> None:
    ask(page, "one")
    second.goto(page.url)
    expect(second.locator(".bubble")).to_have_text("one")
    ask(page, "two")
    expect(second.locator(".bubble")).to_have_text(["one", "two"])
    ask(second, "three")
    expect(page.locator(".bubble")).to_have_text(["one", "two", "three"])
    second.get_by_label("Rename one").click()
    second.get_by_label("New title").fill("renamed")
    second.keyboard.press("Enter")
    expect(page.locator("#conversations .title")).to_have_text("renamed")
    ask(page, "four")
    for each in (page, second):
        each.reload()
        expect(each.locator(".bubble")).to_have_text(["one", "two", "three", "four"])
        expect(each.locator("#conversations .title")).to_have_text("renamed")


def test_a_rename_by_a_tab_that_knows_less_loses_no_message(page: Page, second: Page) -> None:
    """As when the tabs cannot hear each other: what counts is what the transaction finds."""
    ask(page, "one")
    second.add_init_script("delete window.BroadcastChannel")
    second.goto(page.url)
    expect(second.locator(".bubble")).to_have_text("one")
    ask(page, "two")
    assert texts(second) == ["one"]
    second.get_by_label("Rename one").click()
    second.get_by_label("New title").fill("renamed")
    second.keyboard.press("Enter")
    ask(second, "other two")
    page.reload()
    expect(page.locator("#conversations .title")).to_have_text("renamed")
    expect(page.locator(".bubble")).to_have_text(["one", "other two"])
    page.locator(".message.user").last.hover()
    page.get_by_label("Previous version").click()
    expect(page.locator(".bubble")).to_have_text(["one", "two"])


def test_an_answer_made_in_another_tab_is_shown_as_such_and_can_be_stopped(
    page: Page, second: Page, fake: Fake
) -> None:
    say(page, "something slow")
    expect(last(page)).to_contain_text("drop 3")
    second.goto(page.url)
    expect(last(second)).to_contain_text("Being answered in another tab")
    expect(last(second)).to_contain_text("drop 20 ")
    expect(last(second).locator(".notice")).to_have_count(0)
    second.wait_for_timeout(1500)
    expect(last(second)).to_contain_text("Being answered in another tab")
    second.get_by_label("Stop", exact=True).click()
    expect(last(page)).to_contain_text("Stopped.")
    expect(last(second)).to_contain_text("Stopped.")
    assert fake.let_go("something slow")


def test_an_answer_whose_tab_was_closed_can_go_on(page: Page, second: Page) -> None:
    second.goto("/")
    second.wait_for_selector("#status-dot[data-state=online]")
    say(second, "something slow")
    expect(last(second)).to_contain_text("drop 25 ")
    page.goto(second.url)
    expect(last(page)).to_contain_text("Being answered in another tab")
    second.close()
    expect(last(page).locator(".notice.info")).to_contain_text("Stopped when the page was left.")
    page.get_by_role("button", name="Continue").click()
    expect(last(page)).to_contain_text("and the second.")


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no-locks"])
def test_an_answer_goes_on_whatever_its_closed_tab_saved_without_a_word(page: Page, second: Page, locks: bool) -> None:
    """One press of Continue, and nothing that was saved is lost."""
    second.add_init_script(MUTE)
    for each in (page, second):
        each.add_init_script("" if locks else NO_LOCKS)
    second.goto("/")
    second.wait_for_selector("#status-dot[data-state=online]")
    say(second, "something slow")
    expect(last(second)).to_contain_text("drop 25 ")
    page.goto("about:blank")
    page.goto(second.url)
    expect(last(page)).to_contain_text("drop 0 ")
    chat = second.url.rpartition("/")[2]
    before = stored = page.evaluate(STORED, chat)
    while stored["revision"] < before["revision"] + 2:
        page.wait_for_timeout(50)
        stored = page.evaluate(STORED, chat)
    assert last(page).locator(".markdown").last.inner_text() < stored["text"]
    if locks:
        expect(last(page)).to_contain_text("Being answered in another tab")
        expect(last(page).locator(".notice")).to_have_count(0)
    second.close()
    expect(last(page).locator(".notice.info")).to_contain_text("Stopped when the page was left.")
    expect(last(page)).not_to_contain_text("Being answered in another tab")
    page.get_by_role("button", name="Continue").click()
    expect(last(page)).to_contain_text("and the second.")
    expect(last(page)).to_contain_text(stored["text"])
    expect(last(page).locator(".notice")).to_have_count(0)


def test_what_another_tab_has_finished_meanwhile_is_shown_and_not_asked_again(
    page: Page, second: Page, fake: Fake
) -> None:
    second.add_init_script(MUTE)
    ask(page, "to the limit")
    second.goto(page.url)
    second.get_by_role("button", name="Continue").click()
    expect(last(second)).to_contain_text("and the second.")
    expect(last(second).locator(".notice")).to_have_count(0)
    expect(last(page)).not_to_contain_text("and the second.")
    page.get_by_role("button", name="Continue").click()
    expect(last(page)).to_contain_text("and the second.")
    assert len(fake.bodies) == 2


def test_an_answer_left_by_a_reload_is_not_called_an_error(page: Page, fake: Fake) -> None:
    say(page, "something slow")
    expect(last(page)).to_contain_text("drop 25 ")
    page.reload()
    expect(last(page).locator(".notice.info")).to_contain_text("Stopped when the page was left.")
    expect(last(page)).to_contain_text("drop 10 ")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    assert fake.let_go("something slow")
    page.get_by_role("button", name="Try again").click()
    expect(last(page)).to_contain_text("drop 1 ")


def test_a_text_that_must_wait_for_an_answer_is_kept_and_the_page_says_why(page: Page, second: Page) -> None:
    ask(page, "one")
    second.goto(page.url)
    expect(second.locator("#busy")).to_be_hidden()
    say(page, "something slow")
    expect(second.locator("#busy")).to_have_text("Being answered in another tab: send when it is done, or stop it.")
    for each in (page, second):
        each.get_by_label("Message", exact=True).fill("next")
        each.keyboard.press("Enter")
        expect(each.get_by_label("Message", exact=True)).to_have_value("next")
        expect(each.locator("#busy")).to_be_visible()
    expect(page.locator("#busy")).to_have_text("Send when the answer is done, or stop it.")
    expect(second.locator("#announcer")).to_contain_text("Being answered in another tab")
    second.get_by_label("Stop", exact=True).click()
    expect(second.locator("#busy")).to_be_hidden()
    second.get_by_label("Send", exact=True).click()
    expect(page.locator(".bubble").last).to_have_text("next")


def test_a_chat_deleted_in_another_tab_is_left_and_comes_back_whole(page: Page, second: Page) -> None:
    ask(page, "one")
    second.goto(page.url)
    ask(second, "two")
    expect(page.locator(".bubble")).to_have_text(["one", "two"])
    page.get_by_label("Delete one").click()
    expect(second.get_by_text("deleted in another tab")).to_be_visible()
    expect(second.locator(".message")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".bubble")).to_have_text(["one", "two"])
    expect(second.locator("#conversations .title")).to_have_text("one")
    page.reload()
    expect(page.locator(".bubble")).to_have_text(["one", "two"])


def test_conversations_of_the_older_format_are_kept(second: Page) -> None:
    second.context.pages[0].close()
    second.goto("/favicon.svg")
    second.evaluate("() => new Promise(done => indexedDB.deleteDatabase('deepwell').onsuccess = done)")
    second.evaluate(OLD)
    second.goto("/#/chat/0123")
    expect(second.locator("#conversations .title")).to_have_text("from the old days")
    expect(second.locator(".bubble")).to_have_text("an old question")
    expect(last(second)).to_contain_text("second")
    last(second).get_by_label("Previous version").click()
    expect(last(second)).to_contain_text("first")
    ask(second, "and a new one")
    second.reload()
    expect(second.locator(".bubble")).to_have_text(["an old question", "and a new one"])
    second.locator(".message.user").first.hover()
    second.get_by_label("Next version").first.click()
    expect(second.locator(".bubble")).to_have_text("edited")


def test_a_newer_page_waits_for_an_older_one_and_says_so(second: Page) -> None:
    older = second.context.pages[0]
    older.goto("/favicon.svg")
    older.evaluate("() => new Promise(done => indexedDB.deleteDatabase('deepwell').onsuccess = done)")
    older.evaluate(OLD)
    older.evaluate("() => new Promise(done => indexedDB.open('deepwell', 1).onsuccess = done)")
    second.goto("/")
    expect(second.locator("#banners")).to_contain_text("an older version of this page")
    older.goto("about:blank")
    expect(second.locator("#conversations .title")).to_have_text("from the old days")
