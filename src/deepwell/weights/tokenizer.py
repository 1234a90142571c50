"""Text to token ids and back: a byte-level BPE `tokenizer.json`, where text can never spell a special token."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from deepwell.errors import CheckpointError, RequestError
from deepwell.weights.json_files import read_object

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_TEMPLATE_BYTES = 1 << 18

LONG_CHARACTERS = 16_384
"""Texts longer than this are encoded without the interpreter's lock, so that other threads go on meanwhile."""

Marked = str | int
"""A piece of text, or the id of a special token that stands between two pieces."""


class TokenizerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that makes a `Tokenizer`; `plain` is the document of the tokenizers library, kept as it writes it."""

    plain: msgspec.Raw
    special: dict[str, int]
    spelled: dict[int, str]
    bos: int | None
    eos: tuple[int, ...]
    template: str | None = None
    notes: tuple[str, ...] = ()


class Tokenizer:
    """A byte-level BPE vocabulary with special tokens that stand outside of text.

    `vocab_size` is one more than the largest token id. `bos` is the token that opens a sequence, None if the model
    has none; `eos` are the tokens that end an answer. Ids that the vocabulary leaves out have no bytes. `template` is
    the Jinja text that came with the model for conversations, untrusted; None if there is none or a blank one. `notes`
    are sentences about what had to be assumed and what the vocabulary cannot say, for whoever loads the model.
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
    ) -> None:
        """`plain` encodes text alone; `special` are the tokens outside of text; `spelled` are ids kept as written."""
        self._plain = plain
        self._special = dict(special)
        self._special_ids = frozenset(self._special.values())
        self._spelled = dict(spelled)
        self._bytes = {id: text.encode() for id, text in spelled.items()}
        ids = (*plain.get_vocab(with_added_tokens=True).values(), *self._bytes, *self._special_ids)
        self.vocab_size = max(ids) + 1
        self.bos = bos
        self.eos = tuple(eos)
        self.template = template if template and template.strip() else None
        self.notes = tuple(notes)

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
        added = _added_tokens(document, path)
        plain = _without_special(document, added, path)
        spelled = {id: text for text, id in added.items()}
        special = {text: id for text, id in added.items() if not is_text(text)}
        bos, eos = _boundaries(folder, added)
        notes = losses(unencodable(plain.get_vocab()))
        return cls(plain, special, spelled, bos=bos, eos=eos, template=_template(folder), notes=notes)

    @classmethod
    def restore(cls, state: TokenizerState) -> Tokenizer:
        """The tokenizer that `state` was taken of. CheckpointError if it makes none."""
        ids = (*state.special.values(), *state.spelled, *state.eos, *([] if state.bos is None else [state.bos]))
        if min(ids, default=0) < 0:
            raise CheckpointError(f"token {min(ids)} is below 0")
        try:
            plain = tokenizers.Tokenizer.from_buffer(bytes(state.plain))
        except Exception as error:  # the library raises bare Exception
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
        )

    def state(self) -> TokenizerState:
        """What `restore` needs."""
        plain = msgspec.Raw(self._plain.to_str().encode())
        return TokenizerState(plain, self._special, self._spelled, self.bos, self.eos, self.template, self.notes)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Nothing is put in front, and text that spells a special token stays text.

        Raises RequestError for a lone surrogate, which no UTF-8 text can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"text holds a lone surrogate at character {error.start}; send valid Unicode") from None
        if len(text) <= LONG_CHARACTERS:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        # Of the library's ways to encode, only the one for many texts lets go of the lock.
        (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)

    def special(self, text: str) -> int | None:
        """Id of the special token spelled `text`, None if there is none."""
        return self._special.get(text)

    @property
    def specials(self) -> tuple[str, ...]:
        """The spellings of all special tokens."""
        return tuple(self._special)

    def is_special(self, id: int) -> bool:
        return id in self._special_ids

    def token_bytes(self, id: int) -> bytes:
        """Bytes that a token adds to the text; the spelling of a special token; nothing for an unused id."""
        found = self._bytes.get(id)
        if found is None:
            spelling = self._plain.id_to_token(id) if 0 <= id < self.vocab_size else None
            found = self._bytes[id] = _unmapped(spelling or "")
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


def unencodable(vocab: Container[str]) -> list[int]:
    """Bytes that UTF-8 may hold and a vocabulary has no token for. Text loses them, here as in other engines."""
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    return [byte for char, byte in BYTE_ALPHABET.items() if char not in vocab and byte not in never]


def losses(lost: Sequence[int]) -> tuple[str, ...]:
    """What to say of bytes that are `unencodable`."""
    if not lost:
        return ()
    named = ", ".join(f"{byte:#04x}" for byte in sorted(lost)[:8]) + (", ..." if len(lost) > 8 else "")
    return (f"the vocabulary has no token for {len(lost)} of the 256 bytes ({named}): text that holds them loses them",)


def is_text(added: str) -> bool:
    """Whether an added token is ordinary text: one character or white space, as in DeepSeek-Coder's vocabulary."""
    return len(added) == 1 or added.isspace()


def _read_json(path: Path, limit: int) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no file. Raises CheckpointError if it is broken or over `limit`."""
    return read_object(path, limit) if path.exists() else None


class _Added(msgspec.Struct):
    id: int
    content: str


class _Bpe(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | list[str]]


def _added_tokens(document: Mapping[str, Any], path: Path) -> dict[str, int]:
    try:
        added = msgspec.convert(document.get("added_tokens") or [], list[_Added])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: added_tokens: {error}") from error
    for token in added:
        if token.id < 0 or not token.content:
            raise CheckpointError(f"{path}: added_tokens: id {token.id} needs a non-negative id and a content")
    return {token.content: token.id for token in added}


def _without_special(document: dict[str, Any], added: Mapping[str, int], path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that knows text alone: special tokens, templates, truncation and padding taken out."""
    if not _mentions_byte_level(document):
        raise CheckpointError(f"{path}: not a byte-level BPE tokenizer, the only kind supported")
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
        "model": document["model"] | {"vocab": vocab},
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    try:
        return tokenizers.Tokenizer.from_str(msgspec.json.encode(plain).decode())
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from error


def _mentions_byte_level(document: Mapping[str, Any]) -> bool:
    parts = [document.get("pre_tokenizer"), document.get("decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("type") == "ByteLevel":
                return True
            parts += part.get("pretokenizers") or part.get("decoders") or []
    return False


def _boundaries(folder: Path, added: Mapping[str, int]) -> tuple[int | None, tuple[int, ...]]:
    """First and last tokens: by spelling in tokenizer_config.json, by id in generation_config.json or config.json."""
    named, generation, model = (
        _read_json(folder / name, MAX_CONFIG_BYTES) or {}
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    bos = _by_spelling(named.get("bos_token"), added) or _ids(generation, model, "bos_token_id")
    if named.get("bos_token", "") is None:  # Qwen names an id, and says here that nothing opens a sequence
        bos = []
    eos = _ids(generation, model, "eos_token_id") + _by_spelling(named.get("eos_token"), added)
    return (bos[0] if bos else None), tuple(dict.fromkeys(eos))


def _template(folder: Path) -> str | None:
    """The template of chat_template.jinja, or else of tokenizer_config.json; of several, the one called default."""
    path = folder / "chat_template.jinja"
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"{path}: more than the {MAX_TEMPLATE_BYTES} bytes allowed")
        return path.read_text("utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    found = (_read_json(folder / "tokenizer_config.json", MAX_CONFIG_BYTES) or {}).get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _by_spelling(value: Any, added: Mapping[str, int]) -> list[int]:
    text = value.get("content") if isinstance(value, dict) else value
    return [added[text]] if isinstance(text, str) and text in added else []


def _ids(generation: Mapping[str, Any], model: Mapping[str, Any], key: str) -> list[int]:
    value = generation.get(key)
    value = model.get(key) if value is None else value
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0]
