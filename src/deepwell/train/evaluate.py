"""Bits per byte: what a model needs to write down a text, beside what compressors need.

Method: each document (its path header, then its text) is encoded whole and ended by EOS. It is read in windows of
`context` tokens that each start with BOS and move on by half a window; only tokens not predicted before are scored, so
every token but those of the first half-window sees at least half a window of its document. The sum of -log2 p over all
scored tokens, EOS included, is divided by the UTF-8 bytes of the text.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Sequence

import msgspec
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from deepwell.ops.torch_ops import TorchOps
from deepwell.train.corpus import Corpus, Document
from deepwell.train.tokenizer import SpecialIds
from deepwell.train.trainee import IGNORED, Trainee

_ROWS_AT_ONCE = 8


class Evaluation(msgspec.Struct, frozen=True):
    """Measurements of a finished run. All `bpb` are bits per UTF-8 byte; the method is above."""

    held_out_bytes: int
    held_out_bpb: float
    held_out_bpb_float32: float
    held_out_files: dict[str, float]
    training_sample_bpb: float
    compressors: dict[str, float]
    samples: list[dict[str, str]]


def bits_per_byte(trainee: Trainee, tokenizer: Tokenizer, documents: Sequence[Document], context: int) -> float:
    """Bits per UTF-8 byte of the documents under the model, by the method above."""
    bits = [document_bits(trainee, tokenizer, d.text, context) for d in documents]
    return sum(bits) / sum(len(d.text.encode()) for d in documents)


def document_bits(trainee: Trainee, tokenizer: Tokenizer, text: str, context: int) -> float:
    """Bits that one document costs."""
    windows = score_windows(tokenizer, text, context)
    groups = range(0, len(windows), _ROWS_AT_ONCE)
    return sum(_bits(trainee, windows[start : start + _ROWS_AT_ONCE]) for start in groups)


def score_windows(tokenizer: Tokenizer, text: str, context: int) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each window; targets that an earlier window has scored are IGNORED."""
    special = SpecialIds(tokenizer)
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, special.eos]
    windows, scored, start = [], 0, 0
    while scored < len(ids):
        stop = min(len(ids), start + context)
        inputs = [special.bos, *ids[start : stop - 1]]
        targets = [IGNORED if at < scored else ids[at] for at in range(start, stop)]
        windows.append((inputs, targets))
        scored, start = stop, start + context // 2
    return windows


def compressors(corpus: Corpus) -> dict[str, float]:
    """Bits per byte of the held-out texts, all in one piece, under general compressors.

    `xz primed` is what xz adds for them after the whole training split: a compressor that has read the same texts.
    """
    held = "".join(d.text for d in corpus.held_out).encode()
    read = "".join(d.text for d in corpus.train if d.kind != "dialogue").encode()
    sizes = {
        "zlib": len(zlib.compress(held, 9)),
        "bz2": len(bz2.compress(held, 9)),
        "xz": _xz(held),
        "xz primed": _xz(read + held) - _xz(read),
    }
    return {name: 8 * size / len(held) for name, size in sizes.items()}


def continuation(trainee: Trainee, tokens: list[int], stop: set[int], limit: int) -> list[int]:
    """The greedy continuation of `tokens`, up to `limit` tokens or one of `stop`."""
    made: list[int] = []
    with torch.no_grad():
        while len(made) < limit and (not made or made[-1] not in stop):
            ops = TorchOps(torch.tensor([tokens + made]))
            made.append(int(trainee.decoder.logits(ops, trainee.decoder.hidden(ops)[-1:]).argmax()))
    return made


def _xz(data: bytes) -> int:
    """Size under xz at its best, with a window as long as the data."""
    best = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(4096, len(data))}
    return len(lzma.compress(data, lzma.FORMAT_XZ, filters=[best]))


def _bits(trainee: Trainee, windows: Sequence[tuple[list[int], list[int]]]) -> float:
    longest = max(len(inputs) for inputs, _ in windows)
    tokens = torch.tensor([inputs + [0] * (longest - len(inputs)) for inputs, _ in windows])
    targets = torch.tensor([wanted + [IGNORED] * (longest - len(wanted)) for _, wanted in windows])
    with torch.no_grad():
        ops = TorchOps(tokens)
        logits = trainee.decoder.logits(ops, trainee.decoder.hidden(ops))
        loss = F.cross_entropy(logits.float(), targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return float(loss) / math.log(2)
