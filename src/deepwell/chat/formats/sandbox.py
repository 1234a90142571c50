"""Runs a chat template that came with a stranger's model. The template is untrusted: what it may do is listed here.

On top of jinja2's sandbox, which keeps a template from reaching Python, every loop, call, operator and filter is
charged before its work by the size of what it handles and makes (budget.py), so that no template takes long or much
memory, and only harmless filters and methods exist (template_filters.py). The counting is exact: the same conversation
always meets the same limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from deepwell.chat.formats.budget import ITEM, Budget, Limit, begin, budget, each, end
from deepwell.chat.formats.template_filters import METHODS, call_method, filters, formatted, joined, tests
from deepwell.weights.tokenizer import MAX_TEMPLATE_BYTES

MAX_TOKENS = 40_000
"""Of a source, white space too; those of published models have a few thousand."""
MAX_RANGE = 10_000
MAX_NUMBER = 1 << 64
_LOOP, _CONCAT, _HANDLE, _COPY, _KEY = "loop over", "join parts", "handle all", "copy some", "be a name"
"""Filters of our own, under names that no template can spell."""
_OPERATORS = frozenset({"+", "-", "*", "/", "//", "%", "**"})
_SCOPES = ("_loop_vars", "_block_vars")
"""What jinja2 gives to calls besides their own arguments."""


class Refusal(Exception):
    """The template's own words on why it does not take a conversation."""


class ChatTemplate:
    """A compiled template. Any thread may render."""

    def __init__(self, source: str) -> None:
        """Raises Limit or jinja2.TemplateError, with a line number where there is one, if it cannot be used."""
        if len(source.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
            raise Limit(f"has more than {MAX_TEMPLATE_BYTES} bytes")
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, loopcontrols],
            finalize=_shown,
        )
        try:
            if sum(1 for _ in islice(environment.lex(source), MAX_TOKENS + 1)) > MAX_TOKENS:
                raise Limit(f"has more than {MAX_TOKENS} words and signs")
            tree = environment.parse(source)
            tree = _Charging().visit(tree)
            tree.set_environment(environment)
            code = environment.compile(tree)
            self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        except (jinja2.TemplateError, Limit):
            raise
        except Exception as error:  # whatever a stranger's text makes compilers raise
            raise Limit(f"is nested too deeply or too large: {type(error).__name__}") from None

    def render(self, values: Mapping[str, Any], spendable: Budget) -> str:
        """Raises Refusal, Limit, jinja2.TemplateError, and what wrong values make Python raise (TypeError, ...)."""
        token = begin(spendable)
        try:
            return self._template.render(values)
        except (RecursionError, MemoryError) as error:
            raise Limit(f"goes too deep: {type(error).__name__}") from None
        finally:
            end(token)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = _OPERATORS

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = {_LOOP: each, _CONCAT: joined, _HANDLE: _handle, _COPY: _copy, _KEY: _key}
        self.filters: dict[str, Any] = filters() | own
        self.tests: dict[str, Any] = tests()
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
        purse, total, kept = budget(), 0, []
        for part in parts:
            total += len(part)
            purse.spend(min(len(part), purse.characters))
            if total > purse.characters:
                raise Limit(f"writes more than {purse.characters} characters")
            kept.append(part)
        return "".join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed in chat templates")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("% with a text is not allowed in chat templates")
        budget().handle(left, right)
        for value, times in ((left, right), (right, left)):
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise Limit(f"counts with numbers above {MAX_NUMBER}")
            if operator == "*" and isinstance(value, str | list | tuple) and isinstance(times, int):
                budget().spend((budget().weight(value) - ITEM) * max(times, 1))
        made = super().call_binop(context, operator, left, right)
        budget().weight(made)
        return made

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        name = getattr(obj, "__name__", type(obj).__name__)
        budget().spend(ITEM * (len(args) + len(kwargs)))
        named = {name: value for name, value in kwargs.items() if name not in _SCOPES}
        if name in METHODS.get(type(owner), ()):
            return call_method(obj, owner, args, named)
        if name == "format":
            return formatted(obj, args, named)
        if not isinstance(obj, Macro | LoopContext | _Dict) and obj not in (_refuse, _now, _range, _Names):
            raise SecurityError(f"{name}() is not allowed in chat templates")
        budget().handle(*args, *named.values())
        if isinstance(obj, LoopContext):
            return super().call(context, obj, *map(each, args))
        return super().call(context, obj, *args, **kwargs)


def _handle(value: Any) -> Any:
    """Charge a value for what is done to all of it."""
    budget().handle(value)
    return value


def _copy(value: Any) -> Any:
    """Charge a value for a copy of it, or of a part."""
    size = len(value) if isinstance(value, str | list | tuple) else 0
    budget().spend(size if isinstance(value, str) else ITEM * size)
    return value


def _shown(value: Any) -> Any:
    """Charge a value for being written; texts are charged when they are joined."""
    return value if isinstance(value, str) else _handle(value)


def _key(value: Any) -> Any:
    """Refuse lists as names in a dictionary, which cannot tell some of them apart quickly."""
    if isinstance(value, tuple):
        raise SecurityError("a list cannot be a name in a dictionary")
    return value


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
        pairs = (pair for one in args for pair in (one.items() if isinstance(one, dict) else one))
        made = {_key(name): value for name, value in each(pairs)} | kwargs
        budget().handle(made)
        return made


class _Names(Namespace):
    """A namespace without hidden names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        names = _Dict()(*given, **kwargs)
        Namespace.__init__(self, names)
        for name in names:
            if str(name).startswith("_"):
                raise SecurityError(f"{name!r} may not be set")

    def __repr__(self) -> str:
        return "<namespace>"

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
        first = node.ops[0]
        if len(node.ops) == 1 and first.op in ("in", "notin"):
            found = nodes.Test(node.expr, "in", [first.expr], [], None, None, lineno=node.lineno)
            return found if first.op == "in" else nodes.Not(found, lineno=node.lineno)
        if any(operand.op in ("in", "notin") for operand in node.ops):
            raise jinja2.TemplateSyntaxError("`in` cannot be part of a chain of comparisons", node.lineno)
        node.expr = _through(_HANDLE, node.expr)
        for operand in node.ops:
            operand.expr = _through(_HANDLE, operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through(_COPY, node.node)
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _through(_HANDLE, node.arg)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through(_HANDLE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for item in node.items:
            item.key = item.key if isinstance(item.key, nodes.Const) else _through(_KEY, item.key)
        return _through(_HANDLE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through(_HANDLE, node) if node.ctx == "load" else node


def _through(filter: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, filter, [], [], None, None, lineno=value.lineno)
