"""The registry of prompt formats."""

from __future__ import annotations

from deepwell.chat.formats.base import Format
from deepwell.chat.formats.detection import STRANGER, name_of
from deepwell.chat.formats.dsml_family import DSML_FORMATS, dsml_format
from deepwell.chat.formats.jinja import jinja_format
from deepwell.chat.formats.text_turns import DEEPSEEK_CODER, DEEPSEEK_LLM, PLAIN
from deepwell.chat.formats.v3 import DEEPSEEK_R1, DEEPSEEK_R1_0528, DEEPSEEK_V3, DEEPSEEK_V25
from deepwell.chat.formats.v31 import DEEPSEEK_V31
from deepwell.errors import RequestError
from deepwell.weights.tokenizer import Tokenizer

FORMATS = {
    f.name: f
    for f in (
        DEEPSEEK_LLM,
        DEEPSEEK_CODER,
        DEEPSEEK_V25,
        DEEPSEEK_V3,
        DEEPSEEK_R1,
        DEEPSEEK_R1_0528,
        DEEPSEEK_V31,
        *DSML_FORMATS,
        PLAIN,
    )
}
"""Every format of our own, by name; detection.py says which checkpoints use which."""


def find_format(name: str, tokenizer: Tokenizer | None = None) -> Format:
    """The format called `name`; "jinja" runs the template that came with the tokenizer.

    RequestError lists the known ones. CheckpointError if a template cannot be used.
    """
    if name == STRANGER and tokenizer is not None:
        return jinja_format(tokenizer)
    if name not in FORMATS:
        raise RequestError(f"unknown prompt format {name!r}; supported: {', '.join((*FORMATS, STRANGER))}")
    return FORMATS[name]


def detect(tokenizer: Tokenizer, model_type: str | None = None) -> Format:
    """The format that a checkpoint shows; `model_type` is that of its config, where it is known.

    CheckpointError if a stranger's template cannot be used.
    """
    found = dsml_format(tokenizer, model_type) if tokenizer.template is None else None
    return found or find_format(name_of(tokenizer, model_type), tokenizer)


def trained_to_chat(format: Format, tokenizer: Tokenizer) -> bool:
    """Whether a checkpoint that shows `format` shows that it was trained to chat in it, too.

    It brings a template, or is of a kind that needs none: the formats that no template was published for, and Coder's,
    which the token that ends an answer gives away. The tokens of turns show nothing: base models have the vocabulary of
    the models that are made of them.
    """
    return tokenizer.template is not None or format in (*DSML_FORMATS, DEEPSEEK_CODER)
