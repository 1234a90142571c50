"""SentencePiece's BPE in GGUF files (`tokenizer.ggml.model` is `llama`), both ways: scored pieces of text, with U+2581
for a space, and a token per byte for what no piece spells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers

from deepwell.errors import CheckpointError, shown
from deepwell.weights.tokenizer import BLANK

MAX_PIECE_CHARACTERS = 256
"""Longer ones are refused; those of published models have 16, or blanks twice as many."""


def piece_tokenizer(vocab: Mapping[str, int], scores: Sequence[float], *, prefix: bool) -> tokenizers.Tokenizer:
    """The library's tokenizer of pieces and byte tokens with a score for each id. `prefix` puts a blank in front.

    CheckpointError without a place: for a piece that is too long, or ids that make no vocabulary.
    """
    if (longest := max(map(len, vocab), default=0)) > MAX_PIECE_CHARACTERS:
        raise CheckpointError(f"hold one of {longest} characters; allowed are {MAX_PIECE_CHARACTERS}")
    plain = tokenizers.Tokenizer(models.BPE(dict(vocab), _merges(vocab, scores), byte_fallback=True, fuse_unk=True))
    plain.normalizer = _blanks(prefix=prefix)
    decoding = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    plain.decoder = decoders.Sequence(decoding + [decoders.Strip(" ", 1, 0)] * prefix)
    return plain


def piece_scores(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], count: int) -> list[float]:
    """The score of each of `count` ids, by which a reader finds the merges again: minus the rank of what they make.

    CheckpointError without a place for merges that no scores say. Of those that make one piece, the order is not kept:
    SentencePiece has none, and takes the leftmost.
    """
    ranks: dict[str, int] = {}
    made = None
    for left, right in merges:
        if made != left + right:
            made = left + right
            if made in ranks:
                raise CheckpointError(f"other merges stand between those that make {shown(made)}")
            ranks[made] = len(ranks)
    scores = [0.0] * count
    for piece, id in vocab.items():
        scores[id] = -float(ranks.get(piece, len(ranks)))
    if odd := set(_merges(vocab, scores)) ^ set(merges):
        left, right = min(odd)
        has = "are not pieces that join" if (left, right) in set(merges) else "are pieces that no merge joins"
        raise CheckpointError(f"{shown(left)} and {shown(right)} {has} as {shown(left + right)}")
    return scores


def has_prefix(plain: tokenizers.Tokenizer, texts: Sequence[str]) -> bool | None:
    """Whether a blank is put in front of each text; None if blanks are written in a way that GGUF has no word for.

    `texts` are to tell. The tokenizer is changed by it.
    """
    wanted = ids_of(plain, texts)
    plain.pre_tokenizer, plain.model.ignore_merges = None, False
    for prefix in (True, False):
        plain.normalizer = _blanks(prefix=prefix)
        if ids_of(plain, texts) == wanted:
            return prefix
    return None


def ids_of(plain: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in plain.encode_batch_fast(list(texts), add_special_tokens=False)]


def _blanks(*, prefix: bool) -> normalizers.Normalizer:
    blanks = normalizers.Replace(" ", BLANK)
    return normalizers.Sequence([normalizers.Prepend(BLANK), blanks]) if prefix else blanks


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """What joins two pieces into a third, the best score first; of one piece's, the one with the longest left part."""
    joined = sorted(
        (piece for piece in vocab if len(piece) > 1), key=lambda piece: (-scores[vocab[piece]], vocab[piece])
    )
    return [
        (piece[:cut], piece[cut:])
        for piece in joined
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
