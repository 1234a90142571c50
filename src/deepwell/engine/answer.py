"""One live request: from rows of logits to the pieces of its answer."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.detokenize import Detokenizer
from deepwell.engine.sampling import Sampler, Scratch, largest, log_normalizer
from deepwell.engine.scheduler import SequenceState
from deepwell.engine.types import Delta, FinishReason, Request, TokenLogprob, Usage, join
from deepwell.weights.tokenizer import Marked, Tokenizer


class Answer:
    """The sampler, the text and the log-probabilities of one request, beside its scheduled `sequence`."""

    def __init__(self, request: Request, tokenizer: Tokenizer, *, seed: int, capacity: int, scratch: Scratch) -> None:
        """`seed` is used where the request names none. `capacity` bounds prompt and answer together, in tokens."""
        sampling = request.sampling
        self.request = request
        self.sequence = SequenceState(request.id, request.prompt, sampling.prompt_logprobs is not None)
        self.generated = self.drafted = self.accepted = 0
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._sampler = Sampler(sampling, seed, request.prompt, scratch)
        self._text = Detokenizer(sampling.stop)
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else {*tokenizer.eos})
        self._prompt_logprobs: list[TokenLogprob] = []
        if sampling.prompt_logprobs is not None:
            first = request.prompt[0]
            self._prompt_logprobs.append(TokenLogprob(first, tokenizer.token_bytes(first), None))

    @property
    def room(self) -> int:
        """Tokens that may still come: the answer ends with the last of them at the latest."""
        return min(self.request.sampling.max_tokens - self.generated, self._capacity - len(self.sequence.tokens))

    def advance(self, rows_LV: NDArray[np.float32], first: int, draft: Sequence[int] = ()) -> Delta | None:
        """Take the logits after positions `first`, `first` + 1, ...; the piece that they give, if any.

        The last row may be the end of all known tokens; then a token is chosen and appended to the sequence. The rows
        of a `draft` come after it. Each is used while the token chosen just before is the one that was guessed, so
        the answer is what it would be without a draft. Raises FloatingPointError for logits that are not numbers.
        """
        # A NaN makes the maximum NaN, so one pass finds every kind of broken row.
        sound_L = np.isfinite(rows_LV.max(axis=1))
        known = len(rows_LV) - len(draft)
        if not sound_L[:known].all():
            raise FloatingPointError("the model gave logits that are not numbers")
        self._score(rows_LV[:known], first)
        if first + known < len(self.sequence.tokens):
            return None
        if self.request.sampling.max_tokens == 0:
            return self.end("length")
        delta = self._choose(rows_LV[known - 1])
        self.drafted += len(draft)
        for row, guess in enumerate(draft, known):
            if delta.token_ids[-1] != guess:
                break
            self.accepted += 1
            # A broken row is computed again as that of a known token, and fails then as it would without a draft.
            if delta.finish_reason is not None or not sound_L[row]:
                break
            delta = join((delta, self._choose(rows_LV[row])))
        return msgspec.structs.replace(delta, usage=self.usage()) if draft and delta.finish_reason else delta

    def _choose(self, logits_V: NDArray[np.float32]) -> Delta:
        """The piece for the token chosen by a row, which is appended to the sequence."""
        token = self._sampler.sample(logits_V)
        self.sequence.tokens.append(token)
        self.generated += 1
        wanted = self.request.sampling.logprobs
        logprobs = () if wanted is None else (self._logprob(logits_V, token, wanted),)
        return self._piece(token, logprobs)

    def end(self, reason: FinishReason, error: str | None = None) -> Delta:
        """The last piece, with whatever text is still held."""
        return self._delta((), (), (), reason, error)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.sequence.cached_tokens or 0,
            completion_tokens=self.generated,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    def _score(self, rows_LV: NDArray[np.float32], first: int) -> None:
        """Log-probabilities of the prompt's tokens that the rows predict."""
        wanted = self.request.sampling.prompt_logprobs
        if wanted is None:
            return
        predicted = self.request.prompt[first + 1 : first + 1 + len(rows_LV)]
        for logits_V, token in zip(rows_LV, predicted, strict=False):
            self._prompt_logprobs.append(self._logprob(logits_V, token, wanted))

    def _piece(self, token: int, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        """The piece for a new token. A token that ends the answer adds nothing to it."""
        if token in self._ends:
            return self._delta((), (token,), logprobs, "stop")
        marked: tuple[Marked, ...]
        if self._tokenizer.is_special(token):
            held = self._text.flush()
            marked = (held,) if self._text.stopped else (held, token)
        else:
            marked = (self._text.push(self._tokenizer.token_bytes(token)),)
        reason: FinishReason | None = None
        if self._text.stopped:
            reason = "stop"
        elif self.generated == self.request.sampling.max_tokens or len(self.sequence.tokens) >= self._capacity:
            reason = "length"
        return self._delta(marked, (token,), logprobs, reason)

    def _delta(
        self,
        marked: tuple[Marked, ...],
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None,
        error: str | None = None,
    ) -> Delta:
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, []
        if reason:
            marked = (*marked, self._text.flush())
        return Delta(
            marked=tuple(part for part in marked if part != ""),
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=tuple(prompt_logprobs),
            finish_reason=reason,
            usage=self.usage() if reason else None,
            error=error,
        )

    def _logprob(self, logits_V: NDArray[np.float32], token: int, count: int) -> TokenLogprob:
        norm = log_normalizer(logits_V)
        top = tuple((int(id), float(logits_V[id]) - norm) for id in largest(logits_V, count))
        return TokenLogprob(token, self._tokenizer.token_bytes(token), float(logits_V[token]) - norm, top)
