"""The chat keeps its promises in a real browser: streaming, branches, errors, safety, history, keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fake_server import POLICY, STATIC, Fake
from playwright.sync_api import BrowserContext, Page, expect
from talking import answer, ask, last, say


def test_the_server_sends_the_policy_these_tests_rely_on(page: Page) -> None:
    response = page.goto("/")
    assert response is not None
    assert response.header_value("content-security-policy") == POLICY


def test_an_answer_shows_while_it_streams(page: Page, fake: Fake) -> None:
    say(page, "tell me something slow")
    expect(last(page)).to_have_attribute("aria-busy", "true")
    expect(last(page)).to_contain_text("drop 3")
    assert "drop 199" not in last(page).inner_text()
    expect(last(page)).to_contain_text(re.compile(r"~[\d.]+ tokens/s"))
    assert fake.bodies[0]["stream"] is True
    assert fake.bodies[0]["model"] == "deepwell-tiny"
    page.get_by_label("Stop", exact=True).click()


def test_stop_keeps_the_text_and_frees_the_server(page: Page, fake: Fake) -> None:
    say(page, "a slow one to stop")
    expect(last(page)).to_contain_text("drop 2")
    page.get_by_label("Stop", exact=True).click()
    expect(last(page)).to_contain_text("Stopped.")
    assert "drop 2" in answer(page)
    expect(page.get_by_label("Send", exact=True)).to_be_visible()
    assert fake.let_go("a slow one to stop")


def test_escape_stops(page: Page) -> None:
    say(page, "something slow")
    expect(last(page)).to_contain_text("drop 1")
    page.keyboard.press("Escape")
    expect(last(page)).to_contain_text("Stopped.")


def test_usage_and_speed_stand_under_the_answer(page: Page) -> None:
    ask(page, "pause a little")
    stats = last(page).locator(".stats").inner_text()
    assert "12 tokens" in stats
    assert "prompt 96, 64 from cache" in stats
    assert re.search(r"first after \d+ ms", stats)
    assert re.search(r"[\d.]+ tokens/s", stats)


def test_regenerate_keeps_both_versions(page: Page, fake: Fake) -> None:
    assert ask(page, "hello") == "Answer 1 to: hello"
    page.get_by_label("Regenerate").click()
    expect(last(page)).to_contain_text("Answer 2 to: hello")
    expect(last(page)).to_contain_text("2 / 2")
    page.get_by_label("Previous version").click()
    expect(last(page)).to_contain_text("Answer 1 to: hello")
    assert len(fake.bodies) == 2
    assert fake.bodies[0] == fake.bodies[1]


def test_editing_a_message_continues_from_there(page: Page, fake: Fake) -> None:
    ask(page, "first")
    ask(page, "second")
    page.locator(".message.user").first.hover()
    page.get_by_label("Edit message").first.click()
    page.get_by_role("textbox", name="Edit message").fill("changed")
    page.keyboard.press("Enter")
    expect(page.locator(".message")).to_have_count(2)
    assert answer(page) == "Answer 1 to: changed"
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "changed"}]
    page.locator(".message.user").hover()
    page.get_by_label("Previous version").first.click()
    expect(page.locator(".message")).to_have_count(4)


def test_an_edit_can_be_given_up(page: Page, fake: Fake) -> None:
    ask(page, "first")
    page.get_by_label("Message", exact=True).press("ArrowUp")
    page.get_by_role("textbox", name="Edit message").fill("no")
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_text("first")
    assert len(fake.bodies) == 1


def test_the_whole_branch_is_sent(page: Page, fake: Fake) -> None:
    ask(page, "one")
    ask(page, "two")
    assert fake.bodies[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Answer 1 to: one"},
        {"role": "user", "content": "two"},
    ]


def test_message_and_code_can_be_copied(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "show markdown")
    page.get_by_label("Copy code").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("def reverse(items):\n")
    assert copied.endswith("# the same list")
    page.get_by_label("Copy answer").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("## Reversing\n")


def test_copy_works_without_the_clipboard_interface(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "hello")
    page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new Error('not on plain http')))")
    page.get_by_label("Copy answer").click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Answer 1 to: hello"


def test_markdown_and_code_are_shown(page: Page) -> None:
    ask(page, "show markdown")
    body = last(page).locator("> .markdown")
    expect(body.locator("h3")).to_have_text("Reversing")
    expect(body.locator("strong")).to_have_text("list")
    expect(body.locator("table td").first).to_have_text("in place")
    keyword = body.locator("pre .hl-keyword").first
    assert keyword.inner_text() == "def"
    plain = body.locator("pre").evaluate("e => getComputedStyle(e).color")
    assert keyword.evaluate("e => getComputedStyle(e).color") != plain
    assert body.locator("a").get_attribute("rel") == "noopener noreferrer nofollow"


def test_markup_in_an_answer_is_inert(page: Page) -> None:
    ask(page, "please inject")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert last(page).locator("script, img, iframe, .markdown svg:not(.icon), a[href^=javascript]").count() == 0
    expect(last(page)).to_contain_text("<script>window.hacked = 1</script>")
    expect(last(page)).to_contain_text('<b onmouseover="window.hacked=3">bold</b>')


def test_markup_in_a_message_or_title_is_inert(page: Page) -> None:
    text = "<img src=x onerror='window.hacked=1'>"
    ask(page, text)
    expect(page.locator(".bubble")).to_have_text(text)
    expect(page.locator("#conversations .title")).to_have_text(text)
    assert page.evaluate("window.hacked") is None


def test_reasoning_is_folded_away_when_the_answer_comes(page: Page) -> None:
    assert ask(page, "think first") == "Thought through."
    expect(page.locator(".thought-text")).to_be_hidden()
    page.get_by_text("Thought", exact=True).click()
    expect(page.locator(".thought-text")).to_have_text("Let me see.")


def test_tool_calls_are_readable(page: Page) -> None:
    assert ask(page, "use a tool") == "I ask."
    calls = last(page).locator(".call")
    expect(calls).to_have_count(2)
    expect(calls.first).to_contain_text("Calls weather")
    assert json.loads(calls.first.locator("pre").inner_text()) == {"city": "<b>K</b>"}
    expect(calls.last).to_contain_text("Calls clock")


def test_thinking_can_be_asked_for(page: Page, fake: Fake) -> None:
    ask(page, "first")
    page.get_by_label("Settings").click()
    page.get_by_label("Thinking before an answer").select_option("on")
    page.keyboard.press("Escape")
    ask(page, "second")
    fake.models = [{"id": "plain", "capabilities": ["completion", "chat"]}]
    page.reload()
    ask(page, "third")
    assert [body.get("thinking") for body in fake.bodies] == [None, {"type": "enabled"}, None]
    page.get_by_label("Settings").click()
    expect(page.get_by_label("System prompt")).to_be_visible()
    expect(page.get_by_label("Thinking before an answer")).to_have_count(0)


def test_waiting_in_the_queue_is_said(page: Page) -> None:
    say(page, "queue")
    expect(last(page)).to_contain_text("Waiting for a place in the queue")
    assert answer(page) == "At last."


def test_a_full_server_is_said_with_a_retry_that_works(page: Page, fake: Fake) -> None:
    ask(page, "busy day")
    expect(last(page).locator(".notice.error")).to_contain_text("The queue is full. (429) Try again in 2 s.")
    page.get_by_role("button", name="Try again").click()
    expect(last(page)).to_contain_text("Answer 2 to: busy day")
    expect(page.locator(".message.assistant")).to_have_count(1)
    expect(page.locator(".notice")).to_have_count(0)


def test_a_connection_lost_in_an_answer_keeps_the_text(page: Page) -> None:
    assert ask(page, "cut it").startswith("Half an ans")
    expect(last(page).locator(".notice.error")).to_contain_text("The connection was lost")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_lost_server_is_said_and_found_again(page: Page, context: BrowserContext) -> None:
    context.set_offline(True)
    expect(page.locator("#banners")).to_contain_text("The server cannot be reached")
    ask(page, "anyone?")
    expect(last(page)).to_contain_text("The server cannot be reached")
    context.set_offline(False)
    expect(page.locator("#banners")).to_be_empty()
    page.get_by_role("button", name="Try again").click()
    expect(last(page)).to_contain_text("Answer 1 to: anyone?")


def test_history_survives_a_reload(page: Page) -> None:
    ask(page, "remember me")
    page.goto("/")
    page.reload()
    expect(page.locator(".empty-state")).to_be_visible()
    page.get_by_role("button", name="remember me", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("remember me")
    expect(last(page)).to_contain_text("Answer 1 to: remember me")
    expect(last(page).locator(".stats")).to_contain_text("12 tokens")


def test_an_answer_goes_on_while_another_chat_is_open(page: Page) -> None:
    say(page, "pause here")
    page.keyboard.press("Control+k")
    ask(page, "second chat")
    page.get_by_role("button", name="pause here").first.click()
    assert answer(page) == "Water finds its own way downhill."


def test_conversations_are_renamed_deleted_and_brought_back(page: Page) -> None:
    ask(page, "old name")
    page.get_by_label("Rename old name").click()
    page.get_by_label("New title").fill("new name")
    page.keyboard.press("Enter")
    expect(page.locator("#conversations .title")).to_have_text("new name")
    page.get_by_label("Delete new name").click()
    expect(page.locator("#conversations li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#conversations .title")).to_have_text("new name")
    page.reload()
    expect(page.locator("#conversations .title")).to_have_text("new name")


def test_all_conversations_are_exported_deleted_and_imported(page: Page, tmp_path: Path) -> None:
    ask(page, "keep this")
    with page.expect_download() as download:
        page.get_by_label("Export conversations").click()
    file = tmp_path / "export.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["conversations"][0]["messages"][0]["text"] == "keep this"
    page.get_by_label("Delete all conversations").click()
    page.get_by_role("button", name="Delete all", exact=True).click()
    expect(page.locator("#conversations li")).to_have_count(0)
    page.reload()
    expect(page.locator("#no-conversations")).to_be_visible()
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Import conversations").click()
    chooser.value.set_files(file)
    expect(page.locator("#conversations .title")).to_have_text("keep this")


def test_a_foreign_file_is_not_imported(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Import conversations").click()
    chooser.value.set_files({"name": "x.json", "mimeType": "application/json", "buffer": b'{"a": 1}'})
    expect(page.locator(".toast")).to_contain_text("not an export of Deepwell conversations")


def test_enter_sends_shift_enter_does_not_and_control_k_starts_anew(page: Page, fake: Fake) -> None:
    box = page.get_by_label("Message", exact=True)
    expect(box).to_be_focused()
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    assert fake.bodies == []
    page.keyboard.press("Enter")
    answer(page)
    assert fake.bodies[0]["messages"][0]["content"] == "line one\nline two"
    page.keyboard.press("Control+k")
    expect(page.locator(".message")).to_have_count(0)
    expect(box).to_be_focused()


def test_shortcuts_are_listed(page: Page) -> None:
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog")).to_contain_text("New chat")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_an_example_starts_a_chat(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="Write a function").click()
    answer(page)
    assert "Fibonacci" in fake.bodies[0]["messages"][0]["content"]


def test_screen_readers_hear_the_answer(page: Page) -> None:
    ask(page, "hello")
    expect(page.locator("#announcer")).to_have_text("Answer complete. Answer 1 to: hello")


def test_no_built_file_names_another_server() -> None:
    files = [file for file in STATIC.rglob("*") if file.suffix in {".html", ".css", ".svg"} or file.name == "theme.js"]
    assert len(files) == 8
    addresses = {found for file in files for found in re.findall(r"(?:https?:)?//[\w.]+[^\"'\s)]*", file.read_text())}
    assert {found for found in addresses if "." in found} == {"http://www.w3.org/2000/svg"}
