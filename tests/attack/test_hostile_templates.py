"""Chat templates that a stranger wrote to take time or memory: each ends soon, with a template error.

Everything that the sandbox allows has a hostile case, and a test says so. Cases run one after the other in a process of
their own, whose memory is bounded and whose answers are waited for.

DEEPWELL_SEED chooses the mixtures, and is printed with a failure.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from jinja2.filters import FILTERS
from jinja2.tests import TESTS
from seeds import SEED

from deepwell.chat.formats.sandbox import _OPERATORS, _Environment
from deepwell.chat.formats.template_filters import METHODS

CPU_SECONDS, MIB, WAIT_SECONDS, ADDRESSES = 2.0, 200, 120, 4 << 30

VICTIM = """
import copy, gc, json, resource, sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/chat"]
from conversations import rendered
from deepwell.chat import Conversation, Message
from deepwell.errors import DeepwellError
from fakes import tiny_tokenizer
resource.setrlimit(resource.RLIMIT_AS, ({addresses}, {addresses}))
plain = tiny_tokenizer()

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith(field))

def render(template):
    tokenizer = copy.copy(plain)
    tokenizer.template = template
    try:
        return "text: " + plain.decode(rendered(Conversation(messages=(Message.of("user", "Hi"),)), tokenizer, "jinja"))
    except DeepwellError as error:
        return str(error)

render("{{{{ messages[0].content }}}}")
for line in sys.stdin:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before, began = memory("VmRSS"), time.process_time()
    try:
        said = render(json.loads(line))
    except BaseException as error:
        said = "crash: " + repr(error)
    print(json.dumps([said[:300], time.process_time() - began, memory("VmHWM") - before]), flush=True)
"""


class Outcome(NamedTuple):
    """What came of a template: its text or the error, seconds of a processor, and MiB that it took at most."""

    said: str
    seconds: float
    mib: int


def outcomes(templates: Sequence[str]) -> list[Outcome]:
    """What comes of templates, up to the first that ends the process or makes it wait for too long."""
    code = VICTIM.format(tests=str(Path(__file__).parents[1]), addresses=ADDRESSES)
    given = "".join(json.dumps(template) + "\n" for template in templates)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said, broken = process.communicate(given, timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said, broken = process.communicate()
    found = [Outcome(*json.loads(line)) for line in said.splitlines()]
    assert len(found) == len(templates), f"ended in: {templates[len(found)][:1000]}\n{broken[-2000:]}"
    return found


def check(templates: dict[str, str], *, refused: bool = True) -> None:
    """Every one of the templates, by a name, ends soon, and is refused."""
    expected = ("the template of this model ", "chat template", *(() if refused else ("text",)))
    found = dict(zip(templates, outcomes(list(templates.values())), strict=True))
    wrong = {
        name: one
        for name, one in found.items()
        if one.seconds > CPU_SECONDS or one.mib > MIB or not one.said.startswith(expected)
    }
    assert not wrong, f"seed {SEED}"


SETTING = """
{%- set n = 99999999999 %}{% set long = 'aB1 ' * 100000 %}{% set same = 'a' * 400000 %}{% set lines = '\\n' * 200000 %}
{%- set wide = '🐳é' * 100000 %}{% set part = 'a' + 'b' + 'a' * 20000 %}{% set tail = 'a' * 2000 + 'b' %}
{%- set ones = [1] * 20000 %}{% set words = long[:12000].split() %}{% set deep = [[[[words]]]] %}
{%- set pairs = [['k', 1.5], ['l', words]] %}{% set map_ = dict(pairs) %}{% set short = 'aB1 ' * 500 %}
{%- set many = range(2000) | list %}{% set rows = [{"a": {"b": "x"}}] * 2000 %}{% set box = namespace(x=long) -%}
"""
"""Values as large as a template can have them."""

AGAIN = "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = (EXPRESSION) %}{% endfor %}{% endfor %}"
"""Whatever it is, done for ever."""

OPERANDS = ("long", "words", "ones", "many", "short")

FILTER_CASES: dict[str, Sequence[str]] = {
    "abs": ["n|abs", "(n * n)|abs"],
    "capitalize": ["long|capitalize", "deep|capitalize"],
    "count": ["long|count"],
    "d": ["x|d(long)|upper", "([zz] * 9000)|map('d', long)|sort"],
    "default": ["zz|default(long)|upper", "([zz] * 9000)|map('default', box)|sort(attribute='x')"],
    "dictsort": ["map_|dictsort", "dict(words)|dictsort(by='value')"],
    "e": ["('<' * 900000)|e", "deep|e"],
    "escape": ["('&' * 900000)|escape|escape|escape"],
    "first": ["long|first", "words|map('upper')|first"],
    "float": ["('9' * 900000)|float", "ones|map('float')|list"],
    "indent": [
        "lines|indent('x' * 400000, blank=true)",
        "lines|indent(64)",
        "lines|indent(n)",
        "long|indent",
        "lines|indent(0)",
    ],
    "int": ["('9' * 900000)|int", "('f' * 900000)|int(0, 16)", "('z' * 900000)|int(0, 36)", "1e308|int * 1e308|int"],
    "items": ["map_|items|list"],
    "join": ["words|join(long)", "long|join(long)", "rows|join(',', attribute='a.b')", "deep|join", "words|join"],
    "last": ["words|last", "long|last"],
    "length": ["long|length", "words|length"],
    "list": ["long|list", "wide|list", "range(9999)|list", "words|list"],
    "lower": ["long|lower", "('İ' * 900000)|lower", "deep|lower"],
    "map": [
        "words|map('upper')|map('lower')|map('title')|list",
        "words|map('replace', '', long)|list",
        "rows|map(attribute='" + "a." * 400_00 + "b', default='x')|list",
        "words|map(attribute='" + "a." * 4000 + "b', default='x')|list",
        "ones|map('round', n, 'ceil')|list",
    ],
    "max": ["words|max", "long|max", "([words] * 90)|max"],
    "min": ["words|min", "many|min", "rows|min(attribute='a.b')"],
    "reject": ["words|reject('in', words)|list", "ones|reject('odd')|list"],
    "rejectattr": ["rows|rejectattr('a.b', 'in', words)|list"],
    "replace": ["same|replace('', long)", "long|replace(' ', long)", "same|replace(tail, '')", "n|replace(9, long)"],
    "reverse": ["long|reverse", "words|reverse|list", "words|reverse|reverse"],
    "round": ["1|round(1000000000, 'ceil')", "1|round(-1000000000, 'floor')", "1.5|round(64, 'ceil')", "n|round(n)"],
    "safe": ["long|safe", "deep|safe"],
    "select": ["words|select('in', words)|list", "words|select('eq', deep)|list", "long|select|list"],
    "selectattr": ["rows|selectattr('a.b', 'eq', 'y')|list", "rows|selectattr('" + "a." * 9000 + "b')|list"],
    "sort": [
        "words|sort",
        "([words] * 90)|sort",
        "([short] * 400)|sort",
        "rows|sort(attribute='a.b,a.b,a.b,a.b')",
        "long|sort",
    ],
    "string": ["deep|string", "(['\\x00' * 900000])|string", "words|string"],
    "sum": [
        "([(1, 1, 1, 1, 1)] * 9000)|sum(start=())",
        "many|sum",
        "([[words]] * 50)|sum(start=[])",
        "ones|sum(start=n)",
    ],
    "title": ["long|title", "deep|title"],
    "tojson": [
        "([0]*20000)|tojson(separators=('a'*400000, ':'))",
        "ones|tojson(indent=16)",
        "deep|tojson(indent='x' * 90000)",
        "deep|tojson(indent=1000000000)",
        "wide|tojson(ensure_ascii=true)",
        "('é.' * 400000)|tojson(ensure_ascii=true)",
        "('\\x00' * 900000)|tojson",
        "map_|tojson(sort_keys=true)",
        "words|tojson(indent=1)",
        "rows|tojson",
    ],
    "trim": ["same|trim(part)", "same|trim('b' * 99999 + 'a')", "(' ' * 900000)|trim", "deep|trim"],
    "unique": ["words|unique|list", "many|unique|list", "([(1e300, 0.5)] * 9000)|unique|list", "long|unique|list"],
    "upper": ["('ΐ' * 900000)|upper", "1e400|upper", "deep|upper"],
}
TEST_CASES: dict[str, Sequence[str]] = {
    **{name: [f"{operand} is {name}" for operand in ("words", "n")] for name in TESTS},
    **{
        name: [f"words is {name}(words)", f"long is {name}(long)"]
        for name in ("eq", "equalto", "ne", "ge", "gt", "le", "lt")
    },
    **{name: [f"words|select('{name}', words)|list"] for name in ("==", "!=", ">", ">=", "<", "<=")},
    "in": [
        "tail is in same",
        "part is in same",
        "0.5 is in range(9999)",
        "deep is in words",
        "'zz' is in words",
        "[words] is in deep",
    ],
}
METHOD_CASES: dict[str, Sequence[str]] = {
    **{
        name: [f"same.{name}(part)", f"same.{name}(tail)", f"short.{name}('aB1 ' * 200 + 'x')", f"wide.{name}('é')"]
        for name in (
            "find",
            "rfind",
            "index",
            "rindex",
            "count",
            "split",
            "rsplit",
            "partition",
            "rpartition",
            "startswith",
            "endswith",
        )
    },
    **{
        name: [f"same.{name}(part)", f"same.{name}('b' * 99999 + 'a')", f"long.{name}()"]
        for name in ("strip", "lstrip", "rstrip")
    },
    **{
        name: [f"long.{name}()", f"wide.{name}()"]
        for name in (
            "lower",
            "upper",
            "title",
            "capitalize",
            "isdigit",
            "isalpha",
            "isalnum",
            "isspace",
            "isupper",
            "islower",
            "isnumeric",
            "isdecimal",
        )
    },
    "splitlines": ["lines.splitlines()", "long.splitlines(true)", "wide.splitlines()"],
    "removeprefix": ["same.removeprefix('a')"],
    "removesuffix": ["same.removesuffix('a')"],
    "replace": ["same.replace('', long)", "same.replace(tail, '')", "same.replace('a', 'b')"],
    "join": ["long.join(long)", "','.join(words)", "long.join(words)"],
    "items": ["map_.items()", "dict(words).items()|string"],
    "keys": ["map_.keys()", "0.5 in dict(words).keys()"],
    "values": ["map_.values()", "map_.values()|string"],
    "get": ["map_.get('k')", "map_.get((1e300, 0.5))", "map_.get(long)"],
    "index": ["words.index('zz')", "deep.index(deep)", "many.index(0.5)", "same.index(part)", "(words, 1).index(1)"],
    "cycle": ["loop.cycle(*words)", "loop.cycle(long)"],
    "changed": ["loop.changed(words)", "loop.changed(*words)", "loop.changed(deep)"],
    "format": [
        "('{}' * 400000).format(*ones)",
        "('{0}' * 400).format(long)",
        "'{:>1000000000}'.format(1)",
        "'{:{}}'.format(1, n)",
        "('{{' * 400000).format()",
        "'{x}'.format(x=words)",
        "'{}'.format_map(map_)",
        "('{' * 900000).format(1)",
    ],
}
OPERATOR_CASES: dict[str, Sequence[str]] = {
    "+": ["long + long", "ones + ones", "many + words", "n + n", "('<'|e) + '<' * 900000"],
    "-": ["n - 1", "-n", "1.5 - n"],
    "*": ["'a' * n", "[1] * n", "n * ones", "ones * 0", "(1, 2) * 999999999", "n * n * n * n * n"],
    "/": ["n / 3", "(n * n * n) / 7"],
    "//": ["('f' * 900000)|int(0, 16) // 3", "n // 7"],
    "%": ["'%1000000000d' % 1", "('f' * 900000)|int(0, 16) % 3", "n % 7"],
    "**": ["9 ** 999999999", "2.0 ** 9"],
    "~": ["long ~ long", "deep ~ n", "words ~ words"],
    "==": [
        "words == many",
        "long == same",
        "deep == [[[[long[:12000].split()]]]]",
        "same[1:] == same[:-1]",
        "loop == loop",
    ],
    "!=": ["words != words"],
    "<": ["words < words[:1]", "deep < deep"],
    ">": ["same[1:] > same[:-1]"],
    "<=": ["many <= many"],
    ">=": ["many >= many"],
    "in": [
        "tail in same",
        "part in same",
        "0.5 in range(9999)",
        "'zz' in words",
        "deep in words",
        "long[1:] in long",
        "1 < 2 in many",
    ],
    "not in": ["tail not in same", "0.5 not in many"],
    "and": ["words and long"],
    "or": ["words or long"],
    "not": ["not words"],
    "if": ["long if words else ones"],
    "[]": ["many[i]", "map_[(words,)]", "map_['k']", "long[i]"],
    "[:]": ["long[1:]", "words[1:]", "long[::-1]", "ones[::2]", "range(9999)[1:]"],
    "list": ["[words, long]", "[[[many]]]"],
    "tuple": ["(words, long)"],
    "dict": ["{1: words, 2: long}", "{(1, 2): 3}", "{1: {2: {3: many}}}"],
    ".": ["box.x", "map_.k", "map_.zz"],
}
GLOBAL_CASES: dict[str, Sequence[str]] = {
    "raise_exception": ["raise_exception(deep)", "raise_exception(long)"],
    "strftime_now": ["strftime_now('%1000000000Y')", "strftime_now('%c' * 50)", "strftime_now('%Y' * 999)"],
    "range": ["range(9999)", "range(n)", "range(-n, n)", "range(9999)|string"],
    "dict": ["dict(words)", "dict(map_, a=1)", "dict([((1, 2), 3)])", "dict(long)"],
    "namespace": ["namespace(x=box)", "namespace(words)", "namespace(a=long)"],
}
"""Expressions over the values of SETTING."""

DOUBLING = "{% set v = namespace(x=1, y='ab', z=1, d={}, t=()) %}{% for i in range(9999) %}BODY{% endfor %}"
DIGITS = "9" * 4000
WHOLE = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "filtered loops": SETTING + "{% for a in ones %}{% for b in ones if b == 2 %}{% else %}x{% endfor %}{% endfor %}",
    "recursive loops": SETTING
    + "{% for a in ones recursive %}{% if loop.first %}{{ loop(ones) }}{% endif %}{% endfor %}",
    "looked ahead": SETTING + "{% for a in words|map('upper') %}{{ loop.length }}{{ loop.nextitem }}{% endfor %}" * 9,
    "a loop as a value": "{% for a in messages %}{{ [loop, loop] | string }}{% endfor %}",
    "squares": DOUBLING.replace("BODY", "{% set v.x = (v.x + 1) * (v.x + 1) %}"),
    "texts of texts": DOUBLING.replace("BODY", "{% set v.y = v.y ~ v.y %}"),
    "blocks of blocks": DOUBLING.replace("BODY", "{% set q %}{{ v.y }}{{ v.y }}{% endset %}{% set v.y = q %}"),
    "filter blocks": DOUBLING.replace(
        "BODY", "{% set q %}{% filter replace('a', 'aaaa') %}{{ v.y }}{% endfilter %}{% endset %}{% set v.y = q %}"
    ),
    "lists of lists": DOUBLING.replace("BODY", "{% set v.x = [v.x, v.x] %}") + "{{ v.x }}",
    "deep lists": DOUBLING.replace("BODY", "{% set v.t = (v.t,) %}") + "{{ {1: 2}[v.t] }}",
    "views of views": DOUBLING.replace("BODY", "{% set v.d = {1: v.d.values(), 2: v.d.values()} %}") + "{{ v.d }}",
    "filters of filters": DOUBLING.replace("BODY", "{% set v.d = [v.d, v.d]|map('list') %}") + "{{ v.d|list }}",
    "namespaces of namespaces": DOUBLING.replace(
        "BODY", "{% set q = namespace() %}{% set q.a = v.z %}{% set q.b = v.z %}{% set v.z = q %}{{ v.z }}"
    )
    + "{{ [v.z] }}",
    "a namespace in itself": "{% set v = namespace() %}{% set v.v = v %}{{ v }}{{ ([v] * 999)|map(attribute='"
    + "v." * 9999
    + "v')|list }}",
    "a namespace in a list that grows": SETTING
    + "{% set v = namespace(x=1) %}{% set l = [v] * 50000 %}{% set v.x = long %}"
    "{{ l|sort(attribute='x')|length }}",
    "macros": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(9) }}",
    "macros of two": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "arguments of arguments": "{% macro f() %}{{ f(varargs, varargs) }}{% endmacro %}{{ f(1) }}",
    "named arguments": "{% macro f() %}{{ f(a=kwargs, b=kwargs) }}{% endmacro %}{{ f(a=1) }}",
    "macros with much": SETTING
    + "{% macro f(a) %}{% if varargs %}{% endif %}{% endmacro %}"
    + "{% for i in ones %}{{ f(words) }}{{ f(*words) }}{% endfor %}",
    "callers": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 30
    + "x" * 1000
    + "{% endcall %}" * 30,
    "escaped again": SETTING
    + "{% autoescape true %}{% for i in ones %}{{ '<' * 9999 }}{% endfor %}{% endautoescape %}",
    "names that collide": "{% set x = {" + ",".join(f"(1e{n % 300}, 2e{n // 300}): 1" for n in range(9000)) + "} %}",
    "much again": SETTING + "{% for i in ones %}" + "x" * 100_000 + "{% endfor %}",
    "kept texts": SETTING
    + "{% set v = namespace(x=[]) %}{% for i in ones %}{% set v.x = v.x + [wide ~ i] %}{% endfor %}",
    "kept lists": SETTING
    + "{% set v = namespace(x=[]) %}{% for i in ones %}{% set v.x = [v.x, ones[i:]] %}{% endfor %}",
    "kept characters": SETTING
    + "{% set v = namespace(x=[]) %}{% for i in ones %}{% set v.x = [v.x, wide|list] %}{% endfor %}",
    "blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "digits": "{{ " + DIGITS + " * " + DIGITS + " }}",
    "more digits": "{{ " + "9" * 200_000 + " }}",
    "hexadecimal": "{{ 0x" + "f" * 200_000 + " }}",
    "infinite": "{{ 1e400|upper }}{{ 1e400|int }}",
    "infinite too": "{{ (1e308 * 10)|int }}",
}
HARD = {
    "parentheses": ("{{ ", "(", "1", ")", " }}"),
    "lists": ("{{ ", "[", "", "]", " }}"),
    "dictionaries": ("{{ ", "{1:", "1", "}", " }}"),
    "not": ("{{ ", "not ", "1", "", " }}"),
    "minus": ("{{ ", "-", "1", "", " }}"),
    "sums": ("{{ ", "1+", "1", "", " }}"),
    "concatenations": ("{{ ", "1~", "1", "", " }}"),
    "comparisons": ("{{ ", "1<", "1", "", " }}"),
    "attributes": ("{{ a", ".b", "", "", " }}"),
    "indices": ("{{ a", "[0]", "", "", " }}"),
    "calls": ("{{ a", "()", "", "", " }}"),
    "filters": ("{{ 1", "|abs", "", "", " }}"),
    "tests": ("{{ 1", " is odd", "", "", " }}"),
    "choices": ("{{ ", "1 if 1 else ", "1", "", " }}"),
    "conditions": ("", "{% if a %}", "", "{% endif %}", ""),
    "other conditions": ("{% if a %}", "{% elif a %}", "", "", "{% endif %}"),
    "loops": ("", "{% for a in a %}", "", "{% endfor %}", ""),
    "texts": ("", "{% set a %}", "", "{% endset %}", ""),
    "macros": ("", "{% macro a() %}", "", "{% endmacro %}", ""),
    "names of their own": ("", "{% with %}", "", "{% endwith %}", ""),
    "openings": ("", "{{", "", "", ""),
    "statements": ("", "{%", "", "", ""),
    "comments": ("", "{#", "", "", ""),
    "raw texts": ("", "{% raw %}", "", "", ""),
    "white space": ("{%-", " ", "", "", ""),
    "quotes": ("{{ '", "\\", "", "", ""),
    "digits": ("{{ ", "9", "", "", " }}"),
    "underscores": ("{{ ", "1_", "", "", ""),
    "long names": ("{{ ", "a", "!", "", " }}"),
    "surrogates": ("{{ '", "\\ud800", "", "", "' }}"),
    "zeros": ("", "\0", "{{", "", ""),
    "arguments": ("{{ dict(", "a=1,", "", "", ") }}"),
    "outputs": ("", "{{a}}", "", "", ""),
    "keys": ("{% set x = {", "(1e9,2e9): 1,", "", "", "} %}"),
}
"""Sources that are hard to read: their begin, what comes again and again, a middle, its closing, and the end."""


def hard(characters: int) -> dict[str, str]:
    return {
        name: begin + again * (count := characters // len(again + closing)) + middle + closing * count + end
        for name, (begin, again, middle, closing, end) in HARD.items()
    }


def for_ever(expression: str) -> str:
    return SETTING + AGAIN.replace("EXPRESSION", expression)


def again(cases: dict[str, Sequence[str]]) -> dict[str, str]:
    return {f"{name}: {one[:80]} {at}": for_ever(one) for name, ones in cases.items() for at, one in enumerate(ones)}


@pytest.mark.parametrize("cases", [FILTER_CASES, TEST_CASES, METHOD_CASES, OPERATOR_CASES, GLOBAL_CASES], ids="ftmog")
def test_whatever_a_template_does_for_ever_is_stopped(cases: dict[str, Sequence[str]]) -> None:
    check(again(cases))


def test_templates_that_grow_are_stopped() -> None:
    check(WHOLE)


@pytest.mark.parametrize("characters", [2_000, 36_000, 250_000])
def test_sources_that_are_hard_to_read_do_no_harm(characters: int) -> None:
    check(hard(characters), refused=False)


def test_mixtures_of_all_that_is_allowed_end_soon() -> None:
    chance = random.Random(SEED)
    check({f"{n}: {one}": for_ever(one) for n, one in enumerate(mixtures(chance, 120))})


TEXTS = ("long", "same", "wide", "lines", "short", "tail", "part", "' '", "''", "'<a>'", "messages[0].content")
LISTS = ("words", "ones", "many", "rows", "deep[0][0]", "messages", "[1.5, 2]")
STEPS = {
    "text to text": """
        T|upper T|lower T|title T|trim T|trim(U) T|e T|capitalize T|safe T|indent T|indent(9) T|replace(U,U) T|reverse
        T.strip(U) T.rstrip(U) T.replace(U,U) T.replace('',U) T.title() (T~U) (T+U) T[1:] T[::-1] (T*3) T|tojson
        T.join(L) T|string '{}{}'.format(T,U) T.removeprefix(U) T.partition(U)|first (T|default(U))
    """,
    "text to list": """
        T|list T.split(U) T.rsplit(U) T.split() T.splitlines() T|map('upper')|list T|unique|list [T,U] T.partition(U)
    """,
    "list to list": """
        L|sort L|list L|unique|list L|reverse|list L|map('string')|list L|map('upper')|map('title')|list (L*3) [L,M]
        L|select('in',M)|list L|reject('eq',U)|list (L+M) L[1:] L[::-1] (L,M) L|map('replace','a',U)|list
        L|map('default',U)|list {'a':L,'b':M}.values() {'a':L}|dictsort L|map('tojson')|list L|map('join',U)|list
    """,
    "list to text": """
        L|join L|join(U) L|string L|tojson L|tojson(indent=2) (L~U) U.join(L|map('string')) (L|max)|string
    """,
}
"""What becomes of a text T and a list L, with others, U and M."""


def mixtures(chance: random.Random, count: int) -> Iterator[str]:
    """Expressions that are made of others, at random."""
    for _ in range(count):
        kind = chance.choice(("text", "list"))
        made = chance.choice(TEXTS if kind == "text" else LISTS)
        for _ in range(chance.randint(1, 6)):
            step = chance.choice([name for name in STEPS if name.startswith(kind)])
            others = {"T": f"({made})", "L": f"({made})" if kind == "list" else chance.choice(LISTS)}
            others |= {"U": chance.choice(TEXTS), "M": chance.choice(LISTS)}
            made = re.sub(
                r"\b[TLUM]\b", lambda found, others=others: others[found[0]], chance.choice(STEPS[step].split())
            )
            kind = step.split()[-1]
        yield made


def test_everything_that_is_allowed_has_a_hostile_case() -> None:
    allowed = _Environment()
    assert {name for name in allowed.filters if " " not in name} == set(FILTER_CASES)
    assert set(allowed.tests) <= set(TEST_CASES)
    assert set(allowed.globals) == set(GLOBAL_CASES)
    assert {name for names in METHODS.values() for name in names} | {"format"} == set(METHOD_CASES)
    assert not _OPERATORS - set(OPERATOR_CASES)
    assert allowed.intercepted_binops == set(allowed.binop_table)


def test_what_is_not_allowed_is_refused_at_once() -> None:
    allowed = _Environment()
    others = {name: f"{{{{ [1]|{name} }}}}" for name in FILTERS if name not in allowed.filters}
    others |= {
        f"is {name}": f"{{{{ 1 is {name}(1) }}}}" for name in TESTS if name not in allowed.tests and name.isalpha()
    }
    others |= {
        f".{name}": f"{{{{ ''.{name}(99999999) }}}}"
        for name in dir(str)
        if name not in METHODS[str] and not name.startswith("_") and name != "format"
    }
    others |= {f"[].{name}": f"{{{{ [1].{name}(1) }}}}" for name in dir(list) if name not in METHODS[list]}
    others |= {f"{{}}.{name}": f"{{{{ messages[0].{name}(1) }}}}" for name in dir(dict) if name not in METHODS[dict]}
    check(others)
