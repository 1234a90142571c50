"""Runs a chat template that came with a stranger's model. The template is untrusted: what it may do is listed here.

On top of jinja2's sandbox, which keeps a template from reaching Python, every loop, call and filter is charged by the
size of what it handles, so that no template takes long or much memory, and only harmless filters and methods exist.
The counting is exact: the same conversation always meets the same limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from deepwell.weights.tokenizer import MAX_TEMPLATE_BYTES

MAX_RANGE = 10_000
_LOOP, _CONCAT, _HANDLE, _COPY = "loop over", "join parts", "handle all", "copy some"
"""Filters of our own, under names that no template can spell."""
MAX_NUMBER = 1 << 64
UNIT = 256
"""Characters or items that cost as much as one step."""

_Function = Callable[..., Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words(
    "abs capitalize dictsort e escape float indent int items list lower map max min reject rejectattr reverse round "
    "safe select selectattr sort string sum title trim unique upper"
)
_QUICK = _words("count d default first last length")
_TESTS = _words(
    "boolean defined even false float integer iterable lower mapping none number odd sequence string true undefined "
    "upper"
)
_COMPARISONS = _words("eq equalto ge gt in le lt ne == != > >= < <=")
_METHODS: dict[type, frozenset[str]] = {
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


class Limit(Exception):
    """A template did more than it may."""


class Refusal(Exception):
    """The template's own words on why it does not take a conversation."""


class Budget:
    """What one rendering may still spend: steps, and characters of any one text."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters
        self._weights: dict[int, tuple[object, int]] = {}

    def spend(self, size: int = 0) -> None:
        """Charge a step over `size` characters or items, before it is taken."""
        if size > self.characters:
            raise Limit(f"makes a text or list of more than {self.characters}")
        self.steps -= 1 + size // UNIT
        if self.steps < 0:
            raise Limit("takes too many steps")

    def weight(self, value: object) -> int:
        """Characters and items of a value, all that it holds included, however often; each list is looked at once."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, list | tuple | dict):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            self.steps -= len(value) // 4
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            # The value is kept, so that its id stays its own.
            known = self._weights[id(value)] = (value, 1 + sum(map(self.weight, inside)))
        return known[1]


_budget: ContextVar[Budget] = ContextVar("budget")


def spend(size: int = 0) -> None:
    _budget.get().spend(size)


def _handle(value: Any) -> Any:
    """Charge a value for what is done to all of it."""
    spend(_budget.get().weight(value))
    return value


def _copy(value: Any) -> Any:
    """Charge a value for a copy of it, or of a part."""
    spend(len(value) if isinstance(value, str | list | tuple) else 0)
    return value


class ChatTemplate:
    """A compiled template. Any thread may render."""

    def __init__(self, source: str) -> None:
        """Raises Limit or jinja2.TemplateError, with a line number where there is one, if it cannot be used."""
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise Limit(f"has more than {MAX_TEMPLATE_BYTES} bytes")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
        )
        try:
            tree = environment.parse(source)
            tree = _Charging().visit(tree)
            tree.set_environment(environment)
            code = environment.compile(tree)
            self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        except (RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise Limit(f"is nested too deeply or too large: {type(error).__name__}") from None

    def render(self, values: Mapping[str, Any], budget: Budget) -> str:
        """Raises Refusal, Limit, jinja2.TemplateError, and what wrong values make Python raise (TypeError, ...)."""
        token = _budget.set(budget)
        try:
            return self._template.render(values)
        except (RecursionError, MemoryError) as error:
            raise Limit(f"goes too deep: {type(error).__name__}") from None
        finally:
            _budget.reset(token)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: cast(_Function, FILTERS[name]) for name in _QUICK}
        self.filters |= {name: _charged(cast(_Function, FILTERS[name])) for name in _FILTERS}
        self.filters |= {"tojson": _to_json, "join": _join, "replace": _replace}
        self.filters |= {_LOOP: _loop, _CONCAT: _join, _HANDLE: _handle, _COPY: _copy}
        self.tests = {name: cast(_Function, TESTS[name]) for name in _TESTS}
        self.tests |= {name: _charged(cast(_Function, TESTS[name])) for name in _COMPARISONS}
        self.globals = {
            "raise_exception": _refuse,
            "strftime_now": _now,
            "range": _range,
            "dict": _Dict(),
            "namespace": _Names,
        }

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """How jinja2 joins what a template, a macro or a block has written."""
        budget, total, kept = _budget.get(), 0, []
        for part in parts:
            total += len(part)
            budget.spend(min(len(part), budget.characters))
            if total > budget.characters:
                raise Limit(f"writes more than {budget.characters} characters")
            kept.append(part)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed in chat templates")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("% with a text is not allowed in chat templates")
        _handle(left)
        _handle(right)
        if operator == "*":
            _check_product(left, right)
        return _handle(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        name = getattr(obj, "__name__", type(obj).__name__)
        for value in (owner, *args, *kwargs.values()):
            _copy(value)
        if name in _METHODS.get(type(owner), ()):
            if name in ("join", "replace"):
                return _join(args[0], owner) if name == "join" else _replace(owner, *args)
        elif name == "format":
            _check_format(obj, args, kwargs)
        elif not isinstance(obj, Macro | LoopContext | _Dict) and obj not in (_refuse, _now, _range, _Names):
            raise SecurityError(f"{name}() is not allowed in chat templates")
        if isinstance(obj, Macro | _Dict):
            _handle([*args, *kwargs.values()])
        return super().call(context, obj, *args, **kwargs)


def _check_format(obj: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """The sandbox's own text.format, without what would make it write more than it is given."""
    text = getattr(getattr(obj, "__wrapped__", None), "__self__", None)
    if not isinstance(text, str) or re.search(r"\{[^{}]*[^{}\w]", text):
        raise SecurityError("format() is allowed with plain {} in chat templates")
    _handle([*args, *kwargs.values()] * max(text.count("{"), 1))


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            spend(_budget.get().weight(value) * max(times, 1))
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise Limit(f"multiplies numbers above {MAX_NUMBER}")


def _charged(function: _Function) -> _Function:
    """A filter or test that pays for its arguments, for what it makes, and for every item that it looks at."""

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        largest = max((abs(value) for value in given if isinstance(value, int)), default=0)
        spend(sum(map(_budget.get().weight, given)) * (1 + min(largest, MAX_RANGE)))
        _items(*given)
        made = function(*args, **kwargs)
        _items(made)
        return _loop(made) if isinstance(made, Generator) else made

    return charged


def _items(*values: Any) -> None:
    """Charge a step for every item."""
    _budget.get().steps -= sum(len(value) for value in values if isinstance(value, list | tuple | dict | range))
    spend()


def _join(values: Iterable[Any], between: Any = "") -> str:
    texts, mark = [str(value) for value in _loop(values)], str(between)
    spend(sum(map(len, texts)) + len(mark) * len(texts))
    return mark.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    whole, old, new = str(text), str(old), str(new)
    spend(len(whole) + (whole.count(old) if old else len(whole) + 1) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _loop(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        spend()
        yield value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers writes it: nothing is escaped for HTML."""
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise SecurityError("tojson: indent must be from 0 to 16")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    spend(len(text))
    # Private-use characters are the marks of formats/jinja.py, which go before the model sees the text.
    return _BEYOND_ASCII.sub(_escaped, text) if ensure_ascii else text


_BEYOND_ASCII = re.compile("[^\x00-\x7f\U000f0000-\U000fffff]")


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_RANGE:
        raise Limit(f"counts to more than {MAX_RANGE}")
    return found


def _refuse(message: object) -> None:
    raise Refusal(str(message)[:500])


def _now(format: str) -> str:
    if len(format) > 100:
        raise SecurityError("strftime_now: the format is too long")
    return datetime.now().strftime(format)


class _Dict:
    """Makes dictionaries, and has no attributes by which to reach the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Names(Namespace):
    """A namespace without hidden names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        Namespace.__init__(self, *given, **kwargs)
        for name in (*(name for one in given for name in dict(one)), *kwargs):
            if str(name).startswith("_"):
                raise SecurityError(f"{name!r} may not be set")

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"{name!r} may not be set")
        super().__setitem__(name, value)


class _Generation(Extension):
    """`{% generation %}`, which marks what a model says for training; here it stands for its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Charging(NodeTransformer):
    """Puts a charge on what generated code would do without asking the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through(_LOOP, cast(nodes.Expr, node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through(_HANDLE, node.expr)
        for operand in node.ops:
            operand.expr = _through(_HANDLE, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through(_COPY, node.node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through(_HANDLE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through(_HANDLE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through(_HANDLE, node) if node.ctx == "load" else node


def _through(filter: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, filter, [], [], None, None, lineno=value.lineno)
