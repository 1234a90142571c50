"""The picture of the books: a made-up day of a small server, written into a ledger and shown by `deepwell serve`."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, sync_playwright

from deepwell.accounts import Keys, Ledger, Row, open_database
from deepwell.accounts.money import Price

HOUR = 3600 * 10**6
PRICE = Price(70_000, 270_000, 1_100_000)
TABLE = 'hourly_cost = "0.12"\n'


def day(until: int) -> list[Row]:
    """Requests of the day before a moment in microseconds: quiet at night, most prompts found in the cache."""
    chance = random.Random(6)
    rows = []
    for hour in range(24):
        start = until - (24 - hour) * HOUR
        busy = 1.15 + math.sin((time.gmtime(start // 10**6).tm_hour - 8) / 24 * math.tau)
        for number in range(int(90 * busy)):
            hit, miss = 64 * chance.randrange(100), chance.randrange(4000)
            output = chance.randrange(50, 1500)
            first = int((80_000 + miss * 90) * chance.lognormvariate(0.2, 0.4) * (0.8 + busy / 4))
            whole = first + int(output * 22_000 * (0.8 + busy / 5))
            at = start + chance.randrange(HOUR)
            tokens = {"hit": hit, "miss": miss, "output": output, "reasoning": 0}
            prices = {"price_hit": PRICE.hit, "price_miss": PRICE.miss, "price_output": PRICE.output}
            times = {"started": at, "ended": at + whole, "first_us": first, "whole_us": whole}
            what: dict[str, Any] = {"account": 1, "key": 1, "model": "deepseek-chat", "kind": "chat", "reason": "stop"}
            cost = PRICE.cost(hit, miss, output)
            rows.append(Row(f"{hour}-{number}", **what, **times, **tokens, **prices, currency="USD", cost=cost))
    return rows


with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
    path, prices = Path(folder) / "accounts.sqlite", Path(folder) / "prices.toml"
    prices.write_text(TABLE)
    database = open_database(str(path))
    secret, _ = Keys(database).add("ada", role="admin")
    now = time.time_ns() // 1000
    Ledger(database).append(day(now - now % HOUR), now)
    database.close()
    command = [sys.executable, "-m", "deepwell", "serve", "--port", "9351", "--log", "none"]
    command += ["--database", str(path), "--prices", str(prices)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1180, "height": 1010}, color_scheme="light")
    page.add_init_script(f"sessionStorage.setItem('deepwell.key', '{secret}')")
    for _ in range(200):
        try:
            page.goto("http://127.0.0.1:9351/books")
            break
        except Error:
            time.sleep(0.2)
    page.locator(".chart svg").last.wait_for()
    page.screenshot(path=Path(__file__).with_name("books.png"))
    browser.close()
    server.terminate()
    server.wait()
