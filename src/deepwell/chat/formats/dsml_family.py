"""The formats of V3.2, V4 and V4.1, and how a checkpoint that brings no template shows one of them."""

from __future__ import annotations

from deepwell.chat.formats.base import Format
from deepwell.chat.formats.v4 import DEEPSEEK_V4
from deepwell.chat.formats.v32 import DEEPSEEK_V32
from deepwell.chat.formats.v41 import DEEPSEEK_V41
from deepwell.weights.tokenizer import Tokenizer

DSML_FORMATS = (DEEPSEEK_V41, DEEPSEEK_V4, DEEPSEEK_V32)
"""Each has template tokens that those after it lack."""


def dsml_format(tokenizer: Tokenizer, model_type: str | None = None) -> Format | None:
    """The one that the `model_type` of config.json names or, where that names none, the tokens; None for others.

    Only for a checkpoint without a template: V3.2-Exp has the model_type of V3.2 and the template of V3.1.
    """
    named = next((f for f in DSML_FORMATS if model_type in f.model_types), None)
    return named or next(
        (f for f in DSML_FORMATS if all(tokenizer.special(m.spelling) is not None for m in f.marks)), None
    )
