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
_BINS, _BINS_PER_NAT = 1024, 32


class Scratch:
    """Room for one call at a time: taking fresh pages from the system for each token would cost more than sampling."""

    def __init__(self, vocab_size: int) -> None:
        self.depth_V = np.empty(vocab_size, np.float64)
        self.weights_V = np.empty(vocab_size, np.float64)
        self.scaled_V = np.empty(vocab_size, np.float64)
        self.bins_V = np.empty(vocab_size, np.int64)


class Sampler:
    """The rules of one request and the tokens seen so far.

    The order is: logit_bias, repetition, presence and frequency penalties, temperature, top_k, top_p, min_p, draw.
    Token i depends on the logits, the tokens before it, `seed` and i alone, so a recomputed request says the same.
    """

    def __init__(self, params: SamplingParams, seed: int, prompt: Iterable[int], scratch: Scratch) -> None:
        """`seed` is used where the request names none. `scratch` may be shared by all samplers of a thread."""
        vocab_size = len(scratch.depth_V)
        self._scratch = scratch
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
        adjusted_V = self._scratch.depth_V
        np.copyto(adjusted_V, logits_V)
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
        """Draw in proportion to exp(-depth), where depth is how far below the best a logit lies. Overwrites its input.

        Divided by the temperature only after the peak is taken off, so that no temperature, however small, overflows.
        """
        params, scratch = self._params, self._scratch
        point = uniform(self._seed, self._drawn)
        best_N = largest(adjusted_V, params.top_k) if 0 < params.top_k < len(adjusted_V) else None
        depth_V = np.subtract(adjusted_V.max(), adjusted_V, out=scratch.depth_V)
        depth_V /= params.temperature
        if best_N is not None:
            return _pick_from_best(best_N, np.exp(-depth_V[best_N]), params, point)
        weights_V = np.exp(np.negative(depth_V, out=scratch.weights_V), out=scratch.weights_V)
        if params.top_p < 1.0:
            weights_V[~_nucleus(scratch, params.top_p)] = 0.0
        if params.min_p > 0.0:
            weights_V[weights_V < params.min_p] = 0.0
        return _pick_from_all(weights_V, point)


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


def log_normalizer(logits_V: NDArray[np.float32]) -> float:
    """log Σ exp(logit): a logit less this is the natural log-probability in the model's own distribution."""
    weights_V = logits_V.astype(np.float64)
    peak = float(weights_V.max())
    weights_V -= peak
    np.exp(weights_V, out=weights_V)
    return peak + float(np.log(weights_V.sum()))


def _nucleus(scratch: Scratch, top_p: float) -> NDArray[np.bool_]:
    """Mask of the fewest tokens, from the likeliest down, whose weights reach `top_p` of all; ties to the lower id.

    Reads depths and weights = exp(-depth) from the scratch. Instead of sorting the vocabulary, tokens are put into
    bins of equal depth; only the bin in which `top_p` is reached is sorted.
    """
    depth_V, weights_V, bins_V = scratch.depth_V, scratch.weights_V, scratch.bins_V
    scaled_V = np.multiply(depth_V, _BINS_PER_NAT, out=scratch.scaled_V)
    np.copyto(bins_V, np.minimum(scaled_V, _BINS - 1, out=scaled_V), casting="unsafe")
    reached = np.cumsum(np.bincount(bins_V, weights=weights_V, minlength=_BINS))
    goal = top_p * reached[-1]
    edge = int(np.searchsorted(reached, goal))
    before = reached[edge - 1] if edge else 0.0
    ids_N = np.flatnonzero(bins_V == edge)
    ids_N = ids_N[np.argsort(depth_V[ids_N], kind="stable")]
    kept = int(np.searchsorted(before + np.cumsum(weights_V[ids_N]), goal)) + 1
    mask_V = bins_V < edge
    mask_V[ids_N[:kept]] = True
    return mask_V


def _pick_from_best(
    ids_N: NDArray[np.int64], weights_N: NDArray[np.float64], params: SamplingParams, point: float
) -> int:
    """Draw from the top_k tokens, from the likeliest down, cut by top_p and min_p."""
    reached_N = np.cumsum(weights_N)
    kept = int(np.searchsorted(reached_N, params.top_p * reached_N[-1])) + 1
    weights_N = weights_N[:kept]
    return int(ids_N[_pick(weights_N[weights_N >= params.min_p], point)])


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
