"""Sampling once more, in numpy and one row at a time: what the native backend's results are compared with.

V is the width of the vocabulary, N a number of candidates. All arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deepwell.ops.sampling import Ask, Chosen, RowLogprob, SamplingRules

_CHUNK = 128
_BINS, _BINS_PER_NAT = 1024, 32


class ReferenceSampler:
    """The rules of one request and the tokens seen so far."""

    def __init__(self, rules: SamplingRules, vocab: int, prompt: Iterable[int]) -> None:
        self.rules = rules
        self._bias_ids = np.array(list(rules.logit_bias), np.int64)
        self._bias = np.array(list(rules.logit_bias.values()), np.float64)
        self._counts_V = np.zeros(vocab, np.int64)
        self._seen_V = np.zeros(vocab, np.bool_)
        self._seen_V[list(prompt)] = True

    def sample(self, logits_V: NDArray[np.float32], point: float = 0.0, mask: NDArray[np.uint32] | None = None) -> int:
        """The next token, which becomes one of those seen. `mask` as in `Ask`, one row of it."""
        token = self.peek(logits_V, point, mask)
        self.add(token)
        return token

    def add(self, token: int) -> None:
        self._counts_V[token] += 1
        self._seen_V[token] = True

    def peek(self, logits_V: NDArray[np.float32], point: float, mask: NDArray[np.uint32] | None = None) -> int:
        """The next token, without a change of state."""
        adjusted_V = self._adjusted(logits_V, mask)
        if adjusted_V.max() == -np.inf:
            return int(np.flatnonzero(allowed(mask, len(logits_V)))[0])
        if self.rules.temperature == 0.0:
            return int(adjusted_V.argmax())
        with np.errstate(over="ignore", under="ignore"):
            return draw(adjusted_V, self.rules, point)

    def _adjusted(self, logits_V: NDArray[np.float32], mask: NDArray[np.uint32] | None) -> NDArray[np.float64]:
        rules = self.rules
        adjusted_V = logits_V.astype(np.float64)
        if mask is not None:
            adjusted_V[~allowed(mask, len(adjusted_V))] = -np.inf
        adjusted_V[self._bias_ids] += self._bias
        if rules.repetition_penalty != 1.0:
            ids, penalty = np.flatnonzero(self._seen_V), rules.repetition_penalty
            seen = adjusted_V[ids]
            adjusted_V[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        if rules.presence_penalty or rules.frequency_penalty:
            ids = np.flatnonzero(self._counts_V)
            adjusted_V[ids] -= rules.frequency_penalty * self._counts_V[ids] + rules.presence_penalty
        return adjusted_V


def allowed(mask: NDArray[np.uint32] | None, vocab: int) -> NDArray[np.bool_]:
    """The tokens that a row of `Ask.masks` allows, as a mask_V."""
    if mask is None:
        return np.ones(vocab, np.bool_)
    return np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little")[:vocab].astype(bool)


def choose(logits_LV: NDArray[np.float32], ask: Ask, sampler: ReferenceSampler) -> Chosen:
    """The answer to one ask over its rows, by the words of `Ask`."""
    known = ask.rows - len(ask.draft)
    with np.errstate(invalid="ignore"):
        sound_L = np.isfinite(logits_LV.max(axis=1))
    if not sound_L[:known].all():
        return Chosen((), sound=False)
    rows = zip(logits_LV, ask.score, strict=False)
    scores = tuple(row_logprob(row, token, ask.score_logprobs or 0) for row, token in rows)
    tokens: list[int] = []
    logprobs: list[RowLogprob] = []
    for row in range(known - 1, ask.rows if ask.choose else 0):
        i = row - known + 1
        if i > 0 and (tokens[-1] != ask.draft[i - 1] or not sound_L[row]):
            break
        mask = None if ask.masks is None else ask.masks[i]
        tokens.append(sampler.sample(logits_LV[row], ask.points[i] if ask.points else 0.0, mask))
        if ask.logprobs is not None:
            logprobs.append(row_logprob(logits_LV[row], tokens[-1], ask.logprobs))
    return Chosen(tuple(tokens), tuple(logprobs), scores)


def row_logprob(logits_V: NDArray[np.float32], token: int, count: int) -> RowLogprob:
    norm = log_normalizer(logits_V)
    top = tuple((int(id), float(logits_V[id]) - norm) for id in largest(logits_V, count))
    return RowLogprob(token, float(logits_V[token]) - norm, top)


def log_normalizer(logits_V: NDArray[np.float32]) -> float:
    """log Σ exp(logit): a logit less this is the natural log-probability in the model's own distribution."""
    weights_V = logits_V.astype(np.float64)
    peak = float(weights_V.max())
    return peak + float(np.log(np.exp(weights_V - peak).sum()))


def draw(adjusted_V: NDArray[np.float64], rules: SamplingRules, point: float) -> int:
    """Draw in proportion to exp(-depth), where depth is how far below the best a logit lies.

    Divided by the temperature only after the peak is taken off, so that no temperature, however small, overflows.
    """
    best_N = largest(adjusted_V, rules.top_k) if 0 < rules.top_k < len(adjusted_V) else None
    depth_V = (adjusted_V.max() - adjusted_V) / rules.temperature
    if best_N is not None:
        return pick_from_best(best_N, np.exp(-depth_V[best_N]), rules, point)
    weights_V = np.exp(-depth_V)
    if rules.top_p < 1.0:
        weights_V[~nucleus(depth_V, weights_V, rules.top_p)] = 0.0
    if rules.min_p > 0.0:
        weights_V[weights_V < rules.min_p] = 0.0
    return pick_from_all(weights_V, point)


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


def nucleus(depth_V: NDArray[np.float64], weights_V: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """Mask of the fewest tokens, from the likeliest down, whose weights reach `top_p` of all; ties to the lower id.

    Instead of sorting the vocabulary, tokens are put into bins of equal depth; only the bin in which `top_p` is reached
    is sorted.
    """
    bins_V = np.minimum(depth_V * _BINS_PER_NAT, _BINS - 1).astype(np.int64)
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


def pick_from_best(ids_N: NDArray[np.int64], weights_N: NDArray[np.float64], rules: SamplingRules, point: float) -> int:
    """Draw from the top_k tokens, from the likeliest down, cut by top_p and min_p."""
    reached_N = np.cumsum(weights_N)
    kept = int(np.searchsorted(reached_N, rules.top_p * reached_N[-1])) + 1
    weights_N = weights_N[:kept]
    return int(ids_N[pick(weights_N[weights_N >= rules.min_p], point)])


def pick(weights_N: NDArray[np.float64], point: float) -> int:
    """Index drawn in proportion to the weights by a point of [0, 1); one of positive weight."""
    reached_N = np.cumsum(weights_N)
    index = int(np.searchsorted(reached_N, point * reached_N[-1], side="right"))
    return min(index, int(np.flatnonzero(weights_N)[-1]))


def pick_from_all(weights_V: NDArray[np.float64], point: float) -> int:
    """`pick` over the vocabulary: first a chunk, then a token in it, since adding up all of V in turn is slow."""
    sums = np.add.reduceat(weights_V, np.arange(0, len(weights_V), _CHUNK))
    reached = np.cumsum(sums)
    target = point * reached[-1]
    chunk = min(int(np.searchsorted(reached, target, side="right")), int(np.flatnonzero(sums)[-1]))
    rest = target - (reached[chunk - 1] if chunk else 0.0)
    within = weights_V[chunk * _CHUNK : (chunk + 1) * _CHUNK]
    reached_N = np.cumsum(within)
    index = int(np.searchsorted(reached_N, rest, side="right"))
    return chunk * _CHUNK + min(index, int(np.flatnonzero(within)[-1]))
