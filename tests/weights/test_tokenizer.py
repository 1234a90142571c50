"""The tokenizer keeps its promises: text round-trips, never turns into special tokens, and bad files say why."""

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from deepwell.chat import render_text
from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.added_tokens import Tag, named_ends
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


def tagged(folder: Path, *tags: str, template: str | None = None) -> Tokenizer:
    """The tiny tokenizer in which these tokens are not special, the new ones with ids from 320 on."""
    document = _written(folder)
    for token in document["added_tokens"]:
        token["special"] = token["content"] not in tags
    new = [tag for tag in tags if tag not in SPECIALS]
    like = document["added_tokens"][0]
    document["added_tokens"] += [like | {"id": 320 + n, "content": t, "special": False} for n, t in enumerate(new)]
    document["model"]["ignore_merges"] = True
    document["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    _write(folder, document)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Tokenizer.load(folder)


def test_a_tag_that_a_text_spells_is_one_token(tmp_path: Path) -> None:
    """`special: false` means text: anybody may write it, and it is shown."""
    tokenizer = tagged(tmp_path, "<row>", "<row>x", "<cell>")
    text = "a<row>b <cell><cell> <ro<row>xé🐳<cell"
    ids = tokenizer.encode(text)
    assert [id for id in ids if id >= 320] == [320, 322, 322, 321]
    assert ids[1] == 320
    assert tokenizer.decode(ids) == text
    assert not any(tokenizer.is_special(id) for id in ids)
    assert tokenizer.mark(320) == "<row>"
    assert isinstance(tokenizer.mark(320), Tag)
    assert tokenizer.special("<row>") == 320
    long = "<row> x" * 9000
    assert tokenizer.encode(long) == tokenizer.encode("<row> x") * 9000
    assert Tokenizer.restore(tokenizer.state()).encode(text) == ids


def test_a_control_that_a_message_spells_stays_text_whether_it_is_special_or_not(tmp_path: Path) -> None:
    """DeepSeek marks <think> and the role tokens as not special; a user who types them still gets plain text."""
    names = ["<think>", "<｜User｜>", "<|im_start|>", "[INST]", "<assistant>", "<tool_call>", "<|endoftext|>", "<mine>"]
    tokenizer = tagged(tmp_path, *names, template="{{ '<mine>' }}")
    text = "".join(f"a{name}b" for name in [*names, EOS])
    ids = tokenizer.encode(text)
    assert len(ids) > 3 * len(names)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.special(name) for name in [*names, EOS]} & set(ids)


def test_where_nobody_is_quoted_controls_may_be_spelled(tmp_path: Path) -> None:
    tokenizer = tagged(tmp_path, "<think>", "<row>")
    ids = tokenizer.encode(f"a<think><row>{EOS}b", controls=True)
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    assert ids == [a, tokenizer.special("<think>"), 320, tokenizer.special(EOS), b]


def test_ends_are_known_by_their_names_too(tmp_path: Path) -> None:
    tokenizer = tagged(tmp_path, "<|endoftext|>", "<|fim_pad|>", "<row>", "<|im_start|>", "<|file_sep|>")
    assert tokenizer.eos == (1,)
    assert tokenizer.ends == (1, 320, 321, 324)
    assert named_ends({"<|end|>": 1, "<|return|>": 2, "<|call|>": 3, "</s>": 4}) == (2, 3, 4)
    assert named_ends({"<|end|>": 1, "<|call|>": 3}) == (1, 3)
    assert named_ends({"</s>": 1, "<|plamo:eos|>": 2}) == ()


def test_tokens_are_named_by_tokenizer_config_or_else_by_special_tokens_map(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    config = {"eos_token": {"content": EOS}, "pad_token": None, "unk_token": "<think>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    more = {"bos_token": {"content": BOS}, "eos_token": "<｜User｜>", "pad_token": "a", "additional_special_tokens": []}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(more))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.named == {"bos_token": BOS, "eos_token": EOS, "unk_token": "<think>"}
    assert (tokenizer.bos, tokenizer.eos) == (0, (1, 3))
    assert Tokenizer.restore(tokenizer.state()).named == tokenizer.named


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


class PanicException(BaseException):
    """As the library raises it, under this name."""


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (PanicException("index out of bounds"), RequestError),
        (Exception("no"), RequestError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("text", ["a", "a" * 2 * LONG_CHARACTERS])
def test_a_fault_of_the_library_is_a_sentence(fault: BaseException, raised: type[BaseException], text: str) -> None:
    """A panic is no Exception, and would end the thread that it comes out of."""

    class Broken:
        def encode(self, *_: object, **__: object) -> None:
            raise fault

        encode_batch_fast = encode

    tokenizer = copy.copy(tiny_tokenizer())
    tokenizer._plain = Broken()  # type: ignore[assignment]
    with pytest.raises(raised):
        tokenizer.encode(text)


@given(anything)
def test_the_fewest_tokens_of_a_text_are_no_more_than_it_has(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.fewest_tokens("x" * 1000) > 10


@functools.cache
def _reference() -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_tokenizer(Path(folder))
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def _written(folder: Path) -> dict:
    return json.loads((write_tiny_tokenizer(folder) / "tokenizer.json").read_text(encoding="utf-8"))


def _write(folder: Path, document: dict) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


PUTS_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
}
BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("named", "processor", "opens"),
    [
        ({}, None, False),
        ({}, BYTES_ONLY, False),
        ({}, PUTS_BOS, True),
        ({}, {"type": "Sequence", "processors": [BYTES_ONLY, PUTS_BOS]}, True),
        ({}, {"type": "RobertaProcessing", "sep": [EOS, 1], "cls": [BOS, 0]}, True),
        ({"add_bos_token": True}, BYTES_ONLY, True),
        ({"add_bos_token": False}, PUTS_BOS, False),
        ({"add_bos_token": None}, PUTS_BOS, True),
        ({"bos_token": None}, PUTS_BOS, False),
    ],
)
def test_a_begin_token_is_put_in_front_only_where_the_tokenizer_does(
    named: dict[str, Any], processor: dict[str, Any] | None, opens: bool, tmp_path: Path
) -> None:
    """That tokenizer_config.json names one says nothing; templates may still write it."""
    path = write_tiny_tokenizer(tmp_path) / "tokenizer.json"
    document = json.loads(path.read_text("utf-8")) | {"post_processor": processor}
    path.write_text(json.dumps(document), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS} | named), "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos == (None if "bos_token" in named else 0)
    assert tokenizer.opening == ((0,) if opens else ())
    assert Tokenizer.restore(tokenizer.state()).opening == tokenizer.opening
    assert render_text("Hi", tokenizer) == (*tokenizer.opening, *tokenizer.encode("Hi"))


def test_a_begin_token_named_by_the_special_tokens_map(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": BOS}}))
    assert Tokenizer.load(tmp_path).opening == (0,)


def test_bytes_that_a_folder_has_no_token_for(tmp_path: Path) -> None:
    path = write_tiny_tokenizer(tmp_path) / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    del document["model"]["vocab"][chr(256 + 0x1D)]
    path.write_text(json.dumps(document), "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert "no token for 1 of the 256 bytes (0x1d)" in tokenizer.notes[0]
    assert tokenizer.decode(tokenizer.encode("a\x1db")) == "ab"
