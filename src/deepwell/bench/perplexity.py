"""How well a model writes down a text, and how near it comes to another one: perplexity, KL, same first tokens.

The windows are llama.cpp's, so that figures compare: the text is encoded whole, behind a begin token where the
tokenizer adds one, and cut into windows of `window` tokens that share nothing; that token takes the place of the first
one of each window, and the second half of each is scored. What is left at the end is not read.

Names carry shapes: L scored positions of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import ConfigError
from deepwell.loading.runner import NativeRunner
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.weights.tokenizer import Tokenizer

F64 = NDArray[np.float64]
LEAST_WINDOW = 8
CACHED_ROWS = 8
"""Positions scored at once: their float64 copies stay in the processor's cache, which takes a quarter of the time."""


class Likeness(msgspec.Struct, frozen=True):
    """How near a model is to its `reference` over the scored positions.

    `kl` is the mean Kullback-Leibler divergence from the reference in nats per token, `kl_99` its 99th percentile,
    `same_first` the share of positions where both prefer one token.
    """

    reference: str
    perplexity: float
    kl: float
    kl_99: float
    same_first: float


class Measured(msgspec.Struct, frozen=True):
    """`perplexity` over `tokens` scored ones of `windows`; `error` is its standard error."""

    window: int
    windows: int
    tokens: int
    perplexity: float
    error: float
    likeness: Likeness | None = None


class Scores:
    """Sums over windows, of one model and, where there is one, of its reference."""

    def __init__(self, reference: str | None = None) -> None:
        self._reference = reference
        self._windows = 0
        self._nats: list[F64] = []
        self._reference_nats: list[F64] = []
        self._kl: list[F64] = []
        self._same: list[NDArray[np.bool_]] = []

    def add(
        self, targets_L: NDArray[np.int64], logits_LV: NDArray[np.float32], reference_LV: NDArray[np.float32] | None
    ) -> None:
        """One window's tokens, the logits that were to say them, and the reference's."""
        self._windows += 1
        for at in range(0, len(targets_L), CACHED_ROWS):
            rows = slice(at, at + CACHED_ROWS)
            self._add(targets_L[rows], logits_LV[rows], None if reference_LV is None else reference_LV[rows])

    def _add(
        self, targets_L: NDArray[np.int64], logits_LV: NDArray[np.float32], reference_LV: NDArray[np.float32] | None
    ) -> None:
        at_L = np.arange(len(targets_L))
        log_LV = _log_softmax(logits_LV)
        self._nats.append(-log_LV[at_L, targets_L])
        if reference_LV is not None:
            wanted_LV = _log_softmax(reference_LV)
            self._reference_nats.append(-wanted_LV[at_L, targets_L])
            self._kl.append((np.exp(wanted_LV) * (wanted_LV - log_LV)).sum(-1))
            self._same.append(log_LV.argmax(-1) == wanted_LV.argmax(-1))

    @property
    def perplexity(self) -> float:
        """So far."""
        return math.exp(np.concatenate(self._nats).mean())

    def measured(self, window: int) -> Measured:
        nats = np.concatenate(self._nats)
        perplexity = math.exp(nats.mean())
        error = perplexity * float(nats.std()) / math.sqrt(max(1, len(nats) - 1))
        likeness = None
        if self._reference is not None:
            kl = np.concatenate(self._kl)
            likeness = Likeness(
                reference=self._reference,
                perplexity=math.exp(np.concatenate(self._reference_nats).mean()),
                kl=float(kl.mean()),
                kl_99=float(np.quantile(kl, 0.99)),
                same_first=float(np.concatenate(self._same).mean()),
            )
        return Measured(window, self._windows, len(nats), perplexity, error, likeness)


def windows_of(tokenizer: Tokenizer, text: str, window: int, most: int = 0) -> list[list[int]]:
    """The windows of a text, `most` of them or all. ConfigError if it does not fill one."""
    first = list(tokenizer.opening)
    ids = [*first, *tokenizer.encode(text)]
    count = len(ids) // window
    if not count:
        raise ConfigError(
            f"the text has {len(ids)} tokens, and a window is {window}: take a longer text or less --window"
        )
    starts = range(0, min(count, most or count) * window, window)
    return [[*first, *ids[start + len(first) : start + window]] for start in starts]


def perplexity(
    runner: NativeRunner,
    windows: Sequence[Sequence[int]],
    reference: NativeRunner | None = None,
    *,
    name: str = "reference",
    each: Callable[[float], None] = lambda perplexity: None,
) -> Measured:
    """Score `windows`, which have one length, with a model and a reference beside it, called `name`.

    `each` is told the perplexity so far after every window. ConfigError for windows that the models cannot hold.
    """
    window = len(windows[0])
    for one in (runner, reference):
        if one is not None and not LEAST_WINDOW <= window <= one.context:
            raise ConfigError(f"--window is {window}; this model allows {LEAST_WINDOW} to {one.context}")
    if reference is not None and reference.vocab_size != runner.vocab_size:
        raise ConfigError(
            f"--reference has a vocabulary of {reference.vocab_size} tokens, the model one of {runner.vocab_size}; "
            "it must be the same model, kept otherwise"
        )
    scores = Scores(name if reference is not None else None)
    for tokens in windows:
        scored = slice(window // 2, window - 1)
        targets_L = np.array(tokens[window // 2 + 1 :], np.int64)
        logits = [one.run(_batch(tokens, scored)) for one in (runner, reference) if one is not None]
        scores.add(targets_L, logits[0], logits[1] if len(logits) > 1 else None)
        each(scores.perplexity)
    return scores.measured(window)


def _batch(tokens: Iterable[int], scored: slice) -> Batch:
    """One sequence from its begin, in the first blocks of the cache."""
    tokens_T = np.array(list(tokens), np.int32)
    at_T = np.arange(len(tokens_T), dtype=np.int32)
    table = np.arange(-(-len(tokens_T) // BLOCK_TOKENS), dtype=np.int32)[None]
    return Batch(tokens_T, at_T, np.zeros_like(tokens_T), table, at_T[scored].copy())


def _log_softmax(logits_LV: NDArray[np.float32]) -> F64:
    shifted = logits_LV - logits_LV.max(-1, keepdims=True).astype(np.float64)
    log_LV: F64 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_LV
