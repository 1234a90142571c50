"""Tokenizers with strangers' templates that call tools."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

from answers import Lacking

from deepwell.weights.tokenizer import Tokenizer
from fakes import SPECIALS, write_tiny_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
HERMES_MARKS = ("<tool_call>", "</tool_call>")
MARKS = (*HERMES_MARKS, "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MARKS += ("<|python_tag|>", "<|object_ref_start|>", "<function_name>")


@functools.cache
def stranger_tokenizer(template: str, *lacks: str) -> Tokenizer:
    """A tokenizer with the tokens of Qwen and Llama but those that it `lacks`, and a template by its name."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Tokenizer.load(write_tiny_tokenizer(Path(folder), 400, (*SPECIALS, *MARKS)))
    tokenizer = Lacking(copy.copy(whole), *lacks)
    tokenizer.template = (TEMPLATES / f"{template}.jinja").read_text("utf-8")
    return tokenizer
