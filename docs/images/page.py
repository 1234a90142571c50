"""The README's picture: `deepwell serve SmolLM2-135M-Instruct.Q4_1.gguf`, then `python docs/images/page.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTIONS = ("Name the capital of France.", "What is a prime number? Answer in one sentence.")
ADDRESS = sys.argv[1] if sys.argv[1:] else "http://127.0.0.1:8000/"

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1180, "height": 700}, color_scheme="light")
    page.goto(ADDRESS)
    page.get_by_role("button", name="Settings").first.click()
    page.get_by_label("Temperature").first.fill("0")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    for number, question in enumerate(QUESTIONS, 1):
        page.fill("#composer-text", question)
        page.keyboard.press("Enter")
        page.get_by_text(re.compile(r"prompt \d")).nth(number - 1).wait_for()
    page.mouse.move(700, 500)
    page.wait_for_timeout(500)
    page.screenshot(path=Path(__file__).with_name("page.png"))
    browser.close()
