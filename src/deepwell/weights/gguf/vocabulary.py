"""A model folder's tokenizer as the metadata of a GGUF file: the inverse of `tokenizer.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from deepwell.errors import CheckpointError
from deepwell.weights.gguf.keys import Kind, TokenizerKey
from deepwell.weights.gguf.splits import SPLITS, splitter
from deepwell.weights.json_files import read_object
from deepwell.weights.tokenizer import Tokenizer

_PROBE = (
    "Hello World's  we'll DON'T x=12345+6.789; naïve Größe ελληνικά Привет 深度求索のモデル한국어 12三4\n\n"
    "  def f(a_b):\r\n\treturn [a, *b] # …“quoted”—dash (x)!? \U0001f433\U0001f680 e\u0301 １２３，。end  \n \n  x   "
)
"""Text that each way of splitting cuts differently."""


def tokenizer_metadata(folder: Path, vocab: int) -> dict[str, Any]:
    """`tokenizer.*` of the tokenizer in `folder`, filled up with unused tokens to the model's `vocab`.

    CheckpointError if it splits text in a way that GGUF has no name for.
    """
    tokenizer = Tokenizer.load(folder)
    document = read_object(folder / "tokenizer.json")
    if tokenizer.vocab_size > vocab:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {vocab}; "
            "they belong to different models"
        )
    spelled: dict[int, tuple[str, int]] = {id: (text, Kind.NORMAL) for text, id in document["model"]["vocab"].items()}
    for token in document.get("added_tokens") or []:
        spelled[token["id"]] = (token["content"], Kind.CONTROL if token.get("special") else Kind.ADDED)
    tokens = [spelled.get(id, (f"[PAD{id}]", Kind.UNUSED)) for id in range(vocab)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    named = _optional(folder / "tokenizer_config.json")
    keys: dict[str, Any] = {
        TokenizerKey.MODEL: "gpt2",
        TokenizerKey.PRE: split_name(folder / "tokenizer.json", tokenizer),
        TokenizerKey.TOKENS: [text for text, _ in tokens],
        TokenizerKey.TYPES: np.array([kind for _, kind in tokens], np.int32),
        TokenizerKey.MERGES: merges,
        TokenizerKey.ADD_BOS: tokenizer.bos is not None,
        TokenizerKey.ADD_EOS: False,
    }
    if tokenizer.bos is not None:
        keys[TokenizerKey.BOS] = tokenizer.bos
    eos, padding = (_spelled(named.get(key), tokenizer) for key in ("eos_token", "pad_token"))
    # the one that the tokenizer names comes first, those of generation_config.json are other ways to end
    ends = sorted(tokenizer.eos, key=lambda id: id != eos)
    keys |= dict(zip(TokenizerKey.ENDS, ends, strict=False))
    if padding is not None:
        keys[TokenizerKey.PADDING] = padding
    if tokenizer.template is not None:
        keys[TokenizerKey.TEMPLATE] = tokenizer.template
    return keys


def split_name(path: Path, tokenizer: Tokenizer) -> str:
    """The name that GGUF has for the way a tokenizer splits text.

    It is the one that cuts a text of all kinds alike, or at least makes the same tokens of it.
    """
    whole = tokenizers.Tokenizer.from_file(str(path))
    cut = whole.pre_tokenizer.pre_tokenize_str(_PROBE) if whole.pre_tokenizer else []
    ids = whole.encode(_PROBE, add_special_tokens=False).ids
    ways = {name: splitter(expressions) for name, expressions in SPLITS.items()}
    for same_cuts in (True, False):
        for name, way in ways.items():
            whole.pre_tokenizer = way
            same = way.pre_tokenize_str(_PROBE) == cut
            if same if same_cuts else whole.encode(_PROBE, add_special_tokens=False).ids == ids:
                distilled = name == "qwen2" and tokenizer.special("<｜User｜>") is not None
                return "deepseek-r1-qwen" if distilled else name
    names = ", ".join(name for name in SPLITS if name != "default")
    raise CheckpointError(f"{path}: splits text in a way that GGUF has no name for; supported are those of {names}")


def _spelled(token: Any, tokenizer: Tokenizer) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.special(text) if isinstance(text, str) else None


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}
