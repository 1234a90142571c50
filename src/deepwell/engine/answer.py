"""One live request: what it asks of its rows of logits, and the pieces of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.engine.detokenize import Detokenizer
from deepwell.engine.scheduler import Segment, SequenceState
from deepwell.engine.types import Delta, FinishReason, Request, TokenLogprob, Usage, join
from deepwell.errors import BadKey, Broke
from deepwell.grammar.constraint import masks_of
from deepwell.ops.sampling import Ask, Chosen, RowLogprob
from deepwell.weights.tokenizer import Marked, Tokenizer


class AnswerState:
    """The rules, the text and the log-probabilities of one request.

    `sampler` is the backend's state of its rules, `seed` is used where the request names none. `capacity` bounds prompt
    and answer together, in tokens; `arrived` is when it came.
    """

    def __init__(
        self,
        request: Request,
        sequence: SequenceState,
        tokenizer: Tokenizer,
        sampler: Any,
        *,
        seed: int,
        capacity: int,
        vocab_size: int,
        arrived: float = 0.0,
    ) -> None:
        sampling = request.sampling
        self.request, self.sequence, self.arrived = request, sequence, arrived
        self.generated = self.drafted = self.accepted = 0
        self._tokenizer = tokenizer
        self._capacity, self._vocab_size = capacity, vocab_size
        self._sampler = sampler
        self._seed = seed if sampling.seed is None else sampling.seed
        self._text = Detokenizer(sampling.stop)
        ignored = sampling.ignore_eos and request.constraint is None
        self._ends = frozenset(sampling.stop_token_ids) | (frozenset() if ignored else {*tokenizer.ends})
        self._prompt_logprobs: list[TokenLogprob] = []
        if sampling.prompt_logprobs is not None:
            first = request.prompt[0]
            self._prompt_logprobs.append(TokenLogprob(first, tokenizer.token_bytes(first), None))

    @property
    def room(self) -> int:
        """Tokens that may still come: the answer ends with the last of them at the latest."""
        return min(self.request.sampling.max_tokens, self._capacity - len(self.request.prompt)) - self.generated

    def ask(self, segment: Segment) -> Ask:
        """What is wanted of the segment's rows of logits: scores of the prompt's tokens, and where the last known token
        is among the rows, the next one, with the draft behind it verified. Raises ConstraintError."""
        sampling, draft = self.request.sampling, segment.draft
        first = segment.end - segment.wanted
        known_end = segment.end - segment.drafted
        scored = self.request.prompt[first + 1 : known_end + 1] if sampling.prompt_logprobs is not None else ()
        choose = known_end == len(self.request.prompt) + self.generated and sampling.max_tokens > 0
        return Ask(
            sampler=self._sampler,
            rows=segment.wanted,
            score=scored,
            choose=choose,
            draft=draft if choose else (),
            points=self._points(1 + len(draft)) if choose else (),
            logprobs=sampling.logprobs,
            score_logprobs=sampling.prompt_logprobs,
            masks=self._masks(draft) if choose else None,
            state=self.request.embeds and known_end == len(self.request.prompt),
        )

    def advance(self, segment: Segment, chosen: Chosen) -> Delta | None:
        """Take what was chosen by the rows of a segment; the piece that it gives, if any.

        Raises FloatingPointError for logits that were not numbers.
        """
        if not chosen.sound:
            raise FloatingPointError("the model gave logits that are not numbers")
        self._prompt_logprobs += map(self._logprob, chosen.scores)
        if not chosen.tokens:
            scored = segment.end == len(self.request.prompt) and self.request.sampling.max_tokens == 0
            return msgspec.structs.replace(self.end("length"), state=chosen.state) if scored else None
        deltas: list[Delta] = []
        for place, token in enumerate(chosen.tokens):
            self.generated += 1
            deltas.append(self._piece(token, tuple(map(self._logprob, chosen.logprobs[place : place + 1]))))
            self.accepted += segment.draft[place : place + 1] == (token,)
            if deltas[-1].finish_reason is not None:
                break
        self.drafted += segment.drafted
        delta = join(deltas) if len(deltas) > 1 else deltas[0]
        if self.request.thoughts is not None:
            self.request.thoughts.push(delta.token_ids)
        if self.request.constraint is not None and delta.finish_reason is None:
            self.request.constraint.accept(delta.token_ids)
        return msgspec.structs.replace(delta, usage=self.usage()) if delta.finish_reason else delta

    def metered(self, delta: Delta) -> Delta:
        """The same, once the request's meter has counted it: as the last piece, if that lets it go on no longer."""
        meter, usage = self.request.meter, self.usage()
        goes_on = meter is None or meter.progress(
            usage.cached_tokens, usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
        )
        if goes_on or delta.finish_reason is not None:
            return delta
        cut = meter is None or isinstance(meter.why, Broke | BadKey)
        return join([delta, self.end("cut" if cut else "error", str(meter.why) if meter else None)])

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
            reasoning_tokens=self.request.thoughts.tokens if self.request.thoughts is not None else 0,
        )

    def _piece(self, token: int, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        """The piece for a new token. A token that ends the answer adds nothing to it."""
        if token in self._ends:
            return self._delta((), (token,), logprobs, "stop")
        data, mark = self._tokenizer.token_bytes(token), self._tokenizer.mark(token)
        marked = self._text.push(data) if mark is None else self._text.mark(mark, data.decode())
        reason: FinishReason | None = None
        if self._text.stopped is not None:
            reason = "stop"
        elif self.room <= 0:
            reason = "length"
        return self._delta(marked, (token,), logprobs, reason)

    def _delta(
        self,
        marked: Sequence[Marked],
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None,
        error: str | None = None,
    ) -> Delta:
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, []
        return Delta(
            marked=(*marked, *(self._text.flush() if reason else ())),
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=tuple(prompt_logprobs),
            finish_reason=reason,
            usage=self.usage() if reason else None,
            error=error,
            stopped_by=self._text.stopped if reason == "stop" else None,
            cached_tokens=self.sequence.cached_tokens or 0,
        )

    def _points(self, count: int) -> tuple[float, ...]:
        """Where the next tokens are drawn: they depend on the seed and each token's index alone."""
        if self.request.sampling.temperature == 0.0:
            return ()
        return tuple(uniform(self._seed, self.generated + place) for place in range(count))

    def _masks(self, draft: tuple[int, ...]) -> NDArray[np.uint32] | None:
        constraint = self.request.constraint
        if constraint is None:
            return None
        return masks_of(constraint.allowed(draft), 1 + len(draft), self._ends, self._vocab_size)

    def _logprob(self, row: RowLogprob) -> TokenLogprob:
        return TokenLogprob(row.token, self._tokenizer.token_bytes(row.token), row.logprob, row.top)


def uniform(seed: int, index: int) -> float:
    """Number `index` of the stream `seed`, in [0, 1): a hash, so it needs no state and no library's generator."""
    digest = blake2b(index.to_bytes(8, "little"), key=seed.to_bytes(16, "little", signed=True), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
