"""Bits per byte: what a model needs to write down a text, beside what compressors need.

Method: each document (its path header, then its text) is encoded whole and ended by EOS. It is read in windows of
`context` tokens that each start with BOS and move on by half a window; only tokens not predicted before are scored, so
every token but the first half-window sees at least half a window of its document. The sum of -log2 p over all scored
tokens, EOS included, is divided by the bytes of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from deepwell.train.corpus import Document
from deepwell.train.tokenizer import SpecialIds
from deepwell.train.trainee import IGNORED, Trainee
from deepwell.ops.torch_ops import TorchOps

_ROWS_AT_ONCE = 8


def bits_per_byte(trainee: Trainee, tokenizer: Tokenizer, documents: Sequence[Document], context: int) -> float:
    """Bits per UTF-8 byte of the documents under the model, by the method above."""
    windows = [w for d in documents for w in _windows(tokenizer, d.text, context)]
    bits = 0.0
    for start in range(0, len(windows), _ROWS_AT_ONCE):
        bits += _bits(trainee, windows[start : start + _ROWS_AT_ONCE])
    return bits / sum(len(d.text.encode()) for d in documents)


def _windows(tokenizer: Tokenizer, text: str, context: int) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of each window; targets already scored are IGNORED."""
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


@torch.no_grad()
def _bits(trainee: Trainee, windows: Sequence[tuple[list[int], list[int]]]) -> float:
    longest = max(len(inputs) for inputs, _ in windows)
    tokens = torch.tensor([inputs + [0] * (longest - len(inputs)) for inputs, _ in windows])
    targets = torch.tensor([wanted + [IGNORED] * (longest - len(wanted)) for _, wanted in windows])
    ops = TorchOps(tokens)
    logits = trainee.decoder.logits(ops, trainee.decoder.hidden(ops))
    loss = F.cross_entropy(logits.float(), targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
    return float(loss) / 0.6931471805599453
