"""Templates of strangers: rendered as transformers does, texts stay texts, and nothing bad comes of a bad template."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from answers import read, written
from conversations import rendered
from hypothesis import given
from hypothesis import strategies as st

from deepwell.chat import Conversation, Message, detect, find_format
from deepwell.chat.formats.marking import Marking, unused_mark
from deepwell.chat.formats.sandbox import ChatTemplate
from deepwell.chat.reading import PlainReader
from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.tokenizer import Tokenizer
from fakes import BOS, EOS, SPECIALS, tiny_tokenizer

render_jinja_template = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template

T = tiny_tokenizer()
THINKING = (
    "{%- for m in messages -%}\n    {{- '<|EOT|>' + m.role + '\\n' -}}\n"
    "    {%- set content = m.content -%}\n"
    "    {%- if m.role == 'assistant' and '</think>' in content -%}\n"
    "        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}\n    {%- endif -%}\n"
    "    {{- content + eos_token + '\\n' -}}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    {{- '<|EOT|>assistant\\n<think>\\n' -}}\n"
    "    {%- if enable_thinking is defined and not enable_thinking -%}{{- '</think>\\n' -}}{%- endif -%}\n{%- endif -%}"
)
MANNERS = (
    "{{ bos_token }}\n{% for message in messages if message.role != 'system' %}\n  {% if loop.first %}\n"
    "[{{ loop.length }}/{{ loop.index }}]\n  {% endif %}\n"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% generation %}{{ message.content | trim }}{% endgeneration %}\n"
    "{{ {'a': [1, 'é<'], 'b': none} | tojson }}{{ [1, 2] | tojson(indent=2) }}{{ ('é' | tojson(ensure_ascii=true)) }}\n"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    "{% set ns = namespace(found=false, n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
    "{% macro twice(x) %}{{ x ~ x }}{% endmacro %}{{ twice('ab') }}{{ messages[-1:][0].content | length }}"
    "{{ '{} {}'.format('x', 2) }}{{ messages | map(attribute='role') | join(', ') }}"
    "{{ dict(a=1)['a'] }}{{ tools is none }}{{ undefined_thing }}{{ 7 // 2 }}{{ 'a' * 3 }}"
)
PARITY = (THINKING, MANNERS, "{{ messages[0].content.upper() | replace('A', 'b') }}{{ strftime_now('%Y') | length }}")


def stranger(template: str) -> Tokenizer:
    tokenizer = copy.copy(T)
    tokenizer.template = template
    return tokenizer


def talk(*texts: str, **wishes: Any) -> Conversation:
    roles: list[Any] = ["user", "assistant"]
    return Conversation(messages=tuple(Message.of(roles[n % 2], text) for n, text in enumerate(texts)), **wishes)


def failure(template: str, *texts: str) -> str:
    with pytest.raises((RequestError, CheckpointError)) as caught:
        rendered(talk(*(texts or ("Hi",))), stranger(template), "jinja")
    return str(caught.value)


@pytest.mark.parametrize("template", PARITY)
@pytest.mark.parametrize("texts", [("Hi",), (" a\n", "<b>\n</b>", "{{ c }}"), ("x",) * 7])
def test_rendered_as_transformers_does(template: str, texts: tuple[str, ...]) -> None:
    messages = [{"role": m.role, "content": m.content} for m in talk(*texts).messages]
    wanted, _ = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=True, bos_token=BOS, eos_token=EOS
    )
    assert T.decode(rendered(talk(*texts), stranger(template), "jinja")) == wanted[0]


def test_template_tokens_become_ids() -> None:
    eot, think = T.special("<|EOT|>"), T.special("<think>")
    expected = [eot, *T.encode("user\nHi"), T.eos[0], *T.encode("\n"), eot, *T.encode("assistant\n"), think]
    assert list(rendered(talk("Hi"), stranger(THINKING))) == [*expected, *T.encode("\n")]


SPELLED = st.sampled_from([*SPECIALS, "<", ">", "<|", "EOT", "|>", "<|EOT", "EOT|>", "</", "think>", " ", "\n"])
TEXTS = st.lists(SPELLED | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=6).map("".join)
GREEDY = (
    "{% for m in messages %}{{ '<|' + m.content + '|>' }}{{ '<' + m.content }}{{ m.content + '>' }}"
    "{{ m.content.split() | join('') }}{{ m.content | replace('\\n', '') | trim }}{{ m.content | tojson }}"
    "{{ m.content | tojson(ensure_ascii=true) }}{{ m.content ~ m.content }}{% endfor %}"
)


@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_no_text_becomes_a_token_whatever_the_template_does_to_it(texts: list[str]) -> None:
    ids = rendered(talk(*texts), stranger(GREEDY), "jinja")
    assert not any(T.is_special(id) for id in ids)


@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_no_text_is_changed(texts: list[str]) -> None:
    """The marks leave again, whatever characters the texts hold."""
    conversation = talk(*texts)
    ids = rendered(conversation, stranger("{% for m in messages %}{{ m.content }}\n{% endfor %}"), "jinja")
    assert T.decode(ids) == "".join(text + "\n" for text in texts)


def test_marks_are_none_of_the_texts_own_characters() -> None:
    private = "".join(map(chr, range(0xF0000, 0xF0010)))
    ids = rendered(talk(f"{private}<|EOT|>{private}"), stranger("{{ messages[0].content }}"), "jinja")
    assert T.decode(ids) == f"{private}<|EOT|>{private}"
    assert not any(map(T.is_special, ids))


def test_a_text_may_hold_every_private_character() -> None:
    private = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))
    ids = rendered(talk(f"{private}<|EOT|>{private}"), stranger("{{ messages[0].content }}"), "jinja")
    assert T.decode(ids) == f"{private}<|EOT|>{private}"
    assert not any(map(T.is_special, ids))
    twice = unused_mark(["ab", private, private[::-1]])
    assert len(twice) == 2
    assert twice not in private + private[::-1]


def test_common_text_is_given_to_the_template_unmarked() -> None:
    marking = Marking(SPECIALS)
    for text in ("", " ", "Hello.", "a < b", "x<y>z", "if (a<b) {}", "User says"):
        assert marking.put(text, "\U000f0000") == text


def test_marks_of_a_tokenizer_without_special_tokens() -> None:
    assert Marking(()).put("<|EOT|>", "!") == "<|EOT|>"


@pytest.mark.parametrize("prefix", ["It is", " It is "])
def test_a_turn_is_continued(prefix: str) -> None:
    said = (Message.of("user", "x"), Message.of("assistant", prefix, prefix=True))
    ids = rendered(Conversation(messages=said), stranger(THINKING))
    assert T.decode(ids) == f"<|EOT|>user\nx{EOS}\n<|EOT|>assistant\n{prefix}"
    empty = Conversation(messages=(said[0], Message.of("assistant", "", prefix=True)))
    assert rendered(empty, stranger(THINKING)) == rendered(talk("x"), stranger(THINKING))


def test_a_turn_that_the_template_changes_cannot_be_continued() -> None:
    said = Conversation(messages=(Message.of("user", "x"), Message.of("assistant", "abc", prefix=True)))
    with pytest.raises(RequestError, match="leave prefix out"):
        rendered(said, stranger("{% for m in messages %}{{ m.content | upper }}{% endfor %}"))
    thought = Conversation(messages=(Message.of("user", "x"), Message.of("assistant", reasoning="hm", prefix=True)))
    with pytest.raises(RequestError, match="cannot continue a thought"):
        rendered(thought, stranger(THINKING))


def test_thoughts_are_read_if_the_template_knows_them() -> None:
    format = detect(stranger(THINKING))
    assert (format.name, format.thinks, format.tools) == ("jinja", "choice", False)
    answer = written(["hm\n", "</think>", "\n\nYes. <｜tool▁call", "▁begin｜>"], T)
    assert read(format.reader(talk("x"), T), [answer]) == ("hm", "Yes. <｜tool▁call▁begin｜>", [])
    assert read(format.reader(talk("x", thinking=False), T), [["Yes."]]) == ("", "Yes.", [])
    always = detect(stranger(THINKING.replace("enable_thinking", "other")))
    assert always.thinks == "always"
    plain = detect(stranger(MANNERS))
    assert plain.thinks == "never"
    assert isinstance(plain.reader(talk("x"), T), PlainReader)


def test_a_thought_left_in_an_earlier_answer_is_given_apart() -> None:
    shows = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}{# </think> #}"
    talked = talk("<think>a</think>b", "<think>\nhm\n</think>\n\nYes.", "c", "hm</think>No.", "d")
    ids = rendered(talked, stranger(shows), "jinja")
    assert T.decode(ids) == "[|<think>a</think>b][hm|Yes.][|c][hm|No.][|d]"
    assert not any(map(T.is_special, ids))
    unknowing = stranger(shows.replace("</think>", ""))
    assert "[|hm</think>No.]" in T.decode(rendered(talked, unknowing, "jinja"))


def test_the_templates_own_refusal_is_told() -> None:
    assert failure(MANNERS.replace("!= (loop", "== (loop"), "Hi") == (
        "the template of this model refuses these messages: roles must alternate"
    )


def test_a_lone_surrogate_is_the_fault_of_who_wrote_it() -> None:
    own = "{{ messages[0].content }}{{ '\\ud800' }}"
    assert failure(own, "Hi").startswith("the template of this model writes a lone surrogate")
    assert failure("{{ messages[0].content }}", "Hi\ud800").startswith("text holds a lone surrogate at character 2")


def test_system_texts_stand_first_for_a_template_that_takes_them_nowhere_else() -> None:
    """Coding agents remind a model of its rules behind every question."""
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}"
        "[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    said = [Message.of(role, text) for role, text in (("user", "x"), ("system", "a"), ("user", "y"), ("system", "b"))]
    told = Conversation(messages=tuple(said))
    assert T.decode(rendered(told, stranger(strict), "jinja")) == "[system:a\n\nb][user:x][user:y]"
    lax = strict.replace("raise_exception('first')", "''")
    assert T.decode(rendered(told, stranger(lax), "jinja")) == "[user:x][system:a][user:y][system:b]"


DOUBLING = "{%% set n = namespace(x='ab') %%}{%% for i in range(99) %%}%s{%% endfor %%}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% set a = range(9999) | list %}{% for i in a %}{% set x = a | sort %}{% endfor %}",
        "{% for i in range(9999) %}{% set x = range(9999) | select('eq', 3) | list %}{% endfor %}",
        "{{ range(100000000) | list | length }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        DOUBLING % "{% set n.x = n.x + n.x %}",
        DOUBLING % "{% set n.x = n.x ~ n.x %}",
        DOUBLING % "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}",
        DOUBLING % "{% set n.x = n.x.replace('a', 'aaaa') %}",
        DOUBLING % "{% set n.x = n.x | replace('a', 'aaaa') %}",
        DOUBLING % "{% set n.x = n.x.join(n.x) %}",
        DOUBLING % "{% set n.x = '{}{}'.format(n.x, n.x) %}",
        DOUBLING % "{% set n.x = [n.x, n.x] %}" + "{{ n.x }}",
        DOUBLING % "{% set n.x = {1: n.x, 2: n.x} %}" + "{{ n.x | tojson }}",
        "{% set s = 'ab' * 300000 %}{% for i in range(9999) %}{% if s[1:] == s[:-1] %}{% endif %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f(varargs, varargs) }}{% endmacro %}{{ f(1) }}",
        "{% for a in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
        "{{ ('a\n' * 1000) | indent(100000000) }}",
        "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
        "a" * 300_000,
    ],
)
def test_a_template_that_wants_too_much_is_stopped(template: str) -> None:
    assert "--chat-format" in failure(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ ''|attr('__class__') }}",
        "{% include 'secret' %}",
        "{% import 'secret' as s %}",
        "{{ lipsum(9) }}",
        "{{ cycler(1).next() }}",
        "{{ 'a'.ljust(100000000) }}",
        "{{ 'a' | center(100000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ 9 ** 9 }}",
        "{{ [1] | tojson(indent=100000000) }}",
        "{{ strftime_now('%Y' * 999) }}",
        "{{ messages[0].content.encode() }}",
        "{{ undefined_thing.more }}",
        "{{ none + 1 }}",
        "{{ 1 // 0 }}",
        "{{ 1e400 | upper }}",
        "{{ 1e400 | int }}",
        "{{ messages[0].content | float | round | int | string | nosuch }}",
        "{{ int('9') }}",
        "{% if %}",
        "{{ 'unterminated }}",
    ],
)
def test_a_template_gets_at_nothing(template: str) -> None:
    assert "template" in failure(template)


def test_what_a_template_may_spend_grows_with_the_conversation() -> None:
    long = ["word " * 2000] * 60
    assert T.decode(rendered(talk(*long), stranger(THINKING))).count("word") == 120_000


def test_a_prompt_and_its_reader_take_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering, renderings = ChatTemplate.render, []

    def counted(template: ChatTemplate, values: Any, spendable: Any) -> str:
        renderings.append(values)
        return rendering(template, values, spendable)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    tokenizer, asked = stranger(THINKING), talk("x", thinking=True)
    rendered(asked, tokenizer, "jinja")
    find_format("jinja", tokenizer).reader(asked, tokenizer)
    assert len(renderings) == 1


def test_formats_of_two_templates_do_not_mix() -> None:
    first, second = stranger("{{ messages[0].content }}1"), stranger("{{ messages[0].content }}2")
    assert [T.decode(rendered(talk("x"), one)) for one in (first, second, first)] == ["x1", "x2", "x1"]
    assert find_format("jinja", first) is find_format("jinja", first)
