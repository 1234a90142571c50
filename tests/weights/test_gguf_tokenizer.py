"""Tokenizers from GGUF metadata: the ids of the folder's tokenizer, the splits of each family, special tokens apart."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import regex
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from deepwell.chat import FORMATS, Conversation, Message, render_chat, render_text
from deepwell.errors import CheckpointError
from deepwell.weights.gguf.checkpoint import GgufCheckpoint
from deepwell.weights.gguf.reader import GgufFile
from deepwell.weights.gguf.splits import SPLITS, nearest, splitter
from deepwell.weights.gguf.tokenizer import tokenizer_from
from deepwell.weights.tokenizer import BYTE_ALPHABET, Tokenizer
from fakes import BOS, EOS, SPECIALS, tiny_tokenizer

BYTES = list(BYTE_ALPHABET)


def write(file: Path, pre: str | None = "gpt-2", more: list[tuple[str, int]] = [], **keys: Any) -> Tokenizer:  # noqa: B006
    """A tokenizer of single bytes and the tokens of `more` (spelling, type) behind them."""
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    merges = keys.pop("merges", ["a b"])
    writer.add_token_list(BYTES + ["ab"] + [text for text, _ in more])
    writer.add_token_types([1] * (len(BYTES) + 1) + [kind for _, kind in more])
    writer.add_token_merges(merges)
    for name, value in keys.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokenizer_from(GgufFile(file))


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer of the tests, by way of a GGUF file."""
    file = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = GGUFWriter(file, "llama")
    gguf_files.add_tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tokenizer_from(GgufFile(file))


WORDS = st.lists(st.sampled_from([*SPECIALS, "The quick", " brown"])).map("".join)


@given(st.text() | WORDS)
def test_the_ids_of_the_folder(from_file: Tokenizer, text: str) -> None:
    """The same vocabulary gives the same ids; text that spells a special token stays text."""
    ids = from_file.encode(text)
    assert ids == tiny_tokenizer().encode(text)
    assert not any(from_file.is_special(id) for id in ids)
    assert from_file.decode(ids) == text


def test_special_tokens_and_ends(from_file: Tokenizer) -> None:
    wanted = tiny_tokenizer()
    assert (from_file.bos, from_file.eos, from_file.vocab_size) == (wanted.bos, wanted.eos, wanted.vocab_size)
    for text in SPECIALS:
        assert from_file.special(text) == wanted.special(text) is not None
        assert from_file.token_bytes(from_file.special(text) or 0) == text.encode()
    chat = Conversation(messages=(Message.of("user", f"Hello {EOS}"),))
    format = FORMATS["deepseek-v3"]
    assert render_chat(chat, from_file, format) == render_chat(chat, wanted, format)
    assert from_file.template == "{{ bos_token }}"


def test_types_of_tokens(tmp_path: Path) -> None:
    """Control tokens stand outside of text, user-defined ones inside, blanks among them; unused ones are no tokens."""
    more = [("<end>", 3), ("<row>", 4), ("   ", 4), ("[PAD7]", 5), ("<unk>", 2), ("</think>", 4)]
    keys = {"eos_token_id": 257, "eot_token_id": 258, "bos_token_id": 257, "unknown_token_id": 261}
    t = write(tmp_path / "x.gguf", more=more, add_bos_token=True, **keys)
    assert (t.bos, t.eos) == (257, (257, 258))
    assert [t.special(text) for text, _ in more] == [257, 258, None, None, 261, 262]
    assert [t.is_special(id) for id in range(257, 263)] == [True, False, False, False, True, False]
    assert t.encode("ab   ab") == [256, 259, 256]
    assert t.encode("ab<row>") == [256, 258]
    assert t.token_bytes(259) == b"   "
    assert t.token_bytes(260) == b""
    assert t.decode(t.encode("<end></think>[PAD7]")) == "<end></think>[PAD7]"
    assert not {257, 262} & set(t.encode("<end></think>"))
    assert t.named == {"bos_token": "<end>", "eos_token": "<end>", "unk_token": "<unk>"}


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_ends_are_known_by_name_whatever_their_type(tmp_path: Path, kind: int) -> None:
    """A vocabulary of Qwen's names one end; its gaps end with another."""
    more = [("<|im_end|>", 3), ("<|endoftext|>", kind), ("<|fim_pad|>", kind), ("<|fim_prefix|>", kind), ("x>", 1)]
    t = write(tmp_path / "x.gguf", "qwen2", more=more, eos_token_id=257, fim_sep_token_id=261)
    assert t.eos == (257, 261)
    assert set(t.ends) == {257, 258, 259, 261}
    assert t.is_special(258)


@pytest.mark.parametrize(
    ("pre", "add", "opens"),
    [
        ("qwen2", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
        ("gpt-2", None, False),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("deepseek-v3", False, True),
        ("deepseek-r1-qwen", None, True),
    ],
)
def test_what_opens_a_text(pre: str, add: bool | None, opens: bool, tmp_path: Path) -> None:
    keys = {} if add is None else {"add_bos_token": add}
    t = write(tmp_path / "x.gguf", pre, more=[("<bos>", 3)], bos_token_id=257, **keys)
    assert (t.bos, t.opening) == (257, (257,) if opens else ())
    assert render_text("ab", t) == ((257, 256) if opens else (256,))


def test_a_file_without_bos(tmp_path: Path) -> None:
    assert write(tmp_path / "x.gguf", "deepseek-llm").bos is None
    assert write(tmp_path / "y.gguf", None).eos == ()


def test_merges_that_make_no_token_are_never_used(tmp_path: Path) -> None:
    t = write(tmp_path / "x.gguf", merges=["c d", "a b", "Q\u0120 b"])
    assert t.encode("abcd") == [256, BYTES.index("c"), BYTES.index("d")]


def test_bytes_without_a_token(tmp_path: Path) -> None:
    """A vocabulary that lacks a few bytes is read; text loses them, as it does elsewhere, and a note says so."""
    file = tmp_path / "x.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*(char for char, byte in BYTE_ALPHABET.items() if byte not in (0x04, 0x1D)), "</s>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    t = tokenizer_from(GgufFile(file))
    assert t.notes == ("the vocabulary has no token for 2 of the 256 bytes (0x04, 0x1d); texts lose them",)
    assert t.decode(t.encode("a\x04b\x1d 1é")) == "ab 1é"
    assert Tokenizer.restore(t.state()).notes == t.notes


@pytest.mark.parametrize(
    ("pre", "said"),
    [
        (None, "x.gguf: has no tokenizer.ggml.pre: text is split as for 'smollm', the one that fits the tokens"),
        ("new", "x.gguf: tokenizer.ggml.pre is 'new', which is not known here: text is split as for 'smollm', the one"),
    ],
)
def test_an_unknown_way_of_splitting_is_guessed_by_the_vocabulary(pre: str | None, said: str, tmp_path: Path) -> None:
    t = write(tmp_path / "x.gguf", pre)
    assert t.notes[0].startswith(said)
    assert write(tmp_path / "y.gguf", "smollm", more=[("</s>", 3)]).notes == ()


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (["Ġthe", "Ġa"], "smollm"),
        (["Ġthe", "(self", "):Ċ"], "qwen2"),
        (["Ġthe", "(self", "):Ċ", "123"], "llama-bpe"),
        (["Ġthe", "Ġ123", "12345"], "gpt-2"),
        (["(self", ":/", "'s", "Camel", "//Ċ", "/Ċ/"], "tekken"),
        (["(self", "12", "'m", ",ĊĊ", "ä½ä¸"], "llama-bpe"),
    ],
)
def test_the_nearest_kind_cuts_no_token_of_the_vocabulary(own: list[str], wanted: str) -> None:
    assert nearest([*BYTES, *own]) == wanted


def test_every_name_loads_without_a_word(tmp_path: Path) -> None:
    """The 87 names of llama.cpp for vocabularies of bytes, among them those of models whose shape runs here."""
    runs_here = "kimi-k2 joyai-llm glm4 youtu kanana2 gigachat smollm tekken llama3 llama-v3 falcon3 pixtral midm-2.0"
    more = "seed-coder megrez mellum trillion kormo a.x-4.0"
    assert set(f"{runs_here} {more}".split()) <= SPLITS.keys()
    assert len(SPLITS) == 87
    for name in SPLITS:
        t = write(tmp_path / "x.gguf", name, more=[("<end>", 3)], eos_token_id=257)
        assert t.notes == ()
        assert t.decode(t.encode("Hi 12 é\n")) == "Hi 12 é\n"


def test_what_is_assumed_about_odd_values_is_said(tmp_path: Path) -> None:
    more = [("<end>", 3), ("odd", 9), ("odder", -1)]
    t = write(tmp_path / "x.gguf", more=more, eos_token_id=257)
    assert t.notes == (
        "x.gguf: tokenizer.ggml.token_type has 2 types that are not known here, the first 9: these tokens are taken "
        "for text",
    )
    assert (t.special("odd"), t.is_special(258), t.token_bytes(259)) == (None, False, b"odder")
    assert write(tmp_path / "y.gguf").notes == (
        "y.gguf: names no token that ends an answer: answers end where their length does",
    )
    (note,) = write(tmp_path / "z.gguf", "deepseek-v3", more[:1], eos_token_id=257, add_bos_token=False).notes
    assert "add_bos_token is false, but texts of 'deepseek-v3' open" in note


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("add_bos_token", "true", "add_bos_token is 'true'; allowed are true and false"),
        ("model", None, "tokenizer.ggml.model is missing; supported are 'gpt2'"),
    ],
)
def test_odd_values_are_refused_in_a_sentence(key: str, value: str | None, words: str, tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    file = GgufFile(tmp_path / "x.gguf")
    file.metadata = {name: told for name, told in file.metadata.items() if name != f"tokenizer.ggml.{key}"}
    if value is not None:
        file.metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(CheckpointError, match=words):
        tokenizer_from(file)


def test_vocabularies_that_are_not_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.pre is 'gemma4', whose tokens are not made of bytes"):
        write(tmp_path / "x.gguf", "gemma4")


def test_llama_takes_whole_tokens_that_no_merge_makes(tmp_path: Path) -> None:
    assert write(tmp_path / "x.gguf", "llama-bpe", more=[("cd", 1)]).encode("cd ab")[0] == 257
    assert write(tmp_path / "y.gguf", "qwen2", more=[("cd", 1)]).encode("cd")[0] == BYTES.index("c")


def pieces(pre: str, text: str) -> list[str]:
    """How the tokenizer of a family cuts a text: by the library, from a file that names the family."""
    with tempfile.TemporaryDirectory() as folder:
        plain: Any = write(Path(folder) / "x.gguf", pre)._plain
    return [as_text(piece) for piece, _ in plain.pre_tokenizer.pre_tokenize_str(text)]


def as_text(piece: str) -> str:
    return bytes(BYTE_ALPHABET[char] for char in piece).decode()


@pytest.mark.parametrize(
    ("pre", "text", "wanted"),
    [
        ("deepseek-v3", "abc 12345", ["abc", " ", "123", "45"]),
        ("deepseek-v3", "Hi, you(all)!\n\n x", ["Hi", ",", " you", "(all", ")!\n\n", " x"]),
        ("deepseek-v3", "深度求索ab かな", ["深度求索", "ab", " ", "かな"]),
        ("deepseek-v3", "  two", [" ", " two"]),
        ("deepseek-llm", "abc 123 x_y\nz", ["abc", " ", "123", " x", "_", "y", "\n", "z"]),
        ("deepseek-llm", "深度 Größe!? end  ", ["深度", " Gr", "öß", "e", "!?", " end", "  "]),
        ("deepseek-coder", "x12 = y;\n\n  深", ["x", "1", "2", " =", " y", ";", "\n", "\n", " ", " ", "深"]),
        ("qwen2", "I'LL be 1234\n  x", ["I", "'LL", " be", " ", "1", "2", "3", "4", "\n", " ", " x"]),
        ("deepseek-r1-qwen", "a 12", ["a", " ", "1", "2"]),
        ("llama-bpe", "I'll be 12345", ["I", "'ll", " be", " ", "123", "45"]),
        ("gpt-2", "I'll be 12345  ok", ["I", "'ll", " be", " 12345", " ", " ok"]),
    ],
)
def test_how_text_is_cut(pre: str, text: str, wanted: list[str]) -> None:
    assert pieces(pre, text) == wanted


ODD = list(
    "abZQ  \n\r\t\x0b\x1d\u00a0\u3000\u200b019٣²①!(,._=$^`~|/'’séßſİǅʰαж中文〆かー한ㅎㄅก။।。！…🐳\u0301\u0e31\u093f"
)
ODD += ["'s", "'LL", "  ", "\r\n", "1234", "    ", "<sentinel:1>", "IMGIMGABZ"]


@pytest.mark.parametrize("cuts", {tuple(cuts): pre for pre, cuts in SPLITS.items()}, ids=lambda cuts: cuts[0][:20])
def test_cutting_as_another_engine_of_expressions_does(cuts: tuple[str, ...]) -> None:
    """The `regex` package, applied expression by expression to every piece, cuts 1,000 odd strings alike."""
    rng = np.random.default_rng(0)
    patterns, way = [python_pattern(expression) for expression in cuts], splitter(cuts)
    for _ in range(1000):
        text = "".join(rng.choice(ODD, rng.integers(1, 40)))
        parts = [text]
        for pattern in patterns:
            parts = [piece for part in parts for piece in cut(pattern, part)]
        assert [as_text(piece) for piece, _ in way.pre_tokenize_str(text)] == parts


def python_pattern(expression: str) -> Any:
    """The same expression for the `regex` package: code points as characters, \\b as the library has it."""
    literal = re.sub(r"\\x\{(\w+)\}", lambda m: regex.escape(chr(int(m[1], 16))), expression)
    return regex.compile(literal.replace(r"\b", r"(?![\p{L}\p{M}\p{Nd}\p{Pc}²³¹])"), regex.V1)


def cut(pattern: Any, text: str) -> list[str]:
    found, at = [], 0
    for match in pattern.finditer(text):
        found += [text[at : match.start()], match[0]]
        at = match.end()
    return [piece for piece in (*found, text[at:]) if piece]


def test_qwen_composes_characters(tmp_path: Path) -> None:
    t = write(tmp_path / "x.gguf", "qwen2")
    assert t.encode("e\u0301") == t.encode("\u00e9")
    other = write(tmp_path / "y.gguf", "deepseek-v3")
    assert other.encode("e\u0301") != other.encode("\u00e9")


def test_the_chat_template_is_kept_as_text(tmp_path: Path) -> None:
    _, file = gguf_files.save("llama", tmp_path)
    assert GgufCheckpoint(file).tokenizer().template == "{{ bos_token }}"
    assert GgufCheckpoint(file).tokenizer().special(BOS) == 0
