"""Rows of tokens: no text lost, none seen twice, and row i is the same whatever was read before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deepwell.train.corpus import Corpus, Document
from deepwell.train.dataset import PieceMaker, RowStream, in_epoch, pack
from deepwell.train.fim import psm, split_points
from deepwell.train.tokenizer import SpecialIds

WIDTH = 65


def stream(corpus: Corpus, tokenizer: Tokenizer, cache: Path, **changes: object) -> RowStream:
    options: dict[str, object] = {"context": WIDTH - 1, "fim_rate": 0.5, "test_share": 0.5, "seed": 1} | changes
    return RowStream(corpus, tokenizer, cache=cache, **options)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=60))
def test_packing_keeps_every_piece_whole(lengths: list[int]) -> None:
    pieces = [[100 + n] * length for n, length in enumerate(lengths)]
    table = pack(pieces, 20, pad=0)
    runs = Counter(int(token) for token in table.ravel() if token)
    assert runs == Counter({piece[0]: len(piece) for piece in pieces})
    for piece in pieces:
        (row,) = {int(r) for r in np.nonzero(table == piece[0])[0]}
        places = np.flatnonzero(table[row] == piece[0])
        assert list(places) == list(range(places[0], places[0] + len(piece)))


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 500), seed=st.integers(0, 99))
def test_split_points_are_in_order_and_inside(length: int, seed: int) -> None:
    first, second = split_points(length, np.random.default_rng(seed))
    assert 0 <= first <= second <= length


def test_psm_is_begin_prefix_hole_suffix_end_middle() -> None:
    assert psm([1, 2], [3], [4, 5], 90, 91, 92) == [90, 1, 2, 91, 4, 5, 92, 3]


def test_without_filling_in_pieces_join_to_the_documents(corpus: Corpus, tokenizer: Tokenizer) -> None:
    special = SpecialIds(tokenizer)
    maker = PieceMaker(tokenizer, WIDTH - 1, 0.0, np.random.default_rng(0))
    documents = [d for d in corpus.train if d.kind == "code"][:2]
    pieces = list(maker.pieces(documents))
    assert all(len(piece) <= WIDTH and piece[0] == special.bos for piece in pieces)
    texts = "".join(tokenizer.decode(piece[1:], skip_special_tokens=False) for piece in pieces)
    assert texts == "".join(d.text + "<｜end▁of▁sentence｜>" for d in documents)


def test_filled_in_pieces_hold_the_same_text_in_another_order(corpus: Corpus, tokenizer: Tokenizer) -> None:
    special = SpecialIds(tokenizer)
    maker = PieceMaker(tokenizer, WIDTH - 1, 1.0, np.random.default_rng(0))
    document = next(d for d in corpus.train if d.kind == "code")
    restored, filled = "", 0
    for piece in maker.pieces([document]):
        if piece[1] == special.fim_begin:
            hole, end = piece.index(special.fim_hole), piece.index(special.fim_end)
            assert piece[-1] == special.eos
            parts = piece[2:hole], piece[end + 1 : -1], piece[hole + 1 : end]
            restored, filled = restored + "".join(map(tokenizer.decode, parts)), filled + 1
        else:
            restored += tokenizer.decode(piece)
    assert restored == document.text
    assert filled > 20


def test_dialogues_are_written_as_v3_turns(corpus: Corpus, tokenizer: Tokenizer) -> None:
    maker = PieceMaker(tokenizer, WIDTH - 1, 1.0, np.random.default_rng(0))
    talk = Document("a.py", "dialogue", "It adds.", "What does add do?")
    (piece,) = maker.pieces([talk])
    text = tokenizer.decode(piece, skip_special_tokens=False)
    assert text == "<｜begin▁of▁sentence｜><｜User｜>What does add do?<｜Assistant｜>It adds.<｜end▁of▁sentence｜>"


def test_a_row_is_the_same_in_any_order_of_reading_and_from_the_cache(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = stream(corpus, tokenizer, tmp_path / "a")
    rows = first.rows(0, 2 * first.shards[0].rows if first.shards else 400)
    again = stream(corpus, tokenizer, tmp_path / "b")
    assert (again.rows(350, 5) == rows[350:355]).all()
    assert (again.rows(3, 5) == rows[3:8]).all()
    cached = stream(corpus, tokenizer, tmp_path / "a")
    assert (cached.rows(350, 5) == rows[350:355]).all()


def test_epochs_and_seeds_differ_and_the_key_names_every_input(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one, other = stream(corpus, tokenizer, tmp_path), stream(corpus, tokenizer, tmp_path, seed=2)
    assert (one.rows(0, 8) != other.rows(0, 8)).any()
    per_epoch = one.shards[0].rows
    one.rows(per_epoch, 1)
    assert one.shards[1].sha256 != one.shards[0].sha256
    changes = ({"seed": 2}, {"context": 32}, {"fim_rate": 0.4}, {"test_share": 1.0})
    keys = {stream(corpus, tokenizer, tmp_path, **change).key for change in changes} | {one.key}
    assert len(keys) == 5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_file_is_read_in_its_share_of_epochs(share: float) -> None:
    for n in range(20):
        document = Document(f"test/test_{n}.py", "tests", "")
        assert sum(in_epoch(document, share, epoch) for epoch in range(40)) == pytest.approx(40 * share, abs=1)
