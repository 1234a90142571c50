"""The files beside the weights when a GGUF file becomes a model folder: config, tokenizer, generation."""

from __future__ import annotations

from typing import Any

import msgspec

from deepwell.model.config_json import config_json
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.keys import Kind, TokenizerKey
from deepwell.weights.gguf.tokenizer import is_added
from deepwell.weights.tokenizer import Tokenizer


def folder_files(source: GgufCheckpoint, dtype: str) -> dict[str, bytes]:
    """Contents by file name. `dtype` is what most matrices will be stored as: float32, float16 or bfloat16."""
    tokenizer = source.tokenizer()
    eos = tokenizer.eos[0] if tokenizer.eos else None
    ends = list(tokenizer.ends) if len(tokenizer.ends) > 1 else eos
    generation = {"bos_token_id": tokenizer.bos, "eos_token_id": ends, **source.advice.given}
    made: dict[str, Any] = {
        "config.json": config_json(source.config, bos=tokenizer.bos, eos=eos, dtype=dtype),
        "generation_config.json": {key: value for key, value in generation.items() if value is not None},
    }
    return tokenizer_files(source, tokenizer) | {name: _json(value) for name, value in made.items()}


def tokenizer_files(source: GgufCheckpoint, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Those of `folder_files` that are the tokenizer's."""
    made = {
        "tokenizer.json": _tokenizer(source, tokenizer),
        "tokenizer_config.json": _tokenizer_config(source, tokenizer),
    }
    return {name: _json(value) for name, value in made.items()}


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def _spelling(source: GgufCheckpoint, id: int | None) -> str | None:
    return None if id is None else source.metadata[TokenizerKey.TOKENS][id]


def _tokenizer_config(source: GgufCheckpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    named: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _spelling(source, tokenizer.bos),
        "eos_token": _spelling(source, tokenizer.eos[0] if tokenizer.eos else None),
        "unk_token": tokenizer.named.get("unk_token"),
        "pad_token": tokenizer.named.get("pad_token"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.config.context,
        "chat_template": tokenizer.template,
    }
    if tokenizer.tool_template is not None:
        both = {"default": tokenizer.template, "tool_use": tokenizer.tool_template}
        named["chat_template"] = [{"name": name, "template": text} for name, text in both.items() if text is not None]
    # no opening token is said as null, which `Tokenizer.load` understands
    return {key: value for key, value in named.items() if value is not None or key == "bos_token"}


def _tokenizer(source: GgufCheckpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json: what encodes text, and all tokens that stand outside of it in their places."""
    document: dict[str, Any] = msgspec.json.decode(tokenizer.state().plain)
    spellings = source.metadata[TokenizerKey.TOKENS]
    types = source.metadata.get(TokenizerKey.TYPES)
    kinds = [Kind.NORMAL] * len(spellings) if types is None else [int(kind) for kind in types]
    added = {id: text for id, (text, kind) in enumerate(zip(spellings, kinds, strict=True)) if is_added(text, kind)}
    vocab = {text: id for id, (text, kind) in enumerate(zip(spellings, kinds, strict=True)) if kind != Kind.UNUSED}
    document["model"]["vocab"] = vocab
    document["added_tokens"] = [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kinds[id] != Kind.ADDED,
        }
        for id, text in added.items()
    ]
    document["post_processor"] = _opening(source, tokenizer)
    return document


def _opening(source: GgufCheckpoint, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """What puts the first token in front, in the words of the tokenizers library."""
    if not tokenizer.opening:
        return None
    text = _spelling(source, tokenizer.bos)
    one, sequence = {"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [one, sequence],
        "pair": [one, sequence, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {text: {"id": text, "ids": list(tokenizer.opening), "tokens": [text]}},
    }
