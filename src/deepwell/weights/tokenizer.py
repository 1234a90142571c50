"""Text to token ids and back: BPE of bytes or of pieces, where a message can never spell a special token."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from deepwell.errors import CheckpointError, RequestError
from deepwell.files import read_bounded
from deepwell.weights.added_tokens import (
    WHITE,
    Edges,
    Finder,
    Tag,
    check_lengths,
    edges_of,
    is_control,
    is_text,
    kinds,
    named_ends,
    read_added,
)
from deepwell.weights.added_tokens import Marked as Marked
from deepwell.weights.json_files import read_object
from deepwell.weights.tokenizer_json import Pipeline, check_pipeline, faults, made, shrinkage

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_TEMPLATE_BYTES = 1 << 18
TOOL_TEMPLATE_FILE = "additional_chat_templates/tool_use.jinja"
"""Where newer folders have the template for conversations with tools."""

LONG_CHARACTERS = 16_384
"""Texts longer than this are encoded without the interpreter's lock, so that other threads go on meanwhile."""

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Tokens that a model's files name, as its template calls them."""


class TokenizerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that makes a `Tokenizer`; `plain` is the document of the tokenizers library, kept as it writes it."""

    plain: msgspec.Raw
    special: dict[str, int]
    spelled: dict[int, str]
    bos: int | None
    eos: tuple[int, ...]
    template: str | None = None
    notes: tuple[str, ...] = ()
    tags: dict[str, int] = {}
    named: dict[str, str] = {}
    opens: bool = True
    tool_template: str | None = None
    edges: dict[str, Edges] = {}


class Tokenizer:
    """A byte-level BPE vocabulary with added tokens: special ones, and tags (see added_tokens.py).

    `vocab_size` is one more than the largest token id. `bos` is the token that opens a sequence, None if the model
    has none; `opens` says whether the tokenizer puts it in front of texts. `eos` are the tokens that the model's files
    name as ends of an answer. Ids that the vocabulary leaves out have no bytes. `template` is the Jinja text that came
    with the model for conversations, untrusted; None if there is none or a blank one. `tool_template` is the one for
    conversations with tools, where that is another. `named` are the spellings of `NAMED` tokens, as the model's files
    have them. `notes` are sentences about what had to be assumed and what the vocabulary cannot say, for whoever loads
    the model.
    """

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        special: Mapping[str, int],
        spelled: Mapping[int, str],
        *,
        bos: int | None = None,
        eos: Iterable[int] = (),
        template: str | None = None,
        notes: Iterable[str] = (),
        tags: Mapping[str, int] | None = None,
        named: Mapping[str, str] | None = None,
        opens: bool = True,
        tool_template: str | None = None,
        edges: Mapping[str, Edges] | None = None,
    ) -> None:
        """`plain` encodes text alone; `special` and `tags` are the added tokens; `spelled` are ids kept as written.
        `edges` are those of added tokens that are not spelled by their letters alone.

        Raises CheckpointError for an added token that is too long.
        """
        check_lengths(spelled.values())
        self._plain = plain
        self._special = dict(special)
        self._tags = dict(tags or {})
        self._edges = dict(edges or {})
        self._ends_by_name = named_ends(self._special | self._tags)
        self._tag_ids = {id: Tag(text, id) for text, id in self._tags.items()}
        self.named = dict(named or {})
        self._special_ids = frozenset(self._special.values())
        self._spelled = dict(spelled)
        self._bytes = {id: text.encode() for id, text in spelled.items()}
        self._spells = _piece_bytes if plain.model.byte_fallback else _unmapped
        ids = (*plain.get_vocab(with_added_tokens=True).values(), *self._bytes, *self._special_ids)
        self.vocab_size = max(ids) + 1
        self.bos = bos
        self.eos = tuple(eos)
        self.template = template if template and template.strip() else None
        self.tool_template = tool_template if tool_template and tool_template.strip() else None
        self.notes = tuple(notes)
        self._opens = opens

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` and, where present, the three config files that name the first and last token, and
        the template for conversations.

        Raises CheckpointError with the file and the reason.
        """
        path = folder / "tokenizer.json"
        document = _read_json(path, MAX_TOKENIZER_BYTES)
        if document is None:
            raise CheckpointError(f"{path}: not found; a model folder needs the tokenizer as tokenizer.json")
        added = read_added(document, path)
        plain = _without_special(document, added, path)
        special, tags = kinds(document, added)
        named = _read_named(folder)
        bos, eos = _boundaries(folder, named, added)
        opens = bos is not None and _opens(folder, document, bos)
        notes = losses(unencodable(plain.get_vocab(), pieces=plain.model.byte_fallback))
        template, tool_template = _templates(folder)
        return cls(
            plain,
            special,
            {id: text for text, id in added.items()},
            bos=bos,
            eos=eos,
            template=template,
            tags=tags,
            named={name: text for name in NAMED if (text := _spelling(named.get(name)))},
            notes=notes,
            opens=opens,
            tool_template=tool_template,
            edges=edges_of(document),
        )

    @classmethod
    def restore(cls, state: TokenizerState) -> Tokenizer:
        """The tokenizer that `state` was taken of. CheckpointError if it makes none."""
        added = (*state.special.values(), *state.tags.values(), *state.spelled)
        ids = (*added, *state.eos, *([] if state.bos is None else [state.bos]))
        if min(ids, default=0) < 0:
            raise CheckpointError(f"token {min(ids)} is below 0")
        try:
            check_pipeline(msgspec.json.decode(state.plain, type=Pipeline))
            plain = made(bytes(state.plain).decode())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"not a tokenizer: {error}") from error
        if not (plain.get_vocab_size() or ids):
            raise CheckpointError("the vocabulary is empty")
        return cls(
            plain,
            state.special,
            state.spelled,
            bos=state.bos,
            eos=state.eos,
            template=state.template,
            notes=state.notes,
            tags=state.tags,
            named=state.named,
            opens=state.opens,
            tool_template=state.tool_template,
            edges=state.edges,
        )

    def state(self) -> TokenizerState:
        """What `restore` needs."""
        plain = msgspec.Raw(self._plain.to_str().encode())
        return TokenizerState(
            plain,
            self._special,
            self._spelled,
            self.bos,
            self.eos,
            self.template,
            self.notes,
            self._tags,
            self.named,
            self._opens,
            self.tool_template,
            self._edges,
        )

    @property
    def opening(self) -> tuple[int, ...]:
        """What stands in front of a text that is no conversation."""
        return (self.bos,) if self._opens and self.bos is not None else ()

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer: those that the model's files name, and those whose own name says so."""
        return tuple(dict.fromkeys((*self.eos, *self._ends_by_name)))

    def encode(self, text: str, *, controls: bool = False) -> list[int]:
        """Ids of a text, with nothing put in front. A tag that it spells is one token; a control that it spells stays
        text, unless `controls` are wanted: for texts in which nobody is quoted, whose special tokens are meant.

        Raises RequestError for a lone surrogate, which no UTF-8 text can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"text holds a lone surrogate at character {error.start}; send valid Unicode") from None
        finder = self._every_token if controls else self._words
        found = finder.find(text)
        ends = [0, *(end for _, end, _ in found)]
        between = [text[at:begin] for at, begin in zip(ends, [*(begin for begin, _, _ in found), None], strict=True)]
        with faults(RequestError, "this model's tokenizer fails on the text"):
            if len(text) <= LONG_CHARACTERS:
                encoded = [self._plain.encode(piece, add_special_tokens=False).ids for piece in between]
            else:
                # Of the library's ways to encode, only the one for many texts lets go of the lock.
                encoded = [e.ids for e in self._plain.encode_batch_fast(between, add_special_tokens=False)]
        ids = list(encoded[0])
        for (_, _, id), more in zip(found, encoded[1:], strict=True):
            ids.append(id)
            ids += more
        return ids

    def fewest_tokens(self, text: str) -> int:
        """How many tokens a text has at least, told from its length: nothing is encoded."""
        share = shrinkage(self._plain.normalizer)
        told = text.encode("utf-8", "replace").translate(None, self._lost)
        return len(told) // (share * self._longest) if share else 0

    @cached_property
    def _lost(self) -> bytes:
        """Bytes that no token stands for."""
        vocab = self._plain.get_vocab(with_added_tokens=True)
        return bytes(unencodable(vocab, pieces=self._plain.model.byte_fallback))

    @cached_property
    def _longest(self) -> int:
        """Bytes of text that the longest token can stand for."""
        spells = str.encode if self._plain.model.byte_fallback else _unmapped
        learned = (len(spells(spelling)) for spelling in self._plain.get_vocab(with_added_tokens=True))
        return max(1, *learned, *map(len, self._bytes.values()))

    @cached_property
    def _every_token(self) -> Finder:
        return Finder(self._special | self._tags, self._edges)

    @cached_property
    def _words(self) -> Finder:
        words = {text: id for text, id in self._tags.items() if not is_control(text, self.template)}
        return Finder(words, self._edges)

    def between(self, before: int | None, text: str, after: int | None) -> str:
        """A text without the white space that belongs to the added tokens on its sides."""
        left, right = self._strips
        text = text.lstrip(WHITE) if before in right else text
        return text.rstrip(WHITE) if after in left else text

    @cached_property
    def _strips(self) -> tuple[set[int | None], set[int | None]]:
        """The added tokens that take the white space on their left, and on their right."""
        ids = {self.special(text): edges for text, edges in self._edges.items() if self.special(text) is not None}
        return {id for id, e in ids.items() if e.lstrip}, {id for id, e in ids.items() if e.rstrip}

    def special(self, text: str) -> int | None:
        """Id of the special token or tag spelled `text`, None if there is none."""
        return self._special.get(text, self._tags.get(text))

    @property
    def specials(self) -> tuple[str, ...]:
        """The spellings of all special tokens and tags."""
        return (*self._special, *self._tags)

    def is_special(self, id: int) -> bool:
        """Whether a token is not shown. Tags are."""
        return id in self._special_ids

    def is_control(self, id: int) -> bool:
        """Whether a token is a special one, or a tag that has a part in the layout of conversations."""
        tag = self._tag_ids.get(id)
        return id in self._special_ids or (tag is not None and is_control(tag, self.template))

    def mark(self, id: int) -> Marked | None:
        """What stands for an added token in an answer: the id of a special one, the text of a tag; None for others."""
        return id if id in self._special_ids else self._tag_ids.get(id)

    def token_bytes(self, id: int) -> bytes:
        """Bytes that a token adds to the text; the spelling of an added token; nothing for an unused id."""
        found = self._bytes.get(id)
        if found is None:
            spelling = self._plain.id_to_token(id) if 0 <= id < self.vocab_size else None
            found = self._bytes[id] = self._spells(spelling or "")
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each byte (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def _unmapped(spelling: str) -> bytes:
    """Bytes behind a vocabulary entry. An entry outside the byte alphabet is taken as written."""
    try:
        return bytes(BYTE_ALPHABET[char] for char in spelling)
    except KeyError:
        return spelling.encode()


BLANK = "\u2581"
"""How SentencePiece writes a space."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _piece_bytes(spelling: str) -> bytes:
    """Bytes behind an entry of a SentencePiece vocabulary: those of its text, or the one that it stands for."""
    byte = BYTE_TOKEN.fullmatch(spelling)
    return bytes([int(byte[1], 16)]) if byte else spelling.replace(BLANK, " ").encode()


def unencodable(vocab: Container[str], *, pieces: bool = False) -> list[int]:
    """Bytes that UTF-8 may hold and a vocabulary has no token for. Text loses them, here as in other engines.

    One of `pieces` needs them for what no piece spells, and writes them otherwise.
    """
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    spelled = {f"<0x{byte:02X}>": byte for byte in range(256)} if pieces else BYTE_ALPHABET
    return [byte for text, byte in spelled.items() if text not in vocab and byte not in never]


def losses(lost: Sequence[int]) -> tuple[str, ...]:
    """What to say of bytes that are `unencodable`."""
    if not lost:
        return ()
    named = ", ".join(f"{byte:#04x}" for byte in sorted(lost)[:8]) + (", ..." if len(lost) > 8 else "")
    return (f"the vocabulary has no token for {len(lost)} of the 256 bytes ({named}); texts lose them",)


def _read_json(path: Path, limit: int) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no file. CheckpointError if it is broken or over `limit`, or a link
    to a file that is missing, as unfinished downloads have them."""
    return read_object(path, limit) if os.path.lexists(path) else None


class _Bpe(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | list[str]]


def _without_special(document: dict[str, Any], added: Mapping[str, int], path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that knows text alone: special tokens, templates, truncation and padding taken out."""
    bytewise = _mentions_byte_level(document) or _falls_back_to_bytes(document)
    if not bytewise or not _is_bpe(document.get("model")):
        raise CheckpointError(
            f"{path}: neither a byte-level BPE tokenizer nor one that falls back to bytes; no others are supported"
        )
    try:
        model = msgspec.convert(document.get("model"), _Bpe)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: model: {error}") from error
    if not model.vocab:
        raise CheckpointError(f"{path}: model: the vocabulary is empty")
    merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.merges}
    # A vocabulary entry that no merge makes could still be matched whole (ignore_merges), so it leaves too.
    vocab = {text: id for text, id in model.vocab.items() if text not in added or is_text(text) or text in merged}
    kept = [token for token in document.get("added_tokens") or [] if is_text(token["content"])]
    # The library numbers an added token by its place unless the vocabulary holds it.
    vocab = {token["content"]: token["id"] for token in kept} | vocab
    plain = document | {
        "added_tokens": kept,
        "model": document["model"] | {"vocab": vocab, "unk_token": None, "dropout": None},  # chance is for training
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    try:
        check_lengths(added)
        check_pipeline(Pipeline(document.get("normalizer"), document.get("pre_tokenizer")))
        return made(msgspec.json.encode(plain).decode())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _is_bpe(model: Any) -> bool:
    """Whether a model that is an object is a BPE of bytes, whose pieces are written alike wherever they stand."""
    if not isinstance(model, dict):
        return True
    affixed = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return model.get("type", "BPE") == "BPE" and not affixed


def _falls_back_to_bytes(document: Mapping[str, Any]) -> bool:
    model = document.get("model")
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and model.get("byte_fallback") is True


def _mentions_byte_level(document: Mapping[str, Any]) -> bool:
    parts = [document.get("pre_tokenizer"), document.get("decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("type") == "ByteLevel":
                return True
            parts += part.get("pretokenizers") or part.get("decoders") or []
    return False


def _read_named(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says and, where it says nothing, special_tokens_map.json."""
    files = ("special_tokens_map.json", "tokenizer_config.json")
    first, last = (_read_json(folder / name, MAX_CONFIG_BYTES) or {} for name in files)
    return first | last


def _boundaries(folder: Path, named: Mapping[str, Any], added: Mapping[str, int]) -> tuple[int | None, tuple[int, ...]]:
    """First and last tokens: by spelling as `named`, by id in generation_config.json or config.json."""
    generation, model = (
        _read_json(folder / name, MAX_CONFIG_BYTES) or {} for name in ("generation_config.json", "config.json")
    )
    bos = _by_spelling(named.get("bos_token"), added) or _ids(generation, model, "bos_token_id")
    if named.get("bos_token", "") is None:  # Qwen names an id, and says here that nothing opens a sequence
        bos = []
    eos = _ids(generation, model, "eos_token_id") + _by_spelling(named.get("eos_token"), added)
    return (bos[0] if bos else None), tuple(dict.fromkeys(eos))


def _opens(folder: Path, document: Mapping[str, Any], bos: int) -> bool:
    """Whether the tokenizer puts the first token in front: as its config says or, if silent, what follows its model."""
    asked = (_read_json(folder / "tokenizer_config.json", MAX_CONFIG_BYTES) or {}).get("add_bos_token")
    return asked if isinstance(asked, bool) else _puts_in_front(document.get("post_processor"), bos)


def _puts_in_front(processor: Any, bos: int) -> bool:
    """Whether a post-processor of tokenizer.json begins a single text with this token."""
    if not isinstance(processor, dict):
        return False
    if isinstance(parts := processor.get("processors"), list):
        return any(_puts_in_front(part, bos) for part in parts)
    try:
        first = processor["single"][0]["SpecialToken"]["id"]
        return bos in processor["special_tokens"][first]["ids"]
    except (KeyError, IndexError, TypeError):
        return isinstance(cls := processor.get("cls"), list) and bos in cls  # as BERT's are written


def _templates(folder: Path) -> tuple[str | None, str | None]:
    """The template of chat_template.jinja, or else of tokenizer_config.json; of several, the one called default, and
    the one for tools."""
    tools = _template(folder / TOOL_TEMPLATE_FILE)
    if (template := _template(folder / "chat_template.jinja")) is not None:
        return template, tools
    found = (_read_json(folder / "tokenizer_config.json", MAX_CONFIG_BYTES) or {}).get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        return _text(named.get("default")), tools if tools is not None else _text(named.get("tool_use"))
    return _text(found), tools


def _template(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _spelling(value: Any) -> str | None:
    """A token as tokenizer_config.json names it: by its text, or by an object that has it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _by_spelling(value: Any, added: Mapping[str, int]) -> list[int]:
    text = _spelling(value)
    return [added[text]] if text is not None and text in added else []


def _ids(generation: Mapping[str, Any], model: Mapping[str, Any], key: str) -> list[int]:
    value = generation.get(key)
    value = model.get(key) if value is None else value
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0]
