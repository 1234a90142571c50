"""A model folder's tokenizer as the metadata of a GGUF file: the inverse of `gguf_tokenizer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from deepwell.errors import CheckpointError
from deepwell.weights.gguf.tokenizer import SPLITS
from deepwell.weights.json_files import read_object
from deepwell.weights.tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
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
    spelled: dict[int, tuple[str, int]] = {id: (text, _NORMAL) for text, id in document["model"]["vocab"].items()}
    for token in document.get("added_tokens") or []:
        spelled[token["id"]] = (token["content"], _CONTROL if token.get("special") else _USER)
    tokens = [spelled.get(id, (f"[PAD{id}]", _UNUSED)) for id in range(vocab)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    named = _optional(folder / "tokenizer_config.json")
    keys: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.pre": split_name(folder / "tokenizer.json", tokenizer),
        "ggml.tokens": [text for text, _ in tokens],
        "ggml.token_type": np.array([kind for _, kind in tokens], np.int32),
        "ggml.merges": merges,
        "ggml.add_bos_token": tokenizer.bos is not None,
        "ggml.add_eos_token": False,
    }
    if tokenizer.bos is not None:
        keys["ggml.bos_token_id"] = tokenizer.bos
    eos, padding = (_spelled(named.get(key), tokenizer) for key in ("eos_token", "pad_token"))
    # the one that the tokenizer names comes first, those of generation_config.json are other ways to end
    ends = sorted(tokenizer.eos, key=lambda id: id != eos)
    keys |= {f"ggml.{key}_token_id": id for key, id in zip(("eos", "eot", "eom"), ends, strict=False)}
    if padding is not None:
        keys["ggml.padding_token_id"] = padding
    if tokenizer.template is not None:
        keys["chat_template"] = tokenizer.template
    return {f"tokenizer.{key}": value for key, value in keys.items()}


def split_name(path: Path, tokenizer: Tokenizer) -> str:
    """The name that GGUF has for the way a tokenizer splits text.

    It is the one that cuts a text of all kinds alike, or at least makes the same tokens of it.
    """
    whole = tokenizers.Tokenizer.from_file(str(path))
    cut = whole.pre_tokenizer.pre_tokenize_str(_PROBE) if whole.pre_tokenizer else []
    ids = whole.encode(_PROBE, add_special_tokens=False).ids
    ways = {name: _splitter(expressions) for name, expressions in SPLITS.items()}
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


def _splitter(expressions: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}
