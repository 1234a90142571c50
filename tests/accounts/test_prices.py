"""A price is that of the model and the moment; a table that cannot be is refused by the name of its key."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.accounts import Prices
from deepwell.accounts.money import MAX_PRICE, MAX_TOKENS, Price, micro, units
from deepwell.accounts.price_history import PRESETS
from deepwell.errors import ConfigError


def read(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return Prices.read(path)


def at(prices: Prices, text: str, model: str = "m", kind: str = "chat") -> tuple[int, int, int, str]:
    price = prices.at(model, int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**6, kind=kind)
    return price.hit, price.miss, price.output, price.currency


def test_without_a_table_everything_is_free(tmp_path: Path) -> None:
    assert Prices().at("m", 0).free
    assert read(tmp_path, "").at("m", 0).free


def test_nights_of_2025(tmp_path: Path) -> None:
    """From 16:30 to 00:30 UTC V3 cost half, and R1 a quarter."""
    prices = read(tmp_path, '[models.m]\npreset = "deepseek-r1-2025-02-off-peak"\ncurrency = "CNY"')
    day, night = (1_000_000, 4_000_000, 16_000_000, "CNY"), (250_000, 1_000_000, 4_000_000, "CNY")
    for moment, price in (
        ("2025-03-01T16:29:59", day), ("2025-03-01T16:30:00", night), ("2025-03-02T00:29:59", night),
        ("2025-03-02T00:30:00", day),
    ):  # fmt: skip
        assert at(prices, moment) == price


def test_peaks_of_2026_spare_weekends(tmp_path: Path) -> None:
    prices = read(tmp_path, '[models.m]\npreset = "deepseek-v4-pro-2026-08"')
    off, peak = (22_000, 660_000, 1_980_000, "USD"), (44_000, 1_320_000, 3_960_000, "USD")
    for moment, price in (
        ("2026-09-04T01:00:00", peak), ("2026-09-04T03:59:59", peak), ("2026-09-04T04:00:00", off),
        ("2026-09-04T09:59:59", peak), ("2026-09-05T09:00:00", off), ("2026-09-07T09:00:00", peak),
    ):  # fmt: skip
        assert at(prices, moment) == price


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_price(tmp_path: Path, name: str) -> None:
    for currency in PRESETS[name]:
        prices = read(tmp_path, f'[models."{name}"]\npreset = "{name}"\ncurrency = "{currency}"')
        hit, miss, output, of = at(prices, "2026-09-04T02:00:00", name)
        assert 0 < hit <= miss <= output
        assert of == currency


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_accounts_lists_every_preset(name: str) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "accounts.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith(f"| `{name}` ")]
    for preset in PRESETS[name].values():
        for price in (preset, *preset.get("hours", ())):
            assert f"{price['hit']} / {price['miss']} / {price['output']}" in line


def test_hours_in_a_zone_with_summer_time(tmp_path: Path) -> None:
    prices = read(
        tmp_path,
        """
        currency = "EUR"
        time_zone = "Europe/Berlin"
        batch_factor = 0.25
        [models."*"]
        miss = 1
        output = 2.5
        [[models."*".hours]]
        from = "08:00"
        to = "18:00"
        factor = 1
        [[models."*".hours]]
        from = "00:00"
        to = "24:00"
        weekdays = ["sun"]
        factor = 0.000001
        """,
    )
    assert at(prices, "2026-01-05T06:59:59") == (10**6, 10**6, 2_500_000, "EUR")
    assert at(prices, "2026-07-05T06:00:00") == (10**6, 10**6, 2_500_000, "EUR"), "eight o'clock, also on a Sunday"
    assert at(prices, "2026-07-05T05:59:59") == (1, 1, 3, "EUR")
    assert at(prices, "2026-07-06T05:59:59", kind="batch") == (250_000, 250_000, 625_000, "EUR")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.m]\nmiss = -1\noutput = 1", "models.m.miss must be from 0.00 to 1000000.00, not "),
        ("[models.m]\nmiss = nan\noutput = 1", "models.m.miss must be a number"),
        ("[models.m]\nmiss = 1\noutput = inf", "models.m.output must be a number"),
        ("[models.m]\nmiss = 1\noutput = 1e300", "models.m.output must be from 0.00"),
        ("[models.m]\nmiss = 1\noutput = 1e999999999999", "models.m.output must be a number"),
        ("[models.m]\nmiss = 1\noutput = 0.0000001", "six decimals at most"),
        ("[models.m]\nmiss = 1\noutput = true", "models.m.output must be a number"),
        ("[models.m]\nmiss = 1", "models.m.output is missing"),
        ("[models.m]\nmis = 1", "unknown field `mis`"),
        ('[models.m]\npreset = "x"', "models.m.preset 'x' is unknown; there are deepseek-v2-2024-05"),
        ('[models.m]\npreset = "deepseek-v4-pro-2026-08"\ncurrency = "CNY"', "has prices in USD, not in CNY"),
        ('[models.m]\npreset = "deepseek-v2-2024-05"\nmiss = 1', "models.m.preset stands for"),
        ('currency = "dollars"', "currency"),
        ("batch_factor = -0.5", "batch_factor must be from 0.00 to 1.00"),
        ("hourly_cost = -1", "hourly_cost must be from 0.00"),
        ("[grant]\namount = -5", "grant.amount must be from 0.00"),
        ('[models.m]\nmiss=1\noutput=1\n[[models.m.hours]]\nfrom="25:00"\nto="01:00"\nfactor=1', "models.m.hours.from"),
        ('[models.m]\nmiss=1\noutput=1\n[[models.m.hours]]\nfrom="1:00"\nto="01:00"\nfactor=1', "models.m.hours.from"),
        (
            '[models.m]\nmiss=1\noutput=1\n[[models.m.hours]]\nfrom="02:00"\nto="01:00"\nfactor=1\ntime_zone="../etc"',
            "models.m.hours.time_zone '../etc' is not known here",
        ),
        ("models = 3", "models"),
        ("[models", "is not valid TOML"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, text)
    assert said in str(refusal.value)
    assert "prices.toml" in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.toml"):
        Prices.read(tmp_path / "none.toml")


@given(st.integers(-(2**80), 2**80))
def test_a_clock_that_is_off_still_gives_a_price(when: int) -> None:
    prices = Prices.read(Path(__file__).with_name("prices.toml"))
    assert prices.at("m", when).output in (1_980_000, 3_960_000)


@given(st.integers(0, MAX_PRICE), st.integers(0, MAX_TOKENS), st.integers(0, MAX_TOKENS), st.integers(0, MAX_TOKENS))
def test_a_cost_is_rounded_once_and_fits_64_bits(price: int, hit: int, miss: int, output: int) -> None:
    cost = Price(price, price, price).cost(hit, miss, output)
    assert 0 <= cost < 2**63
    assert abs(cost * 10**6 - (hit + miss + output) * price) <= 500_000


@given(st.integers(-(10**15), 10**15))
def test_units_are_read_as_they_are_written(amount: int) -> None:
    assert micro(units(amount), "x", least=-(10**15)) == amount
