"""The tokenizer inside a GGUF file: `tokenizer.ggml.*` as byte-level BPE, or as SentencePiece's (`pieces.py`).

Of byte-level BPE, the file names its way of splitting text (`tokenizer.ggml.pre`) and leaves the expressions to the
reader (`splits.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers

from deepwell.errors import CheckpointError, shown
from deepwell.weights.added_tokens import ENDS, is_text
from deepwell.weights.gguf.keys import Kind, TokenizerKey
from deepwell.weights.gguf.pieces import piece_tokenizer
from deepwell.weights.gguf.reader import GgufFile
from deepwell.weights.gguf.splits import COMPOSES, NOT_BYTES, OPENS, SPLITS, TAKES_WHOLE, nearest, splitter
from deepwell.weights.tokenizer import Tokenizer, losses, unencodable


def tokenizer_from(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`. CheckpointError names the key that is missing, odd or unsupported."""
    keys = _Keys(file)
    if (model := keys.text(TokenizerKey.MODEL)) not in ("gpt2", "llama"):
        found = "is missing" if model is None else f"is {shown(model)}"
        problem = f"{found}; supported are 'gpt2', byte-level BPE, and 'llama', SentencePiece's"
        raise keys.error(TokenizerKey.MODEL, problem)
    spellings = keys.strings(TokenizerKey.TOKENS)
    types, unknown = keys.types(len(spellings))
    merges = [_halves(text, keys) for text in keys.strings(TokenizerKey.MERGES)] if model == "gpt2" else []
    made = {"".join(halves) for halves in merges}
    types = [  # some writers forget to say that an end is a control token
        Kind.CONTROL if kind in (Kind.NORMAL, Kind.ADDED) and text in ENDS and text not in made else kind
        for text, kind in zip(spellings, types, strict=True)
    ]
    added = {text: id for id, text in enumerate(spellings) if is_added(text, types[id])}
    apart = {text: id for text, id in added.items() if not is_text(text)}
    # added tokens stay out of the vocabulary, so that merges cannot make one of text, unless merges build upon them
    vocab = {
        text: id
        for id, text in enumerate(spellings)
        if types[id] != Kind.UNUSED and (text not in apart or text in made)
    }
    plain, opens, notes = _of_bytes(vocab, merges, keys) if model == "gpt2" else _of_pieces(vocab, keys)
    for text in added.keys() - apart.keys():
        plain.add_tokens([tokenizers.AddedToken(text, normalized=False)])
    template, tool_template = map(keys.text, (TokenizerKey.TEMPLATE, TokenizerKey.TOOL_TEMPLATE))
    tokenizer = Tokenizer(
        plain,
        {text: id for text, id in apart.items() if types[id] != Kind.ADDED},
        {id: text for text, id in added.items()},
        bos=keys.id(TokenizerKey.BOS, len(spellings)),
        opens=opens,
        eos=keys.ends(len(spellings)),
        template=template,
        notes=(*unknown, *notes),
        tags={text: id for text, id in apart.items() if types[id] == Kind.ADDED},
        named=keys.named(spellings),
        tool_template=tool_template,
    )
    if not tokenizer.ends:
        tokenizer.notes += (keys.note("names no token that ends an answer: answers end where their length does"),)
    return tokenizer


def is_added(text: str, kind: int) -> bool:
    """Whether a token was added to those that the vocabulary learned."""
    return kind not in (Kind.NORMAL, Kind.UNUSED, Kind.BYTE) and bool(text)


class _Keys:
    """Reads `tokenizer.ggml.*`; each error names the file, the key and what is allowed."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file.files[0]}: {key} {problem}")

    def note(self, said: str) -> str:
        """A sentence about what the file says, or what is assumed where it says nothing."""
        return f"{self._file.files[0].name}: {said}"

    def get(self, key: str) -> Any:
        return self._file.metadata.get(key)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if not isinstance(value, str | None):
            raise self.error(key, f"is {shown(value)}; it must be a text")
        return value

    def flag(self, key: str) -> bool | None:
        value = self.get(key)
        if not isinstance(value, bool | None):
            raise self.error(key, f"is {shown(value)}; allowed are true and false")
        return value

    def split(self, vocab: Iterable[str]) -> tuple[str, tuple[str, ...]]:
        """The name of how text is cut, and what was assumed about it, in a sentence."""
        pre = self.text(TokenizerKey.PRE)
        if pre is not None and pre in SPLITS:
            return pre, ()
        if pre in NOT_BYTES:
            raise self.error(
                TokenizerKey.PRE, f"is {pre!r}, whose tokens are not made of bytes; such are not supported"
            )
        found = nearest(vocab)
        said = f"{TokenizerKey.PRE} is {shown(pre)}, which is not known here" if pre else f"has no {TokenizerKey.PRE}"
        why = "the one that fits the tokens of the vocabulary best"
        return found, (self.note(f"{said}: text is split as for {found!r}, {why}"),)

    def strings(self, key: str) -> list[str]:
        value = self.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise self.error(key, "must be a list of strings")
        return value

    def types(self, count: int) -> tuple[list[int], tuple[str, ...]]:
        """A type per token: 1 normal, 2 unknown, 3 control, 4 added by a user, 5 unused, 6 byte; what was assumed."""
        value = self.get(TokenizerKey.TYPES)
        if value is None:
            return [Kind.NORMAL] * count, (self.note(f"has no {TokenizerKey.TYPES}: all tokens are taken for text"),)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != count:
            raise self.error(TokenizerKey.TYPES, f"must be a list of {count} whole numbers, one per token")
        types = [int(kind) for kind in value]
        odd = [kind for kind in types if not Kind.NORMAL <= kind <= Kind.BYTE]
        if not odd:
            return types, ()
        said = f"{TokenizerKey.TYPES} has {len(odd)} types that are not known here, the first {odd[0]}"
        known = [Kind.NORMAL if not Kind.NORMAL <= kind <= Kind.BYTE else kind for kind in types]
        return known, (self.note(f"{said}: these tokens are taken for text"),)

    def id(self, key: str, count: int) -> int | None:
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count):
            raise self.error(key, f"is {shown(value)}; allowed are the tokens 0 to {count - 1}")
        return value

    def opens(self, pre: str) -> bool:
        """Whether the first token is put in front of a text: as the file says, or as the model's kind does.

        DeepSeek's texts open with one whatever that flag says.
        """
        asked = self.flag(TokenizerKey.ADD_BOS)
        return pre.startswith("deepseek") or (pre in OPENS if asked is None else asked)

    def named(self, spellings: Sequence[str]) -> dict[str, str]:
        """The tokens that the file names, as a template calls them; those that are none are left out."""
        ids = {name: self.get(key) for name, key in TokenizerKey.NAMED.items()}
        for key in TokenizerKey.NAMED.values():
            if not isinstance(id := self.get(key), int | None) or isinstance(id, bool):
                raise self.error(key, f"is {shown(id)}; it must be the number of a token")
        return {name: spellings[id] for name, id in ids.items() if id is not None and 0 <= id < len(spellings)}

    def ends(self, count: int) -> tuple[int, ...]:
        found = (self.id(key, count) for key in (*TokenizerKey.ENDS, *TokenizerKey.GAP_ENDS))
        return tuple(dict.fromkeys(id for id in found if id is not None))


def _halves(merge: str, keys: _Keys) -> tuple[str, str]:
    # a space may be the first character, never a later one
    left, _, right = merge[1:].partition(" ")
    if not right:
        raise keys.error(TokenizerKey.MERGES, f"hold {shown(merge)}; allowed are two tokens with a space between them")
    return merge[0] + left, right


Made = tuple[tokenizers.Tokenizer, bool, tuple[str, ...]]
"""What encodes text, whether the first token is put in front, and what is to be said of both."""


def _of_bytes(vocab: dict[str, int], merges: list[tuple[str, str]], keys: _Keys) -> Made:
    lost = unencodable(vocab)
    if len(lost) > 128:
        problem = f"have none for {len(lost)} of the 256 bytes, the first {lost[0]:#04x}, so this is no byte-level BPE"
        raise keys.error(TokenizerKey.TOKENS, problem)
    pre, assumed = keys.split(vocab)
    if keys.flag(TokenizerKey.ADD_BOS) is False and keys.opens(pre):
        assumed += (keys.note(f"{TokenizerKey.ADD_BOS} is false, but texts of {pre!r} open with the first token"),)
    return _bpe(vocab, merges, pre, keys), keys.opens(pre), (*assumed, *losses(lost))


def _of_pieces(vocab: dict[str, int], keys: _Keys) -> Made:
    """SentencePiece's texts are opened, and begin with a blank, unless the file says otherwise."""
    scores = keys.get(TokenizerKey.SCORES)
    prefix, opens = map(keys.flag, (TokenizerKey.ADD_BLANK, TokenizerKey.ADD_BOS))
    if not isinstance(scores, np.ndarray) or len(scores) != len(keys.strings(TokenizerKey.TOKENS)):
        raise keys.error(TokenizerKey.SCORES, "must be a list of numbers, one per token")
    try:
        plain = piece_tokenizer(vocab, scores.tolist(), prefix=prefix is not False)
    except Exception as error:  # the library raises bare Exception
        raise keys.error(TokenizerKey.TOKENS, str(error)) from error
    return plain, opens is not False, losses(unencodable(vocab, pieces=True))


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], pre: str, keys: _Keys) -> tokenizers.Tokenizer:
    """The library's tokenizer. Merges whose parts or result are no tokens can never be used, so they are left out."""
    usable = [(a, b) for a, b in merges if a in vocab and b in vocab and a + b in vocab]
    try:
        plain = tokenizers.Tokenizer(models.BPE(vocab, usable, ignore_merges=pre in TAKES_WHOLE))
        if pre in COMPOSES:
            plain.normalizer = normalizers.NFC()
        plain.pre_tokenizer = splitter(SPLITS[pre])
        plain.decoder = decoders.ByteLevel()
    except Exception as error:  # the library raises bare Exception
        raise keys.error(TokenizerKey.TOKENS, f"make no tokenizer: {error}") from error
    return plain
