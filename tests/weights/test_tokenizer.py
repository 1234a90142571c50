"""The tokenizer keeps its promises: text round-trips, never turns into special tokens, and bad files say why."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.tokenizer import LONG_CHARACTERS, MAX_TOKENIZER_BYTES, Tokenizer
from fakes import BOS, EOS, SPECIALS, tiny_tokenizer, write_tiny_tokenizer

anything = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(
    st.sampled_from([*SPECIALS, " ", "a", "é", "🐳", "\n"]), max_size=8
).map("".join)


@given(anything)
def test_text_comes_back_and_spells_no_special_token(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_special(id) for id in ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")))
def test_plain_text_has_the_ids_of_the_reference_library(text: str) -> None:
    reference = _reference()
    assert tiny_tokenizer().encode(text) == reference.encode(text, add_special_tokens=False).ids


@given(st.lists(st.integers(0, 319), max_size=30))
def test_token_bytes_joined_are_the_reference_decoding(ids: list[int]) -> None:
    tokenizer = tiny_tokenizer()
    ids = [id for id in ids if not tokenizer.is_special(id)]
    ours = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    assert ours == tokenizer.decode(ids) == _reference().decode(ids)


def test_long_texts_have_the_ids_of_the_reference_library_too() -> None:
    text = "Größe naïve <｜User｜> def add(first):\n    return 深度 🐳\n" * 1000
    assert len(text) > LONG_CHARACTERS
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode(text) == tokenizer._plain.encode(text, add_special_tokens=False).ids
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode(text + "\ud800")


def test_special_tokens_are_found_by_their_spelling() -> None:
    tokenizer = tiny_tokenizer()
    for id, text in enumerate(SPECIALS):
        assert tokenizer.special(text) == id
        assert tokenizer.is_special(id)
        assert tokenizer.token_bytes(id) == text.encode()
    assert tokenizer.special("dog") is None
    assert not tokenizer.is_special(len(SPECIALS))
    assert tokenizer.vocab_size == 320
    assert tokenizer.token_bytes(320) == tokenizer.token_bytes(-1) == b""


def test_special_tokens_marked_as_ordinary_stay_out_of_text_too(tmp_path: Path) -> None:
    """DeepSeek marks <think> and the role tokens as not special; a user who types them still gets plain text."""
    document = _written(tmp_path)
    for token in document["added_tokens"]:
        token["special"] = False
    document["model"]["ignore_merges"] = True
    document["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    _write(tmp_path, document)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("a<think>b<｜User｜>")
    assert len(ids) > 3
    assert not any(tokenizer.is_special(id) for id in ids)
    assert tokenizer.decode(ids) == "a<think>b<｜User｜>"


def test_added_single_characters_are_text(tmp_path: Path) -> None:
    """DeepSeek-Coder adds thirteen letters to its vocabulary; they are text, not markup."""
    document = _written(tmp_path)
    del document["model"]["vocab"]["õ"]  # the letter that stands for byte F5, which no text holds
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 320, "content": "õ", "special": False})
    _write(tmp_path, document)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("õ") == [320]
    assert tokenizer.token_bytes(320) == "õ".encode()
    assert tokenizer.special("õ") is None
    assert tokenizer.vocab_size == 321


@pytest.mark.parametrize(
    ("configs", "bos", "eos"),
    [
        ({"tokenizer_config.json": {"bos_token": BOS, "eos_token": {"content": EOS}}}, 0, (1,)),
        ({"config.json": {"bos_token_id": 3, "eos_token_id": 4}}, 3, (4,)),
        ({"config.json": {"eos_token_id": 4}, "generation_config.json": {"eos_token_id": [19, 4]}}, None, (19, 4)),
        ({"tokenizer_config.json": {"eos_token": EOS}, "config.json": {"eos_token_id": 19}}, None, (19, 1)),
        ({"tokenizer_config.json": {"bos_token": None}, "config.json": {"bos_token_id": 5}}, None, ()),
        ({"config.json": {"bos_token_id": None, "eos_token_id": -1}}, None, ()),
        ({}, None, ()),
    ],
)
def test_first_and_last_tokens_come_from_the_configs(
    tmp_path: Path, configs: dict[str, object], bos: int | None, eos: tuple[int, ...]
) -> None:
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for name, content in configs.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(RequestError, match="lone surrogate at character 2"):
        tiny_tokenizer().encode("ab\ud800")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not found"),
        (b"", "no valid JSON"),
        (b'{"model": {', "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b"[1]", "holds no JSON object"),
        (b"{}", "byte-level"),
        (b'{"decoder": {"type": "ByteLevel"}}', "model"),
        (b'{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {}, "merges": []}}', "empty"),
        (b'{"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": "b"}, "merges": []}}', "vocab"),
        (b'{"decoder": {"type": "ByteLevel"}, "model": {"type": "Odd", "vocab": {"a": 0}, "merges": []}}', "tokenizer"),
        (b'{"added_tokens": [{"id": 0}]}', "added_tokens"),
        (b'{"added_tokens": [{"id": -1, "content": "a"}]}', "added_tokens"),
    ],
)
def test_a_broken_file_is_named_with_its_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(CheckpointError, match="larger than the"):
        Tokenizer.load(tmp_path)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: is no valid JSON"):
        Tokenizer.load(tmp_path)


@functools.cache
def _reference() -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder))
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def _written(folder: Path) -> dict:
    return json.loads((write_tiny_tokenizer(folder) / "tokenizer.json").read_text(encoding="utf-8"))


def _write(folder: Path, document: dict) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
