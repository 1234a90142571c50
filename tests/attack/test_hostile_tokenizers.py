"""Tokenizers that a stranger wrote to harm whoever loads them: each is refused with a sentence, or does what it says.

Every one of them is loaded in a process of its own whose memory is bounded, because the worst of them end a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from deepwell.errors import CheckpointError
from deepwell.weights.tokenizer_json import MOST_GROWTH, Pipeline, check_pipeline, shrinkage
from fakes import write_tiny_tokenizer

SECONDS, BYTES = 60, 3 << 30

VICTIM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
sys.path.insert(0, {tests!r})
from pathlib import Path
from deepwell.chat import Conversation, Message, find_format, render_chat
from deepwell.errors import DeepwellError
from deepwell.weights.tokenizer import Tokenizer
TEXTS = ("hello", "a" * 30 + "!", "a" * 40_000 + "!", "<x" * 2000, " " * 20_000, "\\u00e9\\U0001f433" * 500)
try:
    tokenizer = Tokenizer.load(Path({folder!r}))
    tokenizer.template = "{{{{ messages[0].content }}}}<|EOT|>"
    for text in TEXTS:
        try:
            ids = tokenizer.encode(text)
            assert len(ids) <= 17 * len(text.encode()) + 100, len(ids)
            assert tokenizer.fewest_tokens(text) <= len(ids)
        except DeepwellError as error:
            print("text:", error)
    render_chat(Conversation(messages=(Message.of("user", TEXTS[3]),)), tokenizer, find_format("jinja", tokenizer))
    print("harmless")
except DeepwellError as error:
    print("refused:", error)
"""


def outcome(folder: Path) -> str:
    code = VICTIM.format(bytes=BYTES, tests=str(Path(__file__).parent.parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
    return done.stdout


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(parts), "pretokenizers": list(parts)}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(expression: str) -> dict[str, Any]:
    return sequence(
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}, dict(LEVEL)
    )


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = sequence(part)
    return part


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "bomb": ({"normalizer": sequence(*[replace("a", "a" * 100)] * 6)}, "refused: "),
    "slow bomb": ({"normalizer": sequence(*[replace("a", "aa")] * 32)}, "refused: "),
    "bomb by expression": ({"normalizer": replace(".", "y" * 1000, "Regex")}, "refused: "),
    "bomb of nothing": ({"normalizer": replace("", "xxxx")}, "refused: "),
    "nothing by expression": ({"normalizer": replace("q*", "x", "Regex")}, ""),
    "prepended megabytes": ({"normalizer": {"type": "Prepend", "prepend": "a" * 10_000_000}}, "refused: "),
    "bytes of bytes": ({"pre_tokenizer": sequence(*[dict(LEVEL)] * 40)}, "refused: "),
    "many parts": ({"normalizer": sequence(*[{"type": "NFC"}] * 100_000)}, "refused: "),
    "deep parts": ({"normalizer": nested(5000)}, "refused: "),
    "no regular expression": ({"pre_tokenizer": split("(")}, "refused: "),
    "no class": ({"pre_tokenizer": split("[a")}, "refused: "),
    "deep expression": ({"pre_tokenizer": split("(" * 5000 + "a" + ")" * 5000)}, "refused: "),
    "long expression": ({"pre_tokenizer": split("a|" * 100_000)}, "refused: "),
    "huge repetition": ({"pre_tokenizer": split("a{100000}{100000}")}, "refused: "),
    "every way to part a text": ({"pre_tokenizer": split("(a+)+$")}, "refused: "),
    "the same, ahead": ({"pre_tokenizer": split("(?=(?:x|(a{1,}))*b)a")}, "refused: "),
    "no precompiled map": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "refused: "),
    "a map of nonsense": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}}, "refused: "),
    "pieces of no length": (
        {"pre_tokenizer": sequence({"type": "FixedLength", "length": 0}, dict(LEVEL))},
        "refused: ",
    ),
    "no type": ({"normalizer": {"x": 1}}, "refused: "),
    "no object": ({"normalizer": [1]}, "refused: "),
}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "a prefix of nothing": ({"continuing_subword_prefix": "x" * 100}, "refused: "),
    "a suffix": ({"end_of_word_suffix": "x" * 100}, "refused: "),
    "chance": ({"dropout": 1.0}, "harmless"),
    "another model": ({"type": "WordLevel", "unk_token": "q"}, "refused: "),
    "a merge of nothing": ({"merges": [["nope", "nope"]]}, "refused: "),
    "no token for the unknown": ({"unk_token": "nope", "fuse_unk": True}, ""),
}


@pytest.mark.parametrize("name", [*HOSTILE, *MODELS])
def test_a_hostile_tokenizer_does_no_harm(name: str, tmp_path: Path) -> None:
    document = json.loads((write_tiny_tokenizer(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    if name in HOSTILE:
        change, expected = HOSTILE[name]
        document |= change
    else:
        change, expected = MODELS[name]
        document["model"] |= change
    text = json.dumps(document) if name != "deep parts" else json.dumps(document | {"normalizer": "DEEP"})
    (tmp_path / "tokenizer.json").write_text(text.replace('"DEEP"', deep_text(5000)), encoding="utf-8")
    said = outcome(tmp_path)
    assert said.startswith(expected)
    assert "panicked" not in said


def deep_text(depth: int) -> str:
    """Sequences in sequences, which Python's own writer would refuse."""
    return '{"type":"Sequence","normalizers":[' * depth + "]}" * depth


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("count", "length"), [(1, 60_000), (20_000, 900), (20_000, 40)])
def test_added_tokens_that_are_long_or_many(special: bool, count: int, length: int, tmp_path: Path) -> None:
    """One of 60 kB took 3.5 GB: all its beginnings were kept."""
    document = json.loads((write_tiny_tokenizer(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    like = document["added_tokens"][0] | {"special": special}
    more = [like | {"id": 400 + n, "content": f"<{n:05}" + "x" * (length - 6)} for n in range(count)]
    document["added_tokens"] += more
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert outcome(tmp_path).startswith("harmless" if length == 40 else "refused: ")


def test_ids_far_apart_cost_nothing(tmp_path: Path) -> None:
    document = json.loads((write_tiny_tokenizer(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["vocab"]["zz"] = 2**32 - 1
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 2**32 - 2, "content": "<far>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert outcome(tmp_path).startswith("harmless")


def test_what_published_tokenizers_do_is_allowed() -> None:
    for expression in (
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s+(?!\S)|\s+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r"(?=(\d{3})+(?!\d))|\s+$",
        r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    ):
        check_pipeline(Pipeline(None, split(expression)))
    check_pipeline(Pipeline(sequence(), sequence({"type": "Digits", "individual_digits": True}, dict(LEVEL))))
    check_pipeline(Pipeline(replace(" ", "▁"), None))
    check_pipeline(Pipeline(sequence(replace("a", "a" * MOST_GROWTH), {"type": "NFC"}), None))
    with pytest.raises(CheckpointError, match="more than 16 times as long"):
        check_pipeline(Pipeline(sequence(replace("a", "a" * MOST_GROWTH), replace("b", "cc")), None))


def test_composing_leaves_a_third_of_the_bytes_at_least() -> None:
    """What `fewest_tokens` relies on."""
    from tokenizers import normalizers

    worst = 0.0
    for code in [*range(0xD800), *range(0xE000, 0x110000)]:
        composed = unicodedata.normalize("NFC", chr(code))
        for text in (chr(code), unicodedata.normalize("NFD", chr(code))):
            worst = max(worst, len(text.encode()) / len(composed.encode()))
    assert worst <= 3
    assert shrinkage(normalizers.NFC()) == 3
    assert shrinkage(None) == shrinkage(normalizers.Sequence([])) == 1
    assert shrinkage(normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])) == 0
