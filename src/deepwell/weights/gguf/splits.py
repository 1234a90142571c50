"""How text is cut before merges apply: the expressions behind the names that `tokenizer.ggml.pre` has for them.

The names are those of llama.cpp; where its expression stands in for one that its own engine cannot run, the table has
the one that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Regex, pre_tokenizers

from deepwell.weights.tokenizer import BYTE_ALPHABET

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
_HANGUL = "AC00-D7A3 3131-318E"
_CJK_MARKS = "FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F"
_BOPOMOFO = "3105-312F"
_UNSPACED = """
4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF 1000-109F AA60-AA7F
A9E0-A9FF AC00-D7AF 1100-11FF
"""
"""Scripts of East and South-East Asia, most of them written without spaces."""


def _class(ranges: str) -> str:
    """A character class of an expression, from hexadecimal code points."""
    return "[" + "".join("-".join(rf"\x{{{end}}}" for end in part.split("-")) for part in ranges.split()) + "]"


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LAST_BLANK = r"\s+(?!\S)|\s+"
_BLANKS = rf"\s*[\r\n]+|{_LAST_BLANK}"
_BY_THREE = r"\p{N}{1,3}"


def _by_case(end: str = "", but: str = "") -> str:
    """Words that are cut where small letters turn to capitals; `end` may stand behind one, `but` leaves letters out."""
    upper, lower = (rf"[\p{{L{a}}}\p{{L{b}}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]" for a, b in ("ut", "ll"))
    before = r"[^\r\n\p{L}\p{N}]?"
    return rf"{before}{upper}*{lower}+{end}|{before}{upper}+{lower}*{end}"


_BY_CASE = _by_case(f"{_CONTRACTION}?")
_GPT2 = (rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_LAST_BLANK}",)
_GPT2_BY_DIGIT = (r"\p{N}", *_GPT2)
_QWEN2 = (rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_BLANKS}",)
_LLAMA3 = (rf"{_CONTRACTION}|{_WORD}|{_BY_THREE}|{_SIGNS}|{_BLANKS}",)
_GPT4O = (rf"{_BY_CASE}|{_BY_THREE}|{_PATHS}|{_BLANKS}",)
_V3_WORDS = rf"{_class('21-2F 3A-40 5B-60 7B-7E')}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_V3_REST = rf"{_V3_WORDS}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
_DEEPSEEK_V3 = (_BY_THREE, rf"{_class(_CJK_AND_KANA)}+", _V3_REST)
_BLOOM = (r" ?[^(\s|.,!?…。，、।۔،)]+",)
_GROUPS_FROM_THE_END = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_HALVED_BLANKS = "|".join(rf"\s{{{most}}}(?!\S)" for most in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))

_TABLE: Sequence[tuple[str, tuple[str, ...]]] = (
    ("gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe", _GPT2),
    ("modern-bert gigachat a.x-4.0 mellum trillion granite-docling exaone4", _GPT2),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _GPT2_BY_DIGIT),
    ("qwen2 deepseek-r1-qwen stablelm2 hunyuan solar-open megrez kormo grok-2 f2llmv2", _QWEN2),
    ("bailingmoe bailingmoe2 llada-moe", _QWEN2),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3),
    ("dbrx smaug-bpe chatglm-bpe glm4 glm5", _LLAMA3),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK_V3),
    ("gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m", _GPT4O),
    (
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?{_class(_CASED)}+",
            rf"\s?{_class(_MARKS)}+",
            r"\s+$",
            rf"{_class(_EAST_ASIAN)}+",
            r"\p{N}+",
        ),
    ),
    ("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"{_class(_EAST_ASIAN)}+", r"\p{N}")),
    ("qwen35", (rf"{_CONTRACTION}|{_MARKED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",)),
    ("ufakzeka", (rf"{_WORD}|\p{{N}}|{_SIGNS}|{_BLANKS}",)),
    ("laguna", (r"[^\n]+|\n+", *_QWEN2)),
    ("seed-coder", (rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}",)),
    (
        "exaone-moe",
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_LAST_BLANK}",
        ),
    ),
    ("minicpm5", (_BY_THREE, rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}|{_BLANKS}")),
    ("jais-2", (rf"{_CONTRACTION}|{_WORD}|{_BY_THREE}|{_SIGNS}|\s*[\r\n]+|{_HALVED_BLANKS}|\s",)),
    ("tekken", (rf"{_by_case()}|\p{{N}}|{_PATHS}|{_BLANKS}",)),
    ("tiny_aya cohere2moe", (r"\d{1,3}(?=(?:\d{3})*\b)", *_GPT4O)),
    (
        "youtu",
        (
            "|".join(f"{_class(script)}+" for script in (_HANGUL, _CJK_MARKS, _BOPOMOFO, _CJK_AND_KANA)),
            rf"{_BY_CASE}|\p{{N}}|{_PATHS}|{_BLANKS}",
        ),
    ),
    (
        "kimi-k2",
        (r"\p{Han}+|" + _by_case(f"{_CONTRACTION}?", r"&&[^\p{Han}]") + rf"|{_BY_THREE}|{_SIGNS}|{_BLANKS}",),
    ),
    (
        "spark2_5",
        (
            *_DEEPSEEK_V3[:2],
            rf"{_V3_WORDS}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_LAST_BLANK}",
            r"\p{N}",
        ),
    ),
    ("afmoe", (_GROUPS_FROM_THE_END, rf"{_class(_UNSPACED)}+", _V3_REST)),
    ("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    ("poro-chat bloom gpt3-finnish", _BLOOM),
    ("viking", (*_BLOOM, r"\p{N}")),
    ("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2, r"[0-9][0-9][0-9]")),
    (
        "chameleon",
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            *_GPT2,
        ),
    ),
    ("default", (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
)

SPLITS: Mapping[str, tuple[str, ...]] = {name: cuts for names, cuts in _TABLE for name in names.split()}
"""Expressions by `tokenizer.ggml.pre`. Each cuts every piece that the ones before it made into matches
and what lies between; so DeepSeek-LLM's marks, whose range holds a-z, part ASCII letters from others."""
NOT_BYTES = {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"}
"""Names of vocabularies that are not made of bytes, which are not read."""
_LLAMA3_NAMES = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
)
TAKES_WHOLE = {*_LLAMA3_NAMES, "glm4", "glm5", "minicpm5", "youtu", "tekken", "granite-embed-multi-97m"}
"""Where a piece that is a token is taken whole, whether or not merges make it."""
COMPOSES = {"qwen2", "deepseek-r1-qwen", "qwen35"}
"""Where characters are composed first (NFC)."""
OPENS = {*_LLAMA3_NAMES, "tekken", "chameleon"}
"""Where the first token opens a text unless the file says otherwise; DeepSeek's own beside them."""


def behaviour(name: str) -> tuple[tuple[str, ...], bool, bool]:
    """What a name stands for: where text is cut, whether tokens are taken whole, whether characters are composed."""
    return SPLITS[name], name in TAKES_WHOLE, name in COMPOSES


def splitter(cuts: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """What cuts text by these expressions, and spells the bytes of the pieces."""
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in cuts]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_COMMON = ("smollm", "qwen2", "llama-bpe", "gpt-2", "tekken", "gpt-4o", "deepseek-v3")
"""The kinds that most models are of, the ones that cut digits finest first."""


def nearest(vocab: Iterable[str]) -> str:
    """The name of the common kind that cuts the fewest of a vocabulary's own tokens in two.

    A tokenizer never makes a token across a cut, so those of its training leave its vocabulary whole.
    """
    texts = [text for token in vocab if (text := as_text(token)) and len(text) > 1]
    ways = {name: splitter(SPLITS[name]) for name in _COMMON}
    return min(_COMMON, key=lambda name: sum(len(ways[name].pre_tokenize_str(text)) > 1 for text in texts))


def as_text(token: str) -> str:
    """What a token spells; empty for one that holds a part of a character."""
    try:
        return bytes(BYTE_ALPHABET[char] for char in token).decode()
    except (KeyError, UnicodeDecodeError):
        return ""
