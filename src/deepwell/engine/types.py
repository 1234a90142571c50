"""The nouns that cross the engine's borders: what is asked of it and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.grammar.constraint import Constraint
from deepwell.ops.sampling import SamplingRules
from deepwell.weights.tokenizer import Marked

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16

FinishReason = Literal["stop", "length", "abort", "error", "cut"]
"""`abort`: by whoever asked, or a stop; `cut`: the meter let it go on no longer."""


class SamplingParams(SamplingRules, frozen=True, kw_only=True):
    """How the next token is chosen (`SamplingRules`), and when the answer ends.

    `logprobs` None reports none, n reports the chosen token's log-probability and the n most likely ones (0 to 20),
    from the model's distribution before temperature and penalties. `prompt_logprobs` does the same for the prompt
    (echo). `max_tokens` 0 only scores the prompt. `stop` texts end the answer and are not part of it; `stop_token_ids`
    likewise.
    """

    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def of_answer(self, number: int) -> SamplingParams:
        """The rules of one of several answers to a request: each has a seed of its own, the first (0) that of the
        request, and whoever knows that seed gets all of them again."""
        if self.seed is None or number == 0:
            return self
        digest = blake2b(number.to_bytes(8, "little"), key=self.seed.to_bytes(9, "little", signed=True), digest_size=8)
        return msgspec.structs.replace(self, seed=int.from_bytes(digest.digest(), "little") >> 1)


class Meter(Protocol):
    """Is told what a request has used so far, before anybody sees the tokens. `why` says why `progress` said no."""

    @property
    def why(self) -> Exception | None: ...

    def progress(self, hit: int, miss: int, output: int) -> bool:
        """Tokens of the prompt that were cached, those that were not, and tokens generated. False: with these the
        answer ends. Must be quick; called by the engine's thread."""
        ...


class ThoughtCounter(Protocol):
    """Counts the `tokens` of an answer's thoughts."""

    @property
    def tokens(self) -> int: ...

    def push(self, ids: Iterable[int], /) -> object:
        """The answer's next tokens. Must be quick; called by the engine's thread."""
        ...


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as token ids and how to continue it. `id` is unique among live requests.

    `constraint` bounds what may come next; it serves this request alone. One that `embeds` has no answer (`max_tokens`
    0) but the hidden state of the prompt's last token. `scope` says with whom the prefix cache is
    shared: requests of one scope find each other's blocks. `extras` are (position, digest) of what stands behind a
    token of the prompt, such as an image, and must be equal for a hit too.

    Requests of different `account`s share the engine fairly, whoever has more of them; of higher `priority` they come
    first. `meter` counts what is used, `thoughts` what of it the answer thinks; it serves this request alone.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    constraint: Constraint | None = None
    embeds: bool = False
    scope: bytes = b""
    extras: tuple[tuple[int, bytes], ...] = ()
    account: int = 0
    priority: int = 0
    meter: Meter | None = None
    thoughts: ThoughtCounter | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token, its bytes, its natural log-probability, and the most likely (token id, log-probability) pairs.

    `logprob` is None for the first token of a prompt, which nothing predicts.
    """

    token: int
    bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token counts. `cached_tokens` of the prompt were found in the prefix cache; the rest were computed.

    Of the `drafted_tokens` guessed and checked, `accepted_tokens` became part of the answer. `reasoning_tokens` of the
    completion were thoughts, if the request has a counter of them.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0


NOTHING = Usage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
"""What a request has used that ended before its prompt was looked at."""

OnEnd = Callable[[Request, Usage, FinishReason], None]
"""Told once of each request that was submitted, when it ends, whoever ends it: what it really used, and why it ended.

Called by the engine's thread as a rule; must be quick, and safe in any thread.
"""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer.

    `marked` is its text and its special tokens, in order; a token that ends the answer is not among them. Texts are
    whole UTF-8: bytes that do not form a character yet wait for the next piece, at most until a special token comes.
    `prompt_logprobs` comes once, in the first delta, when asked for. `finish_reason` and `usage` come once, in the
    last one. `error` says what went wrong when `finish_reason` is "error"; `stopped_by` is the stop text that ended the
    answer, if one did. `cached_tokens` of the prompt came from the prefix cache. `state` (D,) comes in the
    last one of a request that embeds: the hidden state after the final norm, as it is.
    """

    marked: tuple[Marked, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    stopped_by: str | None = None
    cached_tokens: int = 0
    state: NDArray[np.float32] | None = None

    @property
    def text(self) -> str:
        """The text without the special tokens."""
        return "".join([part for part in self.marked if isinstance(part, str)])


def join(deltas: Sequence[Delta]) -> Delta:
    """Consecutive pieces as one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    return Delta(
        marked=tuple(part for delta in deltas for part in delta.marked),
        token_ids=tuple(id for delta in deltas for id in delta.token_ids),
        logprobs=tuple(token for delta in deltas for token in delta.logprobs),
        prompt_logprobs=tuple(token for delta in deltas for token in delta.prompt_logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        error=last.error,
        stopped_by=last.stopped_by,
        cached_tokens=last.cached_tokens,
        state=last.state,
    )


def compact(deltas: Sequence[Delta]) -> Delta:
    """As `join`, with neighbouring texts as one."""

    def runs(marked: Sequence[Marked]) -> Iterator[Marked]:
        for is_text, run in groupby(marked, key=lambda part: type(part) is str):
            if is_text:
                yield "".join(part for part in run if isinstance(part, str))
            else:
                yield from run

    joined = join(deltas)
    return msgspec.structs.replace(joined, marked=tuple(runs(joined.marked)))
