"""Which prompt format a checkpoint shows: by signs in its template's text, else by tokens, never by running it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import get_args

import pytest
from answers import Lacking

from deepwell.chat import FORMATS, detect, find_format
from deepwell.errors import CheckpointError, RequestError
from deepwell.options import ChatFormat
from deepwell.weights.tokenizer import MAX_TEMPLATE_BYTES, Tokenizer
from fakes import tiny_tokenizer, write_tiny_tokenizer

T = tiny_tokenizer()
TURNS = "{{ '<｜User｜>' + m['content'] }}{{ '<｜Assistant｜>' + content }}"
STRIPS = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
LLM = "{{ 'User: ' + m['content'] + '\\n\\n' }}{{ 'Assistant: ' + m['content'] + eos_token }}"
CODER = "{{ '### Instruction:\\n' + m.content }}{{ '### Response:\\n' + m.content + '\\n<|EOT|>\\n' }}"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"


def shown(template: str | None, tokenizer: Tokenizer = T, model_type: str | None = None) -> str:
    tokenizer = copy.copy(tokenizer)
    tokenizer.template = template
    return detect(tokenizer, model_type).name


@pytest.mark.parametrize(
    ("template", "model_type", "name"),
    [
        (TURNS, "deepseek_v3", "deepseek-v3"),
        (TURNS, None, "deepseek-v3"),
        (TURNS, "deepseek_v2", "deepseek-v2.5"),
        (TURNS + STRIPS + "{{ '<｜Assistant｜><think>\\n' }}", "deepseek_v3", "deepseek-r1"),
        (TURNS + STRIPS + "{{ '<｜Assistant｜><think>\n' }}", "qwen2", "deepseek-r1"),
        (TURNS + STRIPS + "<think>\\n{% if not enable_thinking %}</think>{% endif %}", "qwen2", "deepseek-r1"),
        (TURNS + STRIPS, "llama", "deepseek-r1"),
        (TURNS + STRIPS + "{% set ns.is_last_user = true %}", "deepseek_v3", "deepseek-r1-0528"),
        (TURNS + STRIPS + "{% set ns.is_last_user = true %}", "qwen3", "deepseek-r1-0528"),
        (TURNS + "{{ '</think>' }}{% if not thinking %}{% set ns.is_last_user = 1 %}", None, "deepseek-v3.1"),
        (TURNS + "{{ '</think>' }}{% if not thinking %}", "deepseek_v32", "deepseek-v3.1"),
        (LLM, "llama", "deepseek-llm"),
        (LLM.replace("\\n", "\n"), "deepseek_v2", "deepseek-llm"),
        (CODER, "llama", "deepseek-coder"),
        (CHATML, "qwen2", "jinja"),
        (CODER.replace("<|EOT|>", ""), "llama", "jinja"),
        (LLM.replace("\\n\\n", "\\n"), "llama", "jinja"),
        ("{{ raise_exception('not run') }}", None, "jinja"),
    ],
)
def test_template_shows_the_format(template: str, model_type: str | None, name: str) -> None:
    assert shown(template, T, model_type) == name


def test_words_alone_do_not_make_a_deepseek_model() -> None:
    assert shown(LLM, Lacking(T, "<｜end▁of▁sentence｜>")) == "jinja"


def test_v25_is_told_by_its_vocabulary_where_the_type_is_unknown() -> None:
    v25 = copy.copy(T)
    v25.bos = 100_000
    assert shown(TURNS, v25) == "deepseek-v2.5"
    assert shown(None, v25) == "deepseek-v2.5"


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_tokens_show_the_format_where_there_is_no_template(blank: str | None) -> None:
    wordy = Lacking(T, "<｜User｜>", "<｜Assistant｜>")
    coder = copy.copy(wordy)
    coder.eos = (*T.eos, T.special("<|EOT|>") or 0)
    bare = Lacking(T, "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
    assert shown(blank) == "deepseek-v3"
    assert shown(blank, T, "deepseek_v2") == "deepseek-v2.5"
    assert shown(blank, T, "qwen2") == "deepseek-r1"
    assert shown(blank, Lacking(T, "<think>"), "qwen2") == "deepseek-v3"
    assert shown(blank, wordy) == "deepseek-llm"
    assert shown(blank, coder) == "deepseek-coder"
    assert shown(blank, bare) == "plain"


def test_every_format_can_be_found_by_its_name() -> None:
    assert all(find_format(name) is format for name, format in FORMATS.items())
    with pytest.raises(RequestError, match=r"deepseek-v3\.1.*jinja"):
        find_format("chatml")


def test_every_format_can_be_forced_by_the_option() -> None:
    assert {"auto", "jinja", *FORMATS} == {*get_args(ChatFormat)}


def test_jinja_needs_a_template() -> None:
    with pytest.raises(CheckpointError, match="no chat template"):
        find_format("jinja", T)


def test_template_file_goes_before_the_config(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    assert Tokenizer.load(tmp_path).template is None
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))

    def loaded(template: object) -> str | None:
        text = json.dumps(config | {"chat_template": template})
        (tmp_path / "tokenizer_config.json").write_text(text, "utf-8")
        tokenizer = Tokenizer.load(tmp_path)
        assert Tokenizer.restore(tokenizer.state()).template == tokenizer.template
        return tokenizer.template

    assert loaded("one") == "one"
    assert loaded([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]) == "three"
    assert loaded([{"name": "tool_use", "template": "two"}, 7]) is None
    assert loaded(7) is None
    assert loaded(" \n") is None
    (tmp_path / "chat_template.jinja").write_text("｜four", "utf-8")
    assert loaded("one") == "｜four"


@pytest.mark.parametrize("content", [b"\xff", b"a" * (MAX_TEMPLATE_BYTES + 1)])
def test_template_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        Tokenizer.load(tmp_path)
