"""Tokenizers with strangers' templates that call tools."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from answers import Lacking

from deepwell.weights.tokenizer import Tokenizer
from fakes import SPECIALS, write_tiny_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
HERMES_MARKS = ("<tool_call>", "</tool_call>")
THOUGHT_MARKS = ("<think>", "</think>")
MARKS = (*HERMES_MARKS, "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MARKS += ("<|python_tag|>", "<|object_ref_start|>", "<function_name>")


@functools.cache
def stranger_tokenizer(template: str, *lacks: str, tags: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer with the tokens of Qwen and Llama but those that it `lacks`, some of them as `tags`, and a template
    by its name."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny_tokenizer(Path(folder), 320, (*SPECIALS, *MARKS)) / "tokenizer.json"
        document = json.loads(path.read_text("utf-8"))
        for token in document["added_tokens"]:
            token["special"] = token["content"] not in tags
        path.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        tokenizer = Lacking(Tokenizer.load(path.parent), *lacks)
    tokenizer.template = (TEMPLATES / f"{template}.jinja").read_text("utf-8")
    return tokenizer
