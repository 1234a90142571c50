"""DeepSeek's own prices through the years, as presets: what a million tokens cost, in units of a currency.

A preset is named by the model and the month in which the price began.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Preset = Mapping[str, Any]
"""What the table of a model may say, for one currency."""

_WORKDAYS = ["mon", "tue", "wed", "thu", "fri"]
_NIGHT = {"from": "16:30", "to": "00:30"}


def _flat(hit: str, miss: str, output: str) -> Preset:
    return {"hit": hit, "miss": miss, "output": output}


def _at_night(price: Preset, night: Preset) -> Preset:
    """26 February to 5 September 2025: less from 16:30 to 00:30 UTC, the night in Beijing."""
    return {**price, "hours": [{**_NIGHT, **night}]}


def _at_peak(price: Preset, peak: Preset) -> Preset:
    """Since August 2026: more in office hours, which are two spans of UTC."""
    spans = ({"from": "01:00", "to": "04:00"}, {"from": "06:00", "to": "10:00"})
    return {**price, "hours": [{**span, "weekdays": _WORKDAYS, **peak} for span in spans]}


PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "deepseek-v2-2024-05": {"CNY": _flat("1", "1", "2"), "USD": _flat("0.14", "0.14", "0.28")},
    "deepseek-v2-2024-08": {"CNY": _flat("0.1", "1", "2"), "USD": _flat("0.014", "0.14", "0.28")},
    "deepseek-v3-2024-12": {"CNY": _flat("0.1", "1", "2"), "USD": _flat("0.014", "0.14", "0.28")},
    "deepseek-r1-2025-01": {"CNY": _flat("1", "4", "16"), "USD": _flat("0.14", "0.55", "2.19")},
    "deepseek-v3-2025-02": {"CNY": _flat("0.5", "2", "8"), "USD": _flat("0.07", "0.27", "1.10")},
    "deepseek-v3-2025-02-off-peak": {
        "CNY": _at_night(_flat("0.5", "2", "8"), _flat("0.25", "1", "4")),
        "USD": _at_night(_flat("0.07", "0.27", "1.10"), _flat("0.035", "0.135", "0.55")),
    },
    "deepseek-r1-2025-02-off-peak": {
        "CNY": _at_night(_flat("1", "4", "16"), _flat("0.25", "1", "4")),
        "USD": _at_night(_flat("0.14", "0.55", "2.19"), _flat("0.035", "0.135", "0.55")),
    },
    "deepseek-v3.1-2025-09": {"CNY": _flat("0.5", "4", "12"), "USD": _flat("0.07", "0.56", "1.68")},
    "deepseek-v3.2-2025-09": {"CNY": _flat("0.2", "2", "3"), "USD": _flat("0.028", "0.28", "0.42")},
    "deepseek-v4-flash-2026-04": {"CNY": _flat("0.02", "1", "2"), "USD": _flat("0.0028", "0.14", "0.28")},
    "deepseek-v4-pro-2026-04": {"USD": _flat("0.0145", "1.74", "3.48")},
    "deepseek-v4-pro-2026-04-reduced": {"CNY": _flat("0.025", "3", "6"), "USD": _flat("0.003625", "0.435", "0.87")},
    "deepseek-v4-flash-2026-08": {"USD": _at_peak(_flat("0.007", "0.22", "0.66"), _flat("0.014", "0.44", "1.32"))},
    "deepseek-v4-pro-2026-08": {"USD": _at_peak(_flat("0.022", "0.66", "1.98"), _flat("0.044", "1.32", "3.96"))},
    "deepseek-v4.1-flash-2026-09": {
        "CNY": _at_peak(_flat("0.02", "1", "4"), _flat("0.04", "2", "8")),
        "USD": _at_peak(_flat("0.003", "0.15", "0.60"), _flat("0.006", "0.30", "1.20")),
    },
}
