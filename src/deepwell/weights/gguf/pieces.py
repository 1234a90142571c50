"""SentencePiece's BPE from a GGUF file (`tokenizer.ggml.model` is `llama`): scored pieces of text, with U+2581 for a
space, and a token per byte for what no piece spells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers

from deepwell.errors import CheckpointError
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
    blanks = normalizers.Replace(" ", BLANK)
    plain.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), blanks]) if prefix else blanks
    decoding = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    plain.decoder = decoders.Sequence(decoding + [decoders.Strip(" ", 1, 0)] * prefix)
    return plain


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
