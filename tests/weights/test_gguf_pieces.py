"""SentencePiece vocabularies of GGUF files: the tokens of its own way of joining, bytes, blanks, folders of them."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from gguf import GGUFWriter

from deepwell.chat import render_text
from deepwell.errors import CheckpointError
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.folder import tokenizer_files
from deepwell.weights.gguf.reader import GgufFile
from deepwell.weights.gguf.tokenizer import tokenizer_from
from deepwell.weights.gguf.vocabulary import tokenizer_metadata
from deepwell.weights.gguf.writer import write_gguf
from deepwell.weights.tokenizer import Tokenizer

BLANK = "\u2581"
CORPUS = ["the other then there either, a aa aaa aaaa banana ananas 1234 été 深度求索 the  end    of    it\n\n"] * 3
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def learned() -> list[str]:
    """Pieces in the order in which they were learned, then the characters that they are made of."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=150, show_progress=False)
    bpe.train_from_iterator([text.replace(" ", BLANK) for text in CORPUS], trainer)
    by_id = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    return [piece for piece in by_id if len(piece) > 1] + [piece for piece in by_id if len(piece) == 1]


PIECES = learned()
TOKENS = [*SPECIALS, *BYTES, *PIECES]
SCORES = [0.0] * (len(SPECIALS) + len(BYTES)) + [-float(rank) for rank in range(len(PIECES))]
TYPES = [2, 3, 3, *[6] * len(BYTES), *[1] * len(PIECES)]


def write(file: Path, tokens: list[str] = TOKENS, scores: list[float] | None = SCORES, **keys: Any) -> Tokenizer:
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types((TYPES + [1] * len(tokens))[: len(tokens)])
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokenizer_from(GgufFile(file))


def by_score(text: str) -> list[int]:
    """SentencePiece's own way: of all neighbours that make a piece, join those of the best score, the leftmost."""
    ids = {piece: len(SPECIALS) + len(BYTES) + at for at, piece in enumerate(PIECES)}
    parts = list(text.replace(" ", BLANK))
    while True:
        pairs = [(-SCORES[ids[a + b]], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [id for part in parts for id in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


def silent(done: int, total: int) -> None:
    pass


def odd(chosen: random.Random) -> str:
    words = [
        *"abehnrt,  \n\t<>/s",
        "the",
        "there",
        " aaa",
        "   ",
        "深度",
        "é",
        "\u0301",
        "🐳",
        BLANK,
        "<0x41>",
        "</s>",
        "１٣",
    ]
    return "".join(chosen.choice(words) for _ in range(chosen.randint(1, 30)))


def test_1000_odd_strings_have_the_tokens_of_sentencepiece(tmp_path: Path) -> None:
    chosen = random.Random(3)
    plain = write(tmp_path / "x.gguf", add_space_prefix=False)
    prefixed = write(tmp_path / "y.gguf")
    for _ in range(1000):
        text = odd(chosen)
        assert plain.encode(text) == by_score(text), text
        assert prefixed.encode(text) == by_score(f" {text}"), text
        assert plain.decode(plain.encode(text)) == text.replace(BLANK, " ")


def test_bytes_and_special_tokens(tmp_path: Path) -> None:
    t = write(tmp_path / "x.gguf")
    assert [t.token_bytes(id) for id in (1, 3, 3 + 0x0A, 3 + 0xFF)] == [b"<s>", b"\x00", b"\n", b"\xff"]
    assert t.token_bytes(TOKENS.index(BLANK + BLANK)) == b"  "
    assert (t.bos, t.eos, t.special("</s>"), t.vocab_size) == (1, (2,), 2, len(TOKENS))
    assert not any(t.is_special(id) for id in t.encode("<s>a</s><0x41>"))
    assert t.notes == ()


@pytest.mark.parametrize(("keys", "opens"), [({}, True), ({"add_bos_token": False}, False)])
def test_what_opens_a_text(keys: dict[str, bool], opens: bool, tmp_path: Path) -> None:
    t = write(tmp_path / "x.gguf", **keys)
    assert render_text("a", t) == ((1,) if opens else ()) + tuple(by_score(" a"))


def test_a_vocabulary_without_byte_tokens(tmp_path: Path) -> None:
    tokens = [f"[PAD{at}]" if text in BYTES[200:] else text for at, text in enumerate(TOKENS)]
    t = write(tmp_path / "x.gguf", tokens)
    assert "no token for 45 of the 256 bytes (0xc8, " in t.notes[0]
    assert t.decode(t.encode("a🐳b"))  # what no token spells is lost, and nothing breaks


@pytest.mark.parametrize(
    ("tokens", "scores", "said"),
    [
        (TOKENS, None, "tokenizer.ggml.scores must be a list of numbers, one per token"),
        (TOKENS, SCORES[:-1], "tokenizer.ggml.scores must be a list of numbers, one per token"),
        ([*TOKENS, "x" * 257], [*SCORES, 0.0], "tokens hold one of 257 characters; allowed are 256"),
    ],
)
def test_broken_vocabularies(tokens: list[str], scores: list[float] | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        write(tmp_path / "x.gguf", tokens, scores)


def test_a_folder_keeps_the_tokens(tmp_path: Path) -> None:
    """What `convert` writes beside the weights reads as the file does, here and in the library that others use."""
    t = write(tmp_path / "x.gguf")

    class Source:
        metadata = GgufFile(tmp_path / "x.gguf").metadata
        config = msgspec.defstruct("Config", [("context", int, 512)])()

    source: GgufCheckpoint = Source()  # type: ignore[assignment]
    for name, content in tokenizer_files(source, t).items():
        (tmp_path / name).write_bytes(content)
    again, whole = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    chosen = random.Random(5)
    for text in (odd(chosen).replace("</s>", "") for _ in range(200)):
        assert again.encode(text) == t.encode(text)
        assert whole.encode(text).ids == [1, *t.encode(text)]
        assert whole.decode(t.encode(text)) == text.replace(BLANK, " ")
    assert (again.bos, again.opening, again.eos) == (t.bos, t.opening, t.eos)


BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
PREFIXED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, BLANKS]}


def folder_of(folder: Path, **changed: Any) -> Path:
    """A folder as transformers converts SentencePiece's: merges by score, those of one piece by their left part."""
    ids = {piece: id for id, piece in enumerate(TOKENS)}
    cuts = [(piece[:at], piece[at:]) for piece in PIECES for at in range(1, len(piece))]
    merges = [list(pair) for pair in cuts if pair[0] in ids and pair[1] in ids]
    added = [{"id": id, "content": text, "special": True} for id, text in enumerate(SPECIALS)]
    added.append({"id": len(TOKENS), "content": "<row>", "special": False})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "BPE", "vocab": ids, "merges": merges, "byte_fallback": True, "fuse_unk": True}
    document = {
        "added_tokens": [token | flags for token in added],
        "normalizer": PREFIXED,
        "decoder": {"type": "ByteFallback"},
        "model": model | {"unk_token": "<unk>"} | changed.pop("model", {}),
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(document | changed))
    named = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(named))
    return folder


@pytest.mark.parametrize("normalizer", [PREFIXED, BLANKS])
def test_a_folder_becomes_a_gguf_file(normalizer: Any, tmp_path: Path) -> None:
    """1,000 odd strings have the same tokens before and after, and every token is what it was."""
    wanted = Tokenizer.load(folder := folder_of(tmp_path / "model", normalizer=normalizer))
    metadata = tokenizer_metadata(folder, len(TOKENS) + 3)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.tokens"] == [*TOKENS, "<row>", f"[PAD{len(TOKENS) + 1}]", f"[PAD{len(TOKENS) + 2}]"]
    assert metadata["tokenizer.ggml.token_type"].tolist() == [*TYPES, 4, 5, 5]
    learned = [at for at, piece in enumerate(PIECES) if len(piece) > 1]
    start = len(SPECIALS) + len(BYTES)
    assert [metadata["tokenizer.ggml.scores"][start + at] for at in learned] == [-float(at) for at in learned]
    names = ("bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_eos_token", "add_space_prefix")
    said = [metadata[f"tokenizer.ggml.{name}"] for name in names]
    assert said == [1, 2, 0, True, False, normalizer is PREFIXED]
    write_gguf(file := tmp_path / "x.gguf", {"general.architecture": "llama"} | metadata, [], silent, lambda: None)
    got = tokenizer_from(GgufFile(file))
    chosen = random.Random(9)
    for text in (odd(chosen) + chosen.choice(["", "<row>", " <row> a"]) for _ in range(1000)):
        assert got.encode(text) == wanted.encode(text), text
        assert got.encode(text, controls=True) == wanted.encode(text, controls=True), text
    ids = range(wanted.vocab_size)
    assert list(map(got.token_bytes, ids)) == list(map(wanted.token_bytes, ids))
    assert list(map(got.mark, ids)) == list(map(wanted.mark, ids))
    assert (got.opening, got.eos) == (wanted.opening, wanted.eos)


PAIRS = [list(piece) for piece in PIECES if len(piece) == 2]
REPLACED = {"type": "Sequence", "normalizers": [*PREFIXED["normalizers"], {"type": "NFKC"}]}  # type: ignore[misc]
METASPACE = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": False}
WORDS = "has a normalizer or pre_tokenizer that GGUF has no words for: supported are those"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normalizer": REPLACED}, WORDS),
        ({"normalizer": None, "pre_tokenizer": METASPACE}, WORDS),  # no blank before a text that begins with one
        ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, WORDS),
        ({"model": {"merges": PAIRS[:2]}}, "are pieces that no merge joins as '"),
        ({"model": {"merges": [*PAIRS[:2], PAIRS[0]]}}, "other merges stand between those that make '"),
    ],
)
def test_what_gguf_cannot_say_of_pieces(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        tokenizer_metadata(folder_of(tmp_path / "model", **changed), len(TOKENS) + 1)
