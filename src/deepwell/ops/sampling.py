"""The contract of sampling: what is asked of a step's rows of logits, and what is answered.

V is the width of the vocabulary, L the rows of logits of a step. The rules of a request apply in this order:
logit_bias, repetition penalty, presence and frequency penalties, temperature, top_k, top_p, min_p, draw. All arithmetic
is float64; ties go to the lower token; the temperature divides the distance from the best, so that no temperature,
however small, overflows. A row's result depends on the row, the request's state and its point alone, never on its
neighbours, on the number of threads or on the instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class SamplingRules(msgspec.Struct, frozen=True, kw_only=True):
    """How a token is chosen; neutral values switch a rule off.

    `temperature` 0 is greedy. `top_k` keeps the k most likely, `top_p` the fewest that reach this share of the sum (of
    what top_k left, if that is used too), `min_p` those at least this likely relative to the best. `presence_penalty`
    and `frequency_penalty` count the answer alone, `repetition_penalty` (Keskar et al. 2019, CTRL) the prompt too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of `rows` consecutive rows of logits, those of one sequence.

    The rows are the *known* ones, after tokens that stand, and then one for each token of a guessed `draft`. Asks lie
    one after the other in logits_LV, and cover it.

    `sampler` is a backend's: the state of one request. `score` wants the log-probabilities of these tokens, by the
    first rows. With `choose`, a token is chosen by the last known row, and while the token chosen is the guessed one,
    by the next row too. Each token chosen becomes part of the sampler's state at once, as it would without a draft.
    `points` are of [0, 1), one for each row that may choose (1 + len(draft)); at temperature 0 they may be left out.
    `logprobs` n reports the log-probability of each token chosen and the n most likely, `score_logprobs` n the n most
    likely beside scored ones: always the model's own, before masks and rules.

    `masks` (1 + len(draft), ceil(V / 32)) has a bit for each token that is allowed, the lowest bit of a word first; all
    others count as if their logit were minus infinity. Every mask must allow a token, those of a draft's rows too.
    Where each token allowed is impossible to the model, the lowest is chosen.

    `state` wants the last row before it became logits: the hidden state after the final norm.
    """

    sampler: Any
    rows: int
    score: tuple[int, ...] = ()
    choose: bool = True
    draft: tuple[int, ...] = ()
    points: tuple[float, ...] = ()
    logprobs: int | None = None
    score_logprobs: int | None = None
    masks: NDArray[np.uint32] | None = None
    state: bool = False


class RowLogprob(msgspec.Struct, frozen=True):
    """A token, its natural log-probability, and the most likely (token, log-probability) pairs, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Chosen(msgspec.Struct, frozen=True):
    """The answer to an `Ask`: 1 to 1 + len(draft) tokens, or none if nothing was to be chosen.

    `sound` is false where one of the known rows has a NaN or an infinite maximum; then nothing was chosen or scored,
    and the sampler is as it was. A broken row of the draft ends the verification before it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[RowLogprob, ...] = ()
    scores: tuple[RowLogprob, ...] = ()
    sound: bool = True
    state: NDArray[np.float32] | None = None


def with_states(chosen: Sequence[Chosen], asks: Sequence[Ask], h_LD: NDArray[np.float32]) -> list[Chosen]:
    """What was chosen, with the states that were asked for, of the normed rows h_LD that the logits were made of."""
    ends = accumulate(ask.rows for ask in asks)
    return [
        msgspec.structs.replace(one, state=h_LD[end - 1].copy()) if ask.state and one.sound else one
        for one, ask, end in zip(chosen, asks, ends, strict=True)
    ]
