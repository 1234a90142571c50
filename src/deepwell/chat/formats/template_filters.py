"""The filters, tests and methods that a stranger's template may use, each charged before its work by what it handles.

Those whose result can be larger than what they are given, and those that can be slower, have a rule of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, cast

from jinja2 import Environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.tests import TESTS
from jinja2.utils import pass_environment

from deepwell.chat.formats.budget import ITEM, UNIT, Limit, Once, budget, each, seek

MAX_WIDTH = 64
"""Of an indent, a separator, a rounding."""
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

_Function = Callable[..., Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_QUICK = _words("count d default first last length")
_WHOLE = _words("abs capitalize e escape float int lower safe string upper")
_ITEMS = _words("dictsort items list map max min reject rejectattr reverse select selectattr sort unique")
_SORTS = _words("dictsort max min sort")
_TESTS = _words(
    "boolean defined even false float integer iterable lower mapping none number odd sequence string true undefined "
    "upper eq equalto ge gt le lt ne == != > >= < <="
)
METHODS: dict[type, frozenset[str]] = {
    str: _words(
        "strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith lower upper title "
        "capitalize find rfind index rindex count removeprefix removesuffix isdigit isalpha isalnum isspace isupper "
        "islower isnumeric isdecimal replace join"
    ),
    dict: _words("items keys values get"),
    list: _words("index count"),
    tuple: _words("index count"),
    LoopContext: _words("cycle changed"),
}
_STRIPS = _words("strip lstrip rstrip")
_SEEKS = _words("split rsplit partition rpartition find rfind index rindex count")


def filters() -> dict[str, _Function]:
    """By name, in templates."""
    allowed = {name: cast(_Function, FILTERS[name]) for name in _QUICK}
    allowed |= {name: _whole(cast(_Function, FILTERS[name])) for name in _WHOLE}
    allowed |= {name: _itemwise(name, cast(_Function, FILTERS[name])) for name in _ITEMS}
    return allowed | {
        "indent": _indent,
        "join": _join,
        "replace": replaced,
        "round": _round,
        "sum": _sum,
        "title": _title,
        "tojson": _to_json,
        "trim": _trim,
    }


def tests() -> dict[str, _Function]:
    """By name, in templates."""
    return {name: _whole(cast(_Function, TESTS[name])) for name in _TESTS} | {"in": _within}


def call_method(method: _Function, owner: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Call an allowed method of a value."""
    name = method.__name__
    budget().handle(owner, *given, *named.values())
    if isinstance(owner, dict) and name != "get":
        # Views of a dictionary have no weight that is known.
        budget().take(len(owner) // 4)
        return list(method(*given, **named))
    if isinstance(owner, str):
        if name == "join":
            return joined(given[0], owner)
        if name == "replace":
            return replaced(owner, *given, **named)
        if name in _STRIPS:
            _strip(owner, *given)
        elif name in _SEEKS:
            part = named.get("sep", given[0] if given else None)
            seek(owner, part if isinstance(part, str) else "", backward=name.startswith("r"))
        elif name == "splitlines":
            budget().take(_lines(owner))
    return _made(method(*given, **named))


def joined(values: Iterable[Any], between: Any = "") -> str:
    purse, texts = budget(), []
    for value in each(values):
        purse.handle(value)
        texts.append(str(value))
    purse.handle(between)
    mark = str(between)
    purse.spend(sum(map(len, texts)) + len(mark) * len(texts))
    return mark.join(texts)


def replaced(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    budget().handle(text, old, new)
    whole, old, new = str(text), str(old), str(new)
    seek(whole, old)
    found = whole.count(old) if old else len(whole) + 1
    budget().spend(len(whole) + found * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def formatted(function: _Function, given: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The sandbox's own text.format, without what would make it write more than it is given."""
    text = getattr(getattr(function, "__wrapped__", None), "__self__", None)
    if not isinstance(text, str) or re.search(r"\{[^{}]*[^{}\w]", text):
        raise SecurityError("format() is allowed with plain {} in chat templates")
    purse = budget()
    places = text.count("{")
    purse.take(places + text.count("}"))
    values = sum(map(purse.weight, (*given, *named.values())))
    purse.spend(len(text) + max(places, 1) * values)
    return function(*given, **named)


def _whole(function: _Function) -> _Function:
    """A filter or test of a value's text, which pays for its arguments and for what it makes."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget().handle(*args, *kwargs.values())
        return _made(function(*args, **kwargs))

    return charged


def _itemwise(name: str, function: _Function) -> _Function:
    """A filter that looks at every item, in every item at all attributes of a path, and at some items often."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        purse, given = budget(), (*args, *kwargs.values())
        items = next((_length(value) for value in given if isinstance(value, _SIZED)), 0)
        path = max((value.count(".") + value.count(",") for value in given if isinstance(value, str)), default=0)
        purse.handle(*given, times=items.bit_length() + 1 if name in _SORTS else 1)
        purse.take(items * (1 + path))
        if name == "unique":
            purse.take(items * items // 64)
        made = function(*args, **kwargs)
        if not hasattr(made, "__next__"):
            return _made(made)
        return _made(Once(list(each(made))))

    return charged


_SIZED = (str, list, tuple, dict, range, Once)


def _length(value: Any) -> int:
    return len(value.items if isinstance(value, Once) else value)


def _made(value: Any) -> Any:
    """Charge what was made."""
    purse = budget()
    if isinstance(value, list):
        purse.take(len(value))
    if purse.weight(value) > purse.characters + ITEM:
        raise Limit(f"makes a text or list of more than {purse.characters}")
    return value


def _within(value: Any, values: Any) -> bool:
    budget().handle(value, values)
    if isinstance(value, str) and isinstance(values, str):
        seek(values, value)
    return value in values


def _strip(text: str, chars: Any = None) -> None:
    """Charge stripping, which seeks every character among those to strip."""
    if isinstance(chars, str):
        budget().take(len(text) * len(chars) // (4 * UNIT))


def _lines(text: str) -> int:
    budget().handle(text, times=4)
    return sum(map(text.count, _LINE_ENDS)) + 1


def _trim(value: Any, chars: str | None = None) -> Any:
    budget().handle(value, chars)
    _strip(str(value), chars)
    return FILTERS["trim"](value, chars)


def _title(value: Any) -> str:
    """Word by word."""
    budget().handle(value, times=UNIT // 4)
    return str(FILTERS["title"](value))


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = len(width) if isinstance(width, str) else width
    if not 0 <= size <= MAX_WIDTH:
        raise Limit(f"indents by more than {MAX_WIDTH} characters")
    budget().handle(text)
    lines = _lines(str(text))
    budget().take(lines)
    budget().spend(len(text) + lines * (size + 1))
    return str(FILTERS["indent"](text, width, first, blank))


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not -MAX_WIDTH <= precision <= MAX_WIDTH:
        raise Limit(f"rounds to more than {MAX_WIDTH} digits")
    budget().handle(value, method)
    return FILTERS["round"](value, precision, method)


@pass_environment
def _sum(environment: Environment, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Of numbers; a sum of lists would copy them again and again."""
    total = start
    for number in each(_of(environment, values, attribute)):
        total = total + _number(number)
    return _number(total)


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise SecurityError("sum: all items must be numbers")
    budget().handle(value)
    return value


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    return joined(_of(environment, values, attribute), d)


def _of(environment: Environment, values: Iterable[Any], attribute: str | int | None) -> Iterator[Any]:
    """The values, or an attribute of each."""
    if attribute is None:
        return iter(values)
    if isinstance(attribute, str) and len(attribute) > MAX_WIDTH:
        raise SecurityError(f"attribute: must have at most {MAX_WIDTH} characters")
    return map(make_attrgetter(environment, attribute), values)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it: nothing is escaped for HTML."""
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
        raise SecurityError("tojson: indent must be from 0 to 16")
    if separators is not None and any(not isinstance(one, str) or len(one) > MAX_WIDTH for one in separators):
        raise SecurityError(f"tojson: separators must be texts of at most {MAX_WIDTH} characters")
    purse = budget()
    weight = purse.weight(value)
    wide = sum(map(len, separators or (",", ":"))) + (indent or 0) * purse.depth(value)
    purse.spend(weight + weight // ITEM * wide)
    purse.take(weight // ITEM if indent is not None else 0)
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    purse.spend(len(text))
    if not ensure_ascii:
        return text
    purse.take(len(text) // 8)
    # Private-use characters are the marks of formats/jinja.py, which go before the model sees the text.
    return _BEYOND_ASCII.sub(_escaped, text)


_BEYOND_ASCII = re.compile("[^\x00-\x7f\U000f0000-\U000fffff]+")


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
