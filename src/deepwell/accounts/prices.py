"""What tokens cost, by model and moment, from a table in TOML. docs/accounts.md shows one.

A model has a price, and other prices for hours of the day, on some weekdays, in a time zone; the first hours that hold
a moment count. The price of a request is that of the moment when it arrived.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from deepwell.accounts.clock import utc
from deepwell.accounts.money import MAX_PRICE, MICRO, Price, micro
from deepwell.accounts.price_history import PRESETS
from deepwell.errors import ConfigError, shown
from deepwell.files import read_bounded

OTHERS = "*"
"""Names the price of models that the table does not name."""
BATCH = "batch"
"""The kind of request that costs less."""
_MAX_BYTES = 1 << 20

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Weekday, ...] = get_args(Weekday)
Currency = Annotated[str, Meta(pattern="^[A-Z]{3}$")]


class Hours(msgspec.Struct, frozen=True):
    """A price from `start` to before `end`, minutes of the day in `zone`, past midnight if `end` is not later.

    `days` are weekdays from Monday, 0, of the moment itself.
    """

    start: int
    end: int
    days: frozenset[int]
    zone: tzinfo
    price: Price

    def hold(self, when: datetime) -> bool:
        local = when.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        over_midnight = self.end <= self.start
        after, before = minute >= self.start, minute < self.end
        return (after or before if over_midnight else after and before) and local.weekday() in self.days


class Rate(msgspec.Struct, frozen=True):
    """A model's price, and those of hours that are different."""

    price: Price
    hours: tuple[Hours, ...] = ()

    def at(self, when: datetime) -> Price:
        return next((hours.price for hours in self.hours if hours.hold(when)), self.price)


class Welcome(msgspec.Struct, frozen=True):
    """What a new account is granted: micro-units, for so many days or for good."""

    amount: int
    currency: str
    days: int | None


class Prices(msgspec.Struct, frozen=True):
    """The prices of models. Without a table everything is free. Money in micro-units."""

    rates: Mapping[str, Rate] = {}
    currency: str = "USD"
    batch_factor: Decimal = Decimal("0.5")
    welcome: Welcome | None = None
    hourly_cost: int = 0
    """What running the server costs in an hour, in `currency`."""

    @classmethod
    def read(cls, path: Path) -> Prices:
        """Raises ConfigError that names the file, the key and what is allowed."""
        try:
            content = tomllib.loads(read_bounded(path, _MAX_BYTES).decode(), parse_float=Decimal)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        try:
            return _prices(msgspec.convert(content, _Table))
        except (ConfigError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path}: {str(error).replace('`$.', '`')}") from None

    def knows(self, model: str) -> bool:
        """Whether the table says what a model costs."""
        return model in self.rates or OTHERS in self.rates

    def at(self, model: str, when: int, *, kind: str = "chat") -> Price:
        """The price of a request to `model` that arrived at `when` (microseconds, UTC). Batches cost a part of it, each
        price rounded to micro-units."""
        rate = self.rates.get(model) or self.rates.get(OTHERS)
        if rate is None:
            return Price(currency=self.currency)
        price = rate.at(utc(when))
        return _scaled(price, self.batch_factor) if kind == BATCH else price


class _Spans(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """One of a model's tables `hours`."""

    start: str
    end: str
    weekdays: tuple[Weekday, ...] = _DAYS
    time_zone: str | None = None
    factor: Any = None
    hit: Any = None
    miss: Any = None
    output: Any = None


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    preset: str | None = None
    currency: Currency | None = None
    hit: Any = None
    miss: Any = None
    output: Any = None
    hours: tuple[_Spans, ...] = ()


class _Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: Any
    currency: Currency | None = None
    days: Annotated[int, Meta(ge=1, le=36500)] | None = None


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    models: dict[str, _Model] = {}
    currency: Currency = "USD"
    time_zone: str = "UTC"
    batch_factor: Any = Decimal("0.5")
    hourly_cost: Any = 0
    grant: _Grant | None = None


def _prices(table: _Table) -> Prices:
    grant = table.grant
    return Prices(
        rates={name: _rate(f"models.{name}", model, table) for name, model in table.models.items()},
        currency=table.currency,
        batch_factor=_factor(table.batch_factor, "batch_factor"),
        welcome=None if grant is None else _welcome(grant, table.currency),
        hourly_cost=micro(table.hourly_cost, "hourly_cost"),
    )


def _welcome(grant: _Grant, currency: str) -> Welcome:
    return Welcome(micro(grant.amount, "grant.amount"), grant.currency or currency, grant.days)


def _rate(where: str, model: _Model, table: _Table) -> Rate:
    currency = model.currency or table.currency
    if model.preset is not None:
        if any(value is not None for value in (model.hit, model.miss, model.output)) or model.hours:
            raise ConfigError(f"{where}.preset stands for hit, miss, output and hours; leave these out")
        model = _preset(where, model.preset, currency)
        table = _Table()  # presets are in UTC
    price = _price(where, model, currency)
    return Rate(price, tuple(_hours(f"{where}.hours", span, price, table) for span in model.hours))


def _preset(where: str, name: str, currency: str) -> _Model:
    if name not in PRESETS:
        raise ConfigError(f"{where}.preset {shown(name)} is unknown; there are {', '.join(PRESETS)}")
    if currency not in PRESETS[name]:
        raise ConfigError(f"{where}.currency: {name} has prices in {', '.join(PRESETS[name])}, not in {currency}")
    return msgspec.convert(PRESETS[name][currency], _Model)


def _price(where: str, given: _Model | _Spans, currency: str) -> Price:
    """`miss` and `output` are needed; without a price of its own a hit costs what a miss does."""
    for name in ("miss", "output"):
        if getattr(given, name) is None:
            raise ConfigError(f"{where}.{name} is missing: the price of a million tokens")
    miss = micro(given.miss, f"{where}.miss", MAX_PRICE)
    hit = miss if given.hit is None else micro(given.hit, f"{where}.hit", MAX_PRICE)
    return Price(hit, miss, micro(given.output, f"{where}.output", MAX_PRICE), currency)


def _hours(where: str, span: _Spans, price: Price, table: _Table) -> Hours:
    if span.factor is None:
        price = _price(where, span, price.currency)
    elif any(value is not None for value in (span.hit, span.miss, span.output)):
        raise ConfigError(f"{where}.factor is of the model's price; leave out hit, miss and output")
    else:
        price = _scaled(price, _factor(span.factor, f"{where}.factor"))
    return Hours(
        start=_minute(f"{where}.from", span.start),
        end=_minute(f"{where}.to", span.end),
        days=frozenset(map(_DAYS.index, span.weekdays)),
        zone=_zone(where, span.time_zone or table.time_zone),
        price=price,
    )


def _minute(where: str, text: str) -> int:
    hours, colon, minutes = text.partition(":")
    if colon and len(text) == 5 and text.replace(":", "").isdecimal() and text.isascii():
        minute = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and minute <= 24 * 60:
            return minute
    raise ConfigError(f"{where} must be a time from 00:00 to 24:00, not {shown(text)}")


def _zone(where: str, name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            f"{where}.time_zone {shown(name)} is not known here; UTC always is, others are named as Asia/Shanghai"
        ) from None


def _factor(value: object, name: str) -> Decimal:
    return Decimal(micro(value, name, MICRO)) / MICRO


def _scaled(price: Price, factor: Decimal) -> Price:
    def part(whole: int) -> int:
        return int((whole * factor).quantize(Decimal(1), ROUND_HALF_UP))

    return Price(part(price.hit), part(price.miss), part(price.output), price.currency)
