"""The tokenizer inside a GGUF file: byte-level BPE from `tokenizer.ggml.*`, split as the model's family splits text.

The file names its way of splitting text (`tokenizer.ggml.pre`) and leaves the expressions to the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from deepwell.errors import CheckpointError
from deepwell.weights.gguf.keys import Kind, TokenizerKey
from deepwell.weights.gguf.reader import GgufFile
from deepwell.weights.tokenizer import BYTE_ALPHABET, Tokenizer, is_text

_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1
3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D
A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
"""Letters of scripts that have cases, as the first models' tokenizer lists them, by code point."""
_MARKS = "21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"
_EAST_ASIAN = "4E00-9FA5 800-4E00 AC00-D7FF"
_CJK_AND_KANA = "4E00-9FA5 3040-309F 30A0-30FF"


def _class(ranges: str) -> str:
    """A character class of an expression, from hexadecimal code points."""
    return "[" + "".join("-".join(rf"\x{{{end}}}" for end in part.split("-")) for part in ranges.split()) + "]"


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _digits_by(most: str) -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{most}|{_WORDS_AND_SPACES}"


_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_QWEN2, _LLAMA3 = (_digits_by(""),), (_digits_by("{1,3}"),)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_class(_CASED)}+",
    rf"\s?{_class(_MARKS)}+",
    r"\s+$",
    rf"{_class(_EAST_ASIAN)}+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"{_class(_EAST_ASIAN)}+", r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    rf"{_class(_CJK_AND_KANA)}+",
    rf"{_class('21-2F 3A-40 5B-60 7B-7E')}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

SPLITS: Mapping[str, Sequence[str]] = {
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK_V3,
    "deepseek-r1-qwen": _QWEN2,
    "qwen2": _QWEN2,
    "llama-bpe": _LLAMA3,
    "gpt-2": _GPT2,
    "default": _GPT2,
}
"""Expressions by `tokenizer.ggml.pre`. Each cuts every piece that the ones before it made into matches
and what lies between; so DeepSeek-LLM's marks, whose range holds a-z, part ASCII letters from others."""


def tokenizer_from(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`. CheckpointError names the key that is missing, odd or unsupported."""
    keys = _Keys(file)
    if (model := keys.get(TokenizerKey.MODEL)) != "gpt2":
        raise keys.error(TokenizerKey.MODEL, f"is {model!r}; supported is 'gpt2', byte-level BPE")
    pre = keys.get(TokenizerKey.PRE) or "default"
    if not isinstance(pre, str) or pre not in SPLITS:
        raise keys.error(TokenizerKey.PRE, f"is {pre!r}; supported are {', '.join(SPLITS)}")
    spellings = keys.strings(TokenizerKey.TOKENS)
    types = keys.types(len(spellings))
    added = {text: id for id, text in enumerate(spellings) if types[id] not in (Kind.NORMAL, Kind.UNUSED) and text}
    special = {text: id for text, id in added.items() if not is_text(text)}
    merges = [_halves(text, keys) for text in keys.strings(TokenizerKey.MERGES)]
    made = {"".join(halves) for halves in merges}
    # special tokens stay out of the vocabulary, so that no text can become one, unless merges build upon them
    vocab = {
        text: id
        for id, text in enumerate(spellings)
        if types[id] != Kind.UNUSED and (text not in special or text in made)
    }
    keys.check_bytes(vocab)
    plain = _bpe(vocab, merges, pre, keys)
    for text in added.keys() - special.keys():
        plain.add_tokens([tokenizers.AddedToken(text, normalized=False)])
    template = file.metadata.get(TokenizerKey.TEMPLATE)
    return Tokenizer(
        plain,
        special,
        {id: text for text, id in added.items()},
        bos=keys.bos(pre, len(spellings)),
        eos=keys.ends(len(spellings)),
        template=template if isinstance(template, str) else None,
    )


class _Keys:
    """Reads `tokenizer.ggml.*`; each error names the file, the key and what is allowed."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file.files[0]}: {key} {problem}")

    def get(self, key: str) -> Any:
        return self._file.metadata.get(key)

    def strings(self, key: str) -> list[str]:
        value = self.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise self.error(key, "must be a list of strings")
        return value

    def types(self, count: int) -> list[int]:
        """A type per token: 1 normal, 2 unknown, 3 control, 4 added by a user, 5 unused, 6 byte."""
        value = self.get(TokenizerKey.TYPES)
        if value is None:
            return [Kind.NORMAL] * count
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != count:
            raise self.error(TokenizerKey.TYPES, f"must be a list of {count} whole numbers, one per token")
        return [int(kind) for kind in value]

    def id(self, key: str, count: int) -> int | None:
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count):
            raise self.error(key, f"is {value!r}; allowed are the tokens 0 to {count - 1}")
        return value

    def bos(self, pre: str, count: int) -> int | None:
        """The first token, unless the file says that none is put in front.

        DeepSeek's own templates open with one whatever that flag says; Qwen's files name one that is never used.
        """
        unwanted = self.get(TokenizerKey.ADD_BOS) is False and not pre.startswith("deepseek")
        silent = self.get(TokenizerKey.ADD_BOS) is None and pre in ("qwen2", "gpt-2", "default")
        return None if unwanted or silent else self.id(TokenizerKey.BOS, count)

    def ends(self, count: int) -> tuple[int, ...]:
        found = (self.id(key, count) for key in TokenizerKey.ENDS)
        return tuple(dict.fromkeys(id for id in found if id is not None))

    def check_bytes(self, vocab: Mapping[str, int]) -> None:
        """Every byte that UTF-8 can hold needs a token, or text would lose it."""
        never = {0xC0, 0xC1, *range(0xF5, 0x100)}
        missing = [byte for char, byte in BYTE_ALPHABET.items() if char not in vocab and byte not in never]
        if missing:
            raise self.error(
                TokenizerKey.TOKENS, f"have none for {len(missing)} of the 256 bytes, the first {missing[0]:#04x}"
            )


def _halves(merge: str, keys: _Keys) -> tuple[str, str]:
    # a space may be the first character, never a later one
    left, _, right = merge[1:].partition(" ")
    if not right:
        raise keys.error(TokenizerKey.MERGES, f"hold {merge!r}; allowed are two tokens with a space between them")
    return merge[0] + left, right


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], pre: str, keys: _Keys) -> tokenizers.Tokenizer:
    """The library's tokenizer. Merges whose parts or result are no tokens can never be used, so they are left out."""
    usable = [(a, b) for a, b in merges if a in vocab and b in vocab and a + b in vocab]
    try:
        plain = tokenizers.Tokenizer(models.BPE(vocab, usable, ignore_merges=pre == "llama-bpe"))
        if SPLITS[pre] is _QWEN2:
            plain.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in SPLITS[pre]]
        plain.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        plain.decoder = decoders.ByteLevel()
    except Exception as error:  # the library raises bare Exception
        raise keys.error(TokenizerKey.TOKENS, f"make no tokenizer: {error}") from error
    return plain
