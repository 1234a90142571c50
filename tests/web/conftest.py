"""The page in a real browser against a scripted server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from fake_server import Fake, start

CHROMIUM = Path("/usr/bin/chromium")
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


# Of the module, not the session: Playwright's running event loop would be in the way of other folders' async tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"The page's tests need a browser at {CHROMIUM}: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Fake]:
    fake = Fake()
    stop = start(fake)
    yield fake
    stop()


@pytest.fixture
def fake(running: Fake) -> Fake:
    running.reset()
    return running


@pytest.fixture
def context(browser: Browser, fake: Fake) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=fake.url, color_scheme="light", viewport={"width": 1180, "height": 800})
    context.set_default_timeout(8000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, fake: Fake) -> Iterator[Page]:
    """The page, loaded. Whatever a test does, it may ask only its own server, and must log no error."""
    strangers: list[str] = []
    errors: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: None if allowed(request.url, fake.url) else strangers.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if serious(message.type, message.text) else None)
    page.goto("/")
    page.wait_for_selector("#status-dot[data-state=online]")
    yield page
    assert strangers == []
    assert errors == []


@pytest.fixture
def second(page: Page, context: BrowserContext) -> Page:
    """Another tab of the same browser, empty so far."""
    return context.new_page()


def allowed(url: str, own: str) -> bool:
    return url.startswith((own + "/", f"blob:{own}/"))


def serious(kind: str, text: str) -> bool:
    """Chromium itself logs each failed request; those are what some tests ask for."""
    return kind == "error" and not text.startswith("Failed to load resource")
