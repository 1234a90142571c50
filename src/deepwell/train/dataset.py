"""Documents to rows of tokens: one shard per epoch, cached by everything it was made from.

A document is cut at line ends into pieces that fit a row, at other places in every epoch. Some pieces become
fill-in-the-middle examples. Pieces are packed whole, best fit first, into rows of context + 1 tokens and the rows are
shuffled. All of it follows from corpus, tokenizer, context, rates, seed and epoch: a step number is enough to resume.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from deepwell.train.cache import kept
from deepwell.train.corpus import Corpus, Document
from deepwell.train.fim import psm, split_points
from deepwell.train.tokenizer import SpecialIds, prompt_ids

_CHARACTERS_AT_ONCE = 4_000_000
_FIM_MARKS = 5
"""Tokens that a fill-in-the-middle example has beside its text: first, last, begin, hole, end."""


class ShardIndex(msgspec.Struct, frozen=True):
    """What is in a shard of tokens: `rows` of `width` uint16 tokens, `text_tokens` of them not padding."""

    key: str
    epoch: int
    rows: int
    width: int
    text_tokens: int
    fim_pieces: int
    pieces: int
    sha256: str


class RowStream:
    """Endless rows of tokens, epoch after epoch. Row i is the same in every run with the same inputs."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        context: int,
        fim_rate: float,
        test_share: float,
        seed: int,
        cache: Path,
    ) -> None:
        self._corpus, self._tokenizer, self._cache = corpus, tokenizer, cache
        self._context, self._fim_rate, self._test_share, self._seed = context, fim_rate, test_share, seed
        recipe = (corpus.sha256, tokenizer.to_str(), context, fim_rate, test_share, seed)
        self.key = hashlib.sha256(msgspec.json.encode(recipe)).hexdigest()
        self._shards: list[tuple[ShardIndex, NDArray[np.uint16]]] = []
        self._ends: list[int] = []

    def rows(self, start: int, count: int) -> NDArray[np.int64]:
        """Rows start … start + count, as int64 of shape (count, context + 1)."""
        return np.stack([self._row(index) for index in range(start, start + count)]).astype(np.int64)

    @property
    def shards(self) -> list[ShardIndex]:
        """The shards used so far, in the order of their epochs."""
        return [index for index, _ in self._shards]

    def _row(self, index: int) -> NDArray[np.uint16]:
        while not self._ends or index >= self._ends[-1]:
            shard = self._shard(len(self._shards))
            self._shards.append(shard)
            self._ends.append((self._ends[-1] if self._ends else 0) + shard[0].rows)
        epoch = bisect_right(self._ends, index)
        row: NDArray[np.uint16] = self._shards[epoch][1][index - (self._ends[epoch - 1] if epoch else 0)]
        return row

    def _shard(self, epoch: int) -> tuple[ShardIndex, NDArray[np.uint16]]:
        name = f"tokens-{self.key[:16]}-{epoch:03d}"
        files = f"{name}.bin", f"{name}.json"
        data, described = kept(self._cache, name, files, lambda: dict(zip(files, self._built(epoch), strict=True)))
        index = msgspec.json.decode(described.read_bytes(), type=ShardIndex)
        return index, np.memmap(data, np.uint16, "r", shape=(index.rows, index.width))

    def _built(self, epoch: int) -> tuple[bytes, bytes]:
        """The shard of an epoch: its tokens, and its index as JSON."""
        maker = PieceMaker(self._tokenizer, self._context, self._fim_rate, np.random.default_rng((self._seed, epoch)))
        documents = [d for d in self._corpus.train if d.kind != "tests" or in_epoch(d, self._test_share, epoch)]
        pieces = list(maker.pieces(documents))
        special = SpecialIds(self._tokenizer)
        table = pack(pieces, self._context + 1, special.pad)
        np.random.default_rng((self._seed, epoch, 1)).shuffle(table)
        raw = table.tobytes()
        index = ShardIndex(
            key=self.key,
            epoch=epoch,
            rows=table.shape[0],
            width=table.shape[1],
            text_tokens=sum(map(len, pieces)),
            fim_pieces=sum(len(p) > 1 and p[1] == special.fim_begin for p in pieces),
            pieces=len(pieces),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
        return raw, msgspec.json.encode(index)


def in_epoch(document: Document, share: float, epoch: int) -> bool:
    """Whether a document shown in `share` of the epochs is shown in this one; different documents take turns."""
    phase = int.from_bytes(hashlib.sha256(document.path.encode()).digest()[:4]) / 2**32
    return int(phase + (epoch + 1) * share) > int(phase + epoch * share)


class PieceMaker:
    """Cuts documents into pieces of at most context + 1 tokens and turns some into fill-in-the-middle examples."""

    def __init__(self, tokenizer: Tokenizer, context: int, fim_rate: float, random: np.random.Generator) -> None:
        self._tokenizer, self._random, self._fim_rate = tokenizer, random, fim_rate
        self._longest, self._special = context + 1, SpecialIds(tokenizer)
        self._line_ends = np.zeros(tokenizer.get_vocab_size(), bool)
        for token, index in tokenizer.get_vocab().items():
            self._line_ends[index] = token.endswith("Ċ")

    def pieces(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        """Pieces of all documents, each opened by BOS; EOS where a document or a filled hole ends."""
        for group in _groups(documents):
            for document, ids in zip(group, self._encode([d.text for d in group]), strict=True):
                if document.kind == "dialogue":
                    yield self._dialogue(document.question, ids)
                else:
                    yield from self._cut(ids)

    def _dialogue(self, question: str, answer: list[int]) -> list[int]:
        return [*prompt_ids(question, self._tokenizer), *answer, self._special.eos][: self._longest]

    def _cut(self, ids: list[int]) -> Iterator[list[int]]:
        s, room = self._special, self._longest - _FIM_MARKS
        ends = [int(i) + 1 for i in np.flatnonzero(self._line_ends[np.asarray(ids)])]
        start, first_room = 0, int(self._random.integers(room // 4, room + 1))
        while start < len(ids):
            stop = _line_end_before(ends, start, start + (first_room if start == 0 else room), len(ids))
            piece, last = ids[start:stop], stop == len(ids)
            fim = self._fill_in_middle(piece) if self._random.random() < self._fim_rate else None
            yield fim or ([s.bos, *piece, s.eos] if last else [s.bos, *piece])
            start = stop

    def _fill_in_middle(self, piece: list[int]) -> list[int] | None:
        """The piece as an example, or None where its text does not survive the cut (a split character, too long)."""
        text = self._tokenizer.decode(piece, skip_special_tokens=False)
        first, second = split_points(len(text), self._random)
        prefix, middle, suffix = self._encode([text[:first], text[first:second], text[second:]])
        s = self._special
        example = [s.bos, *psm(prefix, middle, suffix, s.fim_begin, s.fim_hole, s.fim_end), s.eos]
        return None if len(example) > self._longest or "\ufffd" in text else example

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]


def pack(pieces: Sequence[Sequence[int]], width: int, pad: int) -> NDArray[np.uint16]:
    """Rows of `width` tokens: each piece, longest first, goes whole into the fullest row that still holds it."""
    rows: list[list[Sequence[int]]] = []
    spaces: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=len, reverse=True):
        at = bisect_left(spaces, (len(piece), -1))
        if at < len(spaces):
            space, row = spaces.pop(at)
        else:
            space, row = width, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = (space - len(piece), row)
        if left[0] > 2:
            spaces.insert(bisect_left(spaces, left), left)
    table = np.full((len(rows), width), pad, np.uint16)
    for line, members in zip(table, rows, strict=True):
        flat = [token for piece in members for token in piece]
        line[: len(flat)] = flat
    return table


def _line_end_before(ends: Sequence[int], start: int, limit: int, length: int) -> int:
    """The last line end up to `limit`; the limit itself where a line would leave half the room empty."""
    if limit >= length:
        return length
    at = bisect_right(ends, limit) - 1
    return ends[at] if at >= 0 and ends[at] > start + (limit - start) // 2 else limit


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
