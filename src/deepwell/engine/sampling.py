"""Choosing a token from one row of logits. Every row is treated alone, so neighbours in a batch change nothing.

V is the width of the vocabulary, N a number of candidates. All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deepwell.engine.types import SamplingParams

_CHUNK = 128
_NUCLEUS_START = 256


class Sampler:
    """The rules of one request and the tokens seen so far.

    The order is: logit_bias, repetition, presence and frequency penalties, temperature, top_k, top_p, min_p, draw.
    Token i depends on the logits, the tokens before it, `seed` and i alone, so a recomputed request says the same.
    """

    def __init__(self, params: SamplingParams, seed: int, prompt: Iterable[int], vocab_size: int) -> None:
        """`seed` is used where the request names none."""
        self._params = params
        self._seed = seed if params.seed is None else params.seed
        self._drawn = 0
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float64)
        self._counts_V: NDArray[np.int64] | None = None
        self._seen_V: NDArray[np.bool_] | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts_V = np.zeros(vocab_size, np.int64)
        if params.repetition_penalty != 1.0:
            self._seen_V = np.zeros(vocab_size, np.bool_)
            self._seen_V[list(prompt)] = True

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """The next token. Greedy at temperature 0; equal logits go to the lower id."""
        adjusted_V = self._adjusted(logits_V)
        token = int(adjusted_V.argmax()) if self._params.temperature == 0.0 else self._draw(adjusted_V)
        self._drawn += 1
        if self._counts_V is not None:
            self._counts_V[token] += 1
        if self._seen_V is not None:
            self._seen_V[token] = True
        return token

    def _adjusted(self, logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits after bias and penalties.

        The repetition penalty (Keskar et al. 2019, CTRL) counts the prompt too; presence and frequency count the
        answer alone.
        """
        adjusted_V = logits_V.astype(np.float64)
        adjusted_V[self._bias_ids] += self._bias
        if self._seen_V is not None:
            ids = np.flatnonzero(self._seen_V)
            seen = adjusted_V[ids]
            penalty = self._params.repetition_penalty
            adjusted_V[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts_V is not None:
            ids = np.flatnonzero(self._counts_V)
            frequency = self._params.frequency_penalty * self._counts_V[ids]
            adjusted_V[ids] -= frequency + self._params.presence_penalty
        return adjusted_V

    def _draw(self, adjusted_V: NDArray[np.float64]) -> int:
        params = self._params
        # Divided only after the peak is taken off, so that no temperature, however small, overflows.
        weights_V = np.exp((adjusted_V - adjusted_V.max()) / params.temperature)
        point = uniform(self._seed, self._drawn)
        if params.top_k == 0 and params.top_p == 1.0:
            if params.min_p > 0.0:
                weights_V[weights_V < params.min_p] = 0.0
            return _pick_from_all(weights_V, point)
        ids_N, weights_N = _nucleus(adjusted_V, weights_V, params.top_k, params.top_p)
        weights_N = weights_N[weights_N >= params.min_p]
        return int(ids_N[_pick(weights_N, point)])


def uniform(seed: int, index: int) -> float:
    """Number `index` of the stream `seed`, in [0, 1): a hash, so it needs no state and no library's generator."""
    digest = blake2b(index.to_bytes(8, "little"), key=seed.to_bytes(16, "little", signed=True), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def largest(values_V: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values, from the largest down, ties to the lower index.

    The `count`-th largest of the maxima of fixed chunks is never above the `count`-th largest value, so it leaves few
    candidates to sort.
    """
    if count == 0:
        return np.zeros(0, np.int64)
    starts = np.arange(0, len(values_V), _CHUNK)
    if count >= len(values_V):
        ids_N = np.arange(len(values_V))
    elif count < len(starts):
        peaks = np.maximum.reduceat(values_V, starts)
        ids_N = np.flatnonzero(values_V >= np.partition(peaks, len(peaks) - count)[len(peaks) - count])
    else:
        ids_N = np.flatnonzero(values_V >= np.partition(values_V, len(values_V) - count)[len(values_V) - count])
    order = np.argsort(-values_V[ids_N], kind="stable")
    return ids_N[order[:count]]


def log_softmax(logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural log-probabilities of the model's own distribution."""
    shifted_V = logits_V.astype(np.float64)
    shifted_V -= shifted_V.max()
    shifted_V -= np.log(np.exp(shifted_V).sum())
    return shifted_V


def _nucleus(
    adjusted_V: NDArray[np.float64], weights_V: NDArray[np.float64], top_k: int, top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The top_k tokens and, among them, the fewest whose probabilities reach top_p; from the likeliest down."""
    limit = min(top_k, len(weights_V)) if top_k else len(weights_V)
    if top_p == 1.0:
        ids_N = largest(adjusted_V, limit)
        return ids_N, weights_V[ids_N]
    count = limit if top_k else min(_NUCLEUS_START, limit)
    while True:
        ids_N = largest(adjusted_V, count)
        weights_N = weights_V[ids_N]
        reached_N = np.cumsum(weights_N)
        total = reached_N[-1] if top_k else weights_V.sum()
        if count == limit or reached_N[-1] >= top_p * total:
            kept = int(np.searchsorted(reached_N, top_p * total)) + 1
            return ids_N[:kept], weights_N[:kept]
        count = min(count * 16, limit)


def _pick(weights_N: NDArray[np.float64], point: float) -> int:
    """Index drawn in proportion to the weights by a point of [0, 1); one of positive weight."""
    reached_N = np.cumsum(weights_N)
    index = int(np.searchsorted(reached_N, point * reached_N[-1], side="right"))
    return min(index, int(np.flatnonzero(weights_N)[-1]))


def _pick_from_all(weights_V: NDArray[np.float64], point: float) -> int:
    """`_pick` over the vocabulary: first a chunk, then a token in it, since adding up all of V in turn is slow."""
    sums = np.add.reduceat(weights_V, np.arange(0, len(weights_V), _CHUNK))
    reached = np.cumsum(sums)
    target = point * reached[-1]
    chunk = min(int(np.searchsorted(reached, target, side="right")), int(np.flatnonzero(sums)[-1]))
    rest = target - (reached[chunk - 1] if chunk else 0.0)
    within = weights_V[chunk * _CHUNK : (chunk + 1) * _CHUNK]
    reached_N = np.cumsum(within)
    index = int(np.searchsorted(reached_N, rest, side="right"))
    return chunk * _CHUNK + min(index, int(np.flatnonzero(within)[-1]))
