"""The registry of prompt formats, and how a checkpoint shows which one it was trained on."""

from __future__ import annotations

from deepwell.chat.formats.base import Format
from deepwell.chat.formats.dsml_family import DSML_FORMATS
from deepwell.chat.formats.text_turns import DEEPSEEK_LLM, PLAIN
from deepwell.chat.formats.v3 import DEEPSEEK_V3
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

FORMATS = {f.name: f for f in (*DSML_FORMATS, DEEPSEEK_V3, DEEPSEEK_LLM, PLAIN)}
"""deepseek-v4.1, deepseek-v4, deepseek-v3.2: those families (V3.2-Exp aside). deepseek-v3: V2.5, V3, R1 and their
distilled models. deepseek-llm: LLM, MoE, Math, V2, Coder-V2. plain: any tokenizer without DeepSeek's tokens. Listed
from the most to the least demanding."""


def find_format(name: str) -> Format:
    """The format called `name`. RequestError lists the known ones."""
    if name not in FORMATS:
        raise RequestError(f"unknown prompt format {name!r}; supported: {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(tokenizer: Tokenizer) -> Format:
    """The first format whose template tokens the tokenizer has; the last one needs none."""
    return next(f for f in FORMATS.values() if all(tokenizer.special(mark.spelling) is not None for mark in f.marks))
