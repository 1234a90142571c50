"""A model folder's tokenizer as the metadata of a GGUF file: the inverse of `tokenizer.py`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from deepwell.errors import CheckpointError
from deepwell.weights.added_tokens import named_ends
from deepwell.weights.gguf.keys import Kind, TokenizerKey
from deepwell.weights.gguf.pieces import has_prefix, ids_of, piece_scores, piece_tokenizer
from deepwell.weights.gguf.splits import SPLITS, as_text, behaviour, splitter
from deepwell.weights.json_files import read_object
from deepwell.weights.tokenizer import BLANK, BYTE_TOKEN, Tokenizer
from deepwell.weights.tokenizer_json import faults

_PROBES = (
    "Hello World's  we'll DON'T x=12345+6.789; naïve Größe ελληνικά Привет 深度求索のモデル한국어 12三4\n\n"
    "  def f(a_b):\r\n\treturn [a, *b] # …“quoted”—dash (x)!? \U0001f433\U0001f680 e\u0301 １２３，。end  \n \n  x   ",
    *(
        f"{before}{digits}{after}"
        for before in ("", " ", "  ", "\n", "\t ", "a", "-")
        for digits in ("1", "12", "1234567", "٣٤", "²")
        for after in ("", " ", "  b", "\n")
    ),
    *(
        f"{blanks}x{blanks}.{blanks}"
        for blanks in (" ", "  ", "\n", " \n", "\n ", "\r\n", "\t\t", "\u00a0", "\u3000", " " * 9)
    ),
    "camelCase HTTPServer ÉcoleÉTÉ I'LL they'Ve l'été türkiye'de /usr//bin/\n/ a/b\n// !!!\n\n??",
    "漢字かな交じり文、カタカナ。한글ㅎㅎ ไทย ລາວ ខ្មែร မြန်မာ ㄅㄆ！：「」 हिन्दी বাংলা العربية עברית",
)
"""Texts that ways of splitting cut differently."""


def tokenizer_metadata(folder: Path, vocab: int) -> dict[str, Any]:
    """`tokenizer.*` of the tokenizer in `folder`, filled up with unused tokens to the model's `vocab`.

    CheckpointError if it splits text, joins pieces or writes blanks in a way that GGUF has no words for.
    """
    tokenizer = Tokenizer.load(folder)
    document = read_object(folder / "tokenizer.json")
    if tokenizer.vocab_size > vocab:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model only {vocab}; "
            "they belong to different models"
        )
    named = _optional(folder / "tokenizer_config.json")
    keys: dict[str, Any] = (
        _of_pieces(folder, tokenizer, document, vocab)
        if document["model"].get("byte_fallback")
        else {
            TokenizerKey.MODEL: "gpt2",
            TokenizerKey.PRE: split_name(folder / "tokenizer.json", tokenizer),
            TokenizerKey.MERGES: [" ".join(merge) for merge in _merges(document)],
            **_tokens(document, vocab),
        }
    )
    keys |= {TokenizerKey.ADD_BOS: bool(tokenizer.opening), TokenizerKey.ADD_EOS: False}
    if tokenizer.bos is not None:
        keys[TokenizerKey.BOS] = tokenizer.bos
    eos, padding = (_spelled(named.get(key), tokenizer) for key in ("eos_token", "pad_token"))
    keys |= dict(zip(TokenizerKey.ENDS, _ends(tokenizer, eos, folder), strict=False))
    if padding is not None:
        keys[TokenizerKey.PADDING] = padding
    if tokenizer.template is not None:
        keys[TokenizerKey.TEMPLATE] = tokenizer.template
    if tokenizer.tool_template is not None:
        keys[TokenizerKey.TOOL_TEMPLATE] = tokenizer.tool_template
    return keys


def _tokens(document: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The spelling and the type of each token."""
    spelled: dict[int, tuple[str, int]] = {id: (text, Kind.NORMAL) for text, id in document["model"]["vocab"].items()}
    for token in document.get("added_tokens") or []:
        spelled[token["id"]] = (token["content"], Kind.CONTROL if token.get("special") else Kind.ADDED)
    tokens = [spelled.get(id, (f"[PAD{id}]", Kind.UNUSED)) for id in range(vocab)]
    return {
        TokenizerKey.TOKENS: [text for text, _ in tokens],
        TokenizerKey.TYPES: np.array([kind for _, kind in tokens], np.int32),
    }


def _merges(document: dict[str, Any]) -> list[tuple[str, str]]:
    halves = (merge.split(" ") if isinstance(merge, str) else merge for merge in document["model"]["merges"])
    return [(left, right) for left, right in halves]


def _of_pieces(folder: Path, tokenizer: Tokenizer, document: dict[str, Any], vocab: int) -> dict[str, Any]:
    """The keys of SentencePiece's: scores in the place of merges, and what is done with blanks."""
    keys = _tokens(document, vocab)
    types, unknown = keys[TokenizerKey.TYPES], document["model"].get("unk_token") or tokenizer.named.get("unk_token")
    for id, text in enumerate(keys[TokenizerKey.TOKENS]):
        if types[id] == Kind.NORMAL and BYTE_TOKEN.fullmatch(text):
            types[id] = Kind.BYTE
        elif text == unknown and types[id] != Kind.UNUSED:
            types[id], keys[TokenizerKey.UNKNOWN] = Kind.UNKNOWN, id
    pieces = {text: id for id, text in enumerate(keys[TokenizerKey.TOKENS]) if types[id] in (Kind.NORMAL, Kind.BYTE)}
    # what would join to an added token is none of text's
    merges = [(left, right) for left, right in _merges(document) if left + right in pieces]
    try:
        keys[TokenizerKey.SCORES] = np.array(piece_scores(pieces, merges, vocab), np.float32)
        piece_tokenizer(pieces, keys[TokenizerKey.SCORES].tolist(), prefix=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: tokenizer.json joins pieces as GGUF's scores cannot say: {error}; convert to a folder"
        ) from None
    plain = tokenizers.Tokenizer.from_str(bytes(tokenizer.state().plain).decode())
    prefix = has_prefix(plain, [*_PROBES, *_joined(text.replace(BLANK, " ") for text in pieces)])
    if prefix is None:
        raise CheckpointError(
            f"{folder}: tokenizer.json has a normalizer or pre_tokenizer that GGUF has no words for: supported "
            "are those that write spaces as U+2581 and put one in front of every text or of none; convert to a folder"
        )
    return {TokenizerKey.MODEL: "llama", TokenizerKey.PRE: "default", TokenizerKey.ADD_BLANK: prefix, **keys}


def _ends(tokenizer: Tokenizer, eos: int | None, folder: Path) -> list[int]:
    """The end that the tokenizer names, then others of the model's files that are not known by their names."""
    known = named_ends({text: id for text in tokenizer.specials if (id := tokenizer.special(text)) is not None})
    first = eos if eos in tokenizer.eos else next(iter(tokenizer.eos), None)
    ends = [id for id in sorted(tokenizer.eos, key=lambda id: id != first) if id == first or id not in known]
    if len(ends) > len(TokenizerKey.ENDS):
        raise CheckpointError(
            f"{folder}: names {len(ends)} tokens as ends; GGUF has keys for {len(TokenizerKey.ENDS)}: take some out of "
            "eos_token_id in generation_config.json"
        )
    return ends


def split_name(path: Path, tokenizer: Tokenizer) -> str:
    """The name that GGUF has for the way a tokenizer splits text.

    It makes the same tokens of all probes, some of them made of the vocabulary's own tokens, and cuts them alike if
    any name does. CheckpointError if there is none.
    """
    with faults(CheckpointError, str(path)):
        whole = tokenizers.Tokenizer.from_file(str(path))
    probes = [*_PROBES, *_joined(map(as_text, whole.get_vocab(with_added_tokens=False)))]
    cuts = _cut(whole.pre_tokenizer, probes)
    wanted = ids_of(whole, probes)
    names = [name for name in SPLITS if name != "default"]
    if tokenizer.special("<｜User｜>") is not None:
        names.sort(key=lambda name: name != "deepseek-r1-qwen")  # told apart from qwen2 by what its template writes
    alike = {ways: _cut(splitter(ways), probes) == cuts for ways in SPLITS.values()}
    takes = bool(whole.model.ignore_merges)
    for name in sorted(names, key=lambda name: (not alike[SPLITS[name]], takes != behaviour(name)[1])):
        ways, takes_whole, composes = behaviour(name)
        whole.pre_tokenizer, whole.model.ignore_merges = splitter(ways), takes_whole
        whole.normalizer = normalizers.NFC() if composes else None
        if ids_of(whole, probes) == wanted:
            return name
    raise CheckpointError(
        f"{path}: splits text in a way that GGUF has no name for; supported are those of {', '.join(names)}"
    )


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Texts that run a vocabulary's own together, so that what splitting would part shows."""
    tokens = sorted(filter(None, texts))
    chosen = random.Random(0)
    for _ in range(200):
        yield "".join(chosen.choice(tokens) for _ in range(12))


def _cut(way: pre_tokenizers.PreTokenizer | None, texts: Sequence[str]) -> list[list[tuple[str, tuple[int, int]]]]:
    return [way.pre_tokenize_str(text) for text in texts] if way else []


def _spelled(token: Any, tokenizer: Tokenizer) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.special(text) if isinstance(text, str) else None


def _optional(file: Path) -> dict[str, Any]:
    return read_object(file) if file.is_file() else {}
