"""A comparison as a picture: one group of bars per cell, drawn as plain SVG that reads well on light and dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from xml.sax.saxutils import escape

from deepwell.bench.compare import Comparison, Row, Score

_WIDTH = 760
_LEFT = 112  # engine names end here
_RIGHT = 150  # room for the number after the longest bar
_BAR, _GAP, _GROUP_GAP, _TITLE = 16, 4, 18, 22
_COLOURS = ("#2f7fd6", "#e08a1e", "#4a9d5b", "#a569bd", "#888888")
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px }
.head { font-weight: 600; font-size: 15px }
.dim { fill: #6a737d; font-size: 11px }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .dim { fill: #9aa4ae } }"""


def draw(comparison: Comparison) -> str:
    """The picture's text. Bars of a group share a scale of their own; the same comparison gives the same bytes."""
    lines: list[str] = []
    y = 26
    lines.append(_text(0, y, f"{comparison.model} on {comparison.cpu}, {comparison.threads} threads", "head"))
    y += 18
    lines.append(
        _text(
            0,
            y,
            f"medians of {comparison.rounds} rounds taken in turns, thin lines: spread, x: times better Deepwell is",
            "dim",
        )
    )
    for row in comparison.rows:
        if any(score.median for score in row.scores):
            y += _GROUP_GAP + _TITLE
            better = "more is better" if row.more_is_better else "less is better"
            lines.append(_text(0, y - 7, row.title, "title"))
            lines.append(_text(_WIDTH, y - 7, f"{amount_unit(row.unit)}, {better}", "dim", "end"))
            lines += _bars(row, y)
            y += len(row.scores) * (_BAR + _GAP)
    notes = dict.fromkeys(score.note for row in comparison.rows for score in row.scores if score.note)
    for note in notes:
        for line in textwrap.wrap("* " + note, 120):
            y += 16
            lines.append(_text(0, y, line, "dim"))
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 {_WIDTH + 24} {height}" width="{_WIDTH + 24}" '
        f'height="{height}" role="img">\n<title>{escape(comparison.model)}: engines compared</title>\n'
        f"<style>\n{_STYLE}\n</style>\n" + "\n".join(lines) + "\n</svg>\n"
    )


def amount(value: float, unit: str) -> str:
    """A number for people, without its unit."""
    scaled = value / 1e9 if unit == "bytes" else value
    return f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:,.3g}" if scaled < 1 else f"{scaled:,.2f}"


def amount_unit(unit: str) -> str:
    """The unit in which `amount` writes."""
    return "GB" if unit == "bytes" else unit


def _bars(row: Row, y: int) -> Iterator[str]:
    most = max(score.high or 0.0 for score in row.scores)
    room = _WIDTH - _LEFT - _RIGHT
    for index, score in enumerate(row.scores):
        top = y + index * (_BAR + _GAP)
        middle = top + _BAR - 4
        yield _text(_LEFT - 8, middle, score.engine, "", "end")
        if score.median is None:
            yield _text(_LEFT, middle, "failed" if score.error else "not measured", "dim")
            continue
        length = room * score.median / most
        colour = _COLOURS[min(index, len(_COLOURS) - 1)]
        yield f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        yield from _spread(score, top + _BAR / 2, room / most)
        end = _LEFT + room * (score.high or score.median) / most + 7
        ratio = f" (x {score.ratio:.2f})" if score.ratio else ""
        star = "*" if score.note else ""
        yield _text(end, middle, f"{amount(score.median, row.unit)}{star}{ratio}")


def _spread(score: Score, y: float, scale: float) -> Iterator[str]:
    low, high = (score.low or 0.0) * scale, (score.high or 0.0) * scale
    if high - low > 1:
        yield f'<path d="M{_LEFT + low:.1f} {y:.1f}H{_LEFT + high:.1f}" stroke="#8b949e" stroke-width="2"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    marks = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{x:.0f}" y="{y:.0f}"{marks}>{escape(text)}</text>'
