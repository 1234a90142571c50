"""Settings, the Complete mode, themes and small screens, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from fake_server import Fake
from playwright.sync_api import Browser, BrowserContext, Page, expect


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Send", exact=True).click()
    expect(page.locator(".message.assistant").last).to_have_attribute("aria-busy", "false")


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_settings_are_sent_and_remembered(page: Page, fake: Fake) -> None:
    page.keyboard.press("Control+,")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Top-p").fill("0.9")
    page.get_by_label("Max tokens").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Stop texts").fill("END")
    page.reload()
    say(page, "hello")
    body = fake.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    sent = {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert sent == {"temperature": 0.3, "top_p": 0.9, "max_tokens": 40, "seed": 7, "stop": ["END"]}
    assert "top_k" not in body


def test_a_wrong_setting_is_named_and_not_sent(page: Page, fake: Fake) -> None:
    page.get_by_label("Settings").click()
    page.get_by_label("Temperature").fill("3")
    expect(page.get_by_text("Temperature must be a number from 0 to 2.")).to_be_visible()
    expect(page.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    page.keyboard.press("Escape")
    say(page, "hello")
    assert fake.bodies[0]["temperature"] == 0.3


def test_the_page_is_milder_than_the_server_where_the_model_advises_nothing(page: Page, fake: Fake) -> None:
    page.keyboard.press("Control+,")
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "the page's own: 0.3")
    expect(page.get_by_label("Top-p")).to_have_attribute("placeholder", "the page's own: 0.9")
    expect(page.get_by_label("Seed")).to_have_attribute("placeholder", "server's choice")
    page.get_by_label("Temperature").fill("0.8")
    page.keyboard.press("Escape")
    say(page, "hello")
    assert (fake.bodies[0]["temperature"], fake.bodies[0]["top_p"]) == (0.8, 0.9)


def test_a_models_advice_is_left_to_the_server(page: Page, fake: Fake) -> None:
    fake.models = [{"id": "advised", "sampling": {"temperature": 0.6}}]
    page.reload()
    page.wait_for_selector("#status-dot[data-state=online]")
    say(page, "hello")
    page.keyboard.press("Control+,")
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "the model's advice: 0.6")
    expect(page.get_by_label("Top-p")).to_have_attribute("placeholder", "server's choice")
    assert not fake.bodies[0].keys() & {"temperature", "top_p"}


def test_an_api_key_is_sent_to_the_server(page: Page) -> None:
    page.get_by_label("Settings").click()
    page.get_by_label("API key").fill("sk-test")
    with page.expect_request("**/v1/models") as request:
        page.keyboard.press("Enter")
    assert request.value.header_value("authorization") == "Bearer sk-test"


def test_a_gap_is_filled_and_accepted(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_label("Before the gap").fill("def f():\n    ")
    page.get_by_label("After the gap").fill("\n    return 1\n")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#middle")).to_have_text("middle()\n")
    expect(page.get_by_text("prompt 96, 64 from cache")).to_be_visible()
    body = fake.bodies[0]
    assert (body["prompt"], body["suffix"]) == ("def f():\n    ", "\n    return 1\n")
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0.2, 128, True)
    page.keyboard.press("Control+Shift+Enter")
    expect(page.get_by_label("Before the gap")).to_have_value("def f():\n    middle()\n")
    expect(page.locator("#middle")).to_be_hidden()


def test_text_is_continued_without_a_suffix_and_the_draft_survives(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_label("Before the gap").fill("def f(n):\n")
    page.locator("#complete").get_by_role("button", name="Complete").click()
    expect(page.locator("#middle")).to_have_text("    return n\n")
    assert "suffix" not in fake.bodies[0]
    page.reload()
    expect(page.get_by_label("Before the gap")).to_have_value("def f(n):\n")


def test_a_completion_can_be_stopped(page: Page, fake: Fake) -> None:
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_label("Before the gap").fill("slow")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#middle")).to_contain_text("drop 2")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Accept")).to_be_visible()
    assert fake.let_go("slow")


def test_a_model_that_only_completes_opens_in_the_complete_mode(page: Page, fake: Fake) -> None:
    fake.models = [{"id": "coder", "capabilities": ["completion"], "context_length": 2048}]
    page.reload()
    expect(page.get_by_label("Before the gap")).to_be_visible()
    expect(page.get_by_label("Model")).to_have_attribute("title", "coder: 2048 tokens of context")


def test_a_model_that_fills_no_gaps_is_not_asked_to(page: Page, fake: Fake) -> None:
    fake.models = [{"id": "plain", "capabilities": ["completion", "chat"]}]
    page.reload()
    page.get_by_role("button", name="Complete", exact=True).click()
    expect(page.get_by_label("After the gap")).to_be_hidden()
    expect(page.get_by_role("button", name="Fill a loop")).to_have_count(0)
    page.get_by_role("button", name="Continue a class").click()
    expect(page.locator("#middle")).to_have_text("    return n\n")
    assert "suffix" not in fake.bodies[0]


def test_what_a_model_cannot_do_is_not_offered(page: Page, fake: Fake) -> None:
    say(page, "kept")
    fake.models = [{"id": "base", "capabilities": ["completion"]}]
    page.goto("/")
    expect(page.get_by_label("Before the gap")).to_be_visible()
    expect(page.locator("#complete .nature")).to_contain_text("trained to continue text, not to chat")
    expect(page.get_by_role("button", name="Chat", exact=True)).to_be_hidden()
    expect(page.locator("#new-chat")).to_be_hidden()
    page.get_by_role("button", name="kept", exact=True).click()
    expect(page.locator(".bubble")).to_have_text("kept")
    page.get_by_role("button", name="Complete", exact=True).click()
    expect(page.get_by_role("button", name="Chat", exact=True)).to_be_hidden()


def test_the_embedded_toy_says_what_it_is_and_how_to_get_a_real_model(page: Page, fake: Fake) -> None:
    fake.models = [{"id": "deepwell", "capabilities": ["completion", "fim"]}]
    page.reload()
    line = page.locator("#complete .nature")
    expect(line).to_contain_text("the embedded model, a toy")
    expect(line).to_contain_text("deepwell serve ")


def test_the_chosen_model_is_asked(page: Page, fake: Fake) -> None:
    fake.models = [{"id": "one"}, {"id": "two"}]
    page.reload()
    page.get_by_label("Model").select_option("two")
    page.reload()
    expect(page.get_by_label("Model")).to_have_value("two")
    say(page, "hello")
    assert fake.bodies[0]["model"] == "two"


def test_the_theme_follows_the_system_until_one_is_chosen(page: Page) -> None:
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    assert light != dark
    page.get_by_label("Theme: system").click()
    assert background(page) == light
    page.reload()
    assert background(page) == light
    page.get_by_label("Theme: light").click()
    page.emulate_media(color_scheme="light")
    assert background(page) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 for the colours that carry text."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    pairs = [("ink", "bg"), ("ink-2", "bg"), ("ink-2", "sunk"), ("accent", "bg"), ("accent-ink", "accent"),
             ("ink", "accent-soft"), ("danger", "danger-soft")]  # fmt: skip
    for ink, ground in pairs:
        assert contrast(page, ink, ground) >= 4.5, (ink, ground)


def contrast(page: Page, ink: str, ground: str) -> float:
    read = """name => {
      const probe = document.body.appendChild(document.createElement("i"));
      probe.style.color = `var(--${name})`;
      const color = getComputedStyle(probe).color;
      probe.remove();
      return color;
    }"""
    light = sorted(luminance(page.evaluate(read, name)) for name in (ink, ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.fixture
def phone(browser: Browser, fake: Fake) -> Iterator[Page]:
    context: BrowserContext = browser.new_context(
        base_url=fake.url, viewport={"width": 360, "height": 680}, has_touch=True, is_mobile=True
    )
    context.set_default_timeout(8000)
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector("#status-dot[data-state=online]")
    yield page
    context.close()


def chatting(page: Page) -> None:
    say(page, "show markdown")
    say(page, "x" * 400)


def completing(page: Page) -> None:
    page.get_by_role("button", name="Complete", exact=True).tap()
    page.get_by_role("button", name="Fill a loop").tap()
    expect(page.get_by_role("button", name="Accept")).to_be_visible()


def settling(page: Page) -> None:
    page.get_by_label("Settings").tap()


def listing(page: Page) -> None:
    say(page, "y" * 400)
    page.get_by_label("Conversations", exact=True).and_(page.locator("button")).tap()
    expect(page.get_by_label(re.compile("^Rename"))).to_be_in_viewport()


@pytest.mark.parametrize("use", [lambda _: None, chatting, completing, settling, listing])
def test_a_phone_never_scrolls_sideways(phone: Page, use: Callable[[Page], None]) -> None:
    use(phone)
    phone.wait_for_timeout(300)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    wide = """[...document.querySelectorAll("#scroller, #complete, #sidebar, dialog")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.id || e.tagName)"""
    assert phone.evaluate(wide) == []


def test_the_sidebar_of_a_phone_opens_over_the_page_and_closes(phone: Page) -> None:
    expect(phone.locator("#new-chat")).not_to_be_in_viewport()
    phone.get_by_label("Conversations", exact=True).and_(phone.locator("button")).tap()
    expect(phone.locator("#new-chat")).to_be_in_viewport()
    phone.locator("#scrim").tap(position={"x": 340, "y": 400})
    expect(phone.locator("#new-chat")).not_to_be_in_viewport()


def test_every_control_has_a_name(page: Page) -> None:
    say(page, "show markdown")
    nameless = """[...document.querySelectorAll("button, input, select, textarea, [role=img]")]
        .filter(e => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
        .map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.get_by_label("Settings").click()
    assert page.evaluate(nameless) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Complete", exact=True).click()
    assert page.evaluate(nameless) == []
