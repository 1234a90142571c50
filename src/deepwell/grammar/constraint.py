"""What may come next in one answer, beyond what the model would like: what the engine keeps to.

A constraint speaks of tokens that are part of the answer. Tokens that end it are the engine's: they are allowed where
the constraint says that the answer may end.

V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepwell.errors import DeepwellError


class ConstraintError(DeepwellError):
    """A constraint leaves no way to go on."""


class Allowed(msgspec.Struct, frozen=True):
    """What may stand in one place: `mask` has a bit per token, uint32 words from the lowest bit on, None allows all.
    `may_end` is whether the answer may end here."""

    mask: NDArray[np.uint32] | None = None
    may_end: bool = True


class Constraint(Protocol):
    """Of one answer. Its calls come from the engine's thread and must be quick."""

    def allowed(self, draft: Sequence[int]) -> Sequence[Allowed]:
        """For the next place, and for the places after each token of a draft, 1 + len(draft) in all. What stands
        behind a token that is not allowed does not matter."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """The answer has gone on with these tokens, each of which was allowed."""
        ...


class AfterTrigger:
    """Allows what `free` masks, None for everything, until one of the `triggers` was said, and keeps to `inner` from
    then on: free thought, strict answer. The answer may not end before, unless it `may_end`."""

    def __init__(
        self,
        triggers: Collection[int],
        inner: Constraint,
        free: NDArray[np.uint32] | None = None,
        may_end: bool = False,
    ) -> None:
        self._triggers = frozenset(triggers)
        self._inner = inner
        self._free = Allowed(None if free is None else with_tokens(free, self._triggers), may_end)
        self._triggered = False

    def allowed(self, draft: Sequence[int]) -> Sequence[Allowed]:
        free = 0 if self._triggered else self._place(draft)
        return [*[self._free] * free, *(self._inner.allowed(draft[free:]) if free <= len(draft) else ())]

    def accept(self, tokens: Sequence[int]) -> None:
        free = 0 if self._triggered else self._place(tokens)
        self._triggered = free <= len(tokens)
        if tokens[free:]:
            self._inner.accept(tokens[free:])

    def _place(self, tokens: Sequence[int]) -> int:
        """How many of the places before, between and behind `tokens` are free: one more than there are tokens if none
        of them is a trigger."""
        return next((place + 1 for place, token in enumerate(tokens) if token in self._triggers), len(tokens) + 1)


class Unless:
    """Keeps to `inner`, unless the answer begins with one of the tokens `marks`: it then keeps to `other` behind it."""

    def __init__(self, marks: Collection[int], inner: Constraint, other: Constraint) -> None:
        self._marks = frozenset(marks)
        self._inner, self._other = inner, other
        self._chosen: Constraint | None = None

    def allowed(self, draft: Sequence[int]) -> Sequence[Allowed]:
        if self._chosen is not None:
            return self._chosen.allowed(draft)
        marked = bool(draft) and draft[0] in self._marks
        first, *others = self._inner.allowed(() if marked else draft)
        return [self._with_marks(first), *(self._other.allowed(draft[1:]) if marked else others)]

    def accept(self, tokens: Sequence[int]) -> None:
        if self._chosen is None and tokens:
            marked = tokens[0] in self._marks
            self._chosen = self._other if marked else self._inner
            tokens = tokens[1:] if marked else tokens
        if tokens and self._chosen is not None:
            self._chosen.accept(tokens)

    def _with_marks(self, place: Allowed) -> Allowed:
        return place if place.mask is None else Allowed(with_tokens(place.mask, self._marks), place.may_end)


def with_tokens(mask: NDArray[np.uint32], tokens: Iterable[int]) -> NDArray[np.uint32]:
    """A mask that allows these tokens too."""
    wider = mask.copy()
    for id in tokens:
        wider[id // 32] |= np.uint32(1 << id % 32)
    return wider


def masks_of(places: Sequence[Allowed], count: int, ends: Iterable[int], vocab_size: int) -> NDArray[np.uint32] | None:
    """Masks of `count` consecutive places, (places, ceil(V / 32)); `ends` are allowed just where the answer may end.

    None if everything is allowed everywhere. A place that allows nothing can only lie behind a token that is not
    allowed, but for the first. Raises ConstraintError where the first allows nothing, and for places or masks of
    another number or kind.
    """
    if len(places) != count:
        raise ConstraintError(f"what may come next was said for {len(places)} places, and {count} were asked for")
    if all(place.mask is None and place.may_end for place in places):
        return None
    words = -(-vocab_size // 32)
    masks = np.full((len(places), words), 0xFFFFFFFF, np.uint32)
    ids = np.fromiter(ends, np.int64)
    for row, place in zip(masks, places, strict=True):
        if place.mask is not None:
            if place.mask.dtype != np.uint32 or place.mask.shape != (words,):
                raise ConstraintError(f"a mask has {place.mask.dtype} {place.mask.shape}; it must be uint32 ({words},)")
            row[:] = place.mask
        bits = np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32))
        if place.may_end:
            np.bitwise_or.at(row, ids // 32, bits)
        else:
            np.bitwise_and.at(row, ids // 32, ~bits)
    empty = np.flatnonzero(~np.any(masks, axis=1))
    if 0 in empty:
        raise ConstraintError("what may come next allows no token here, nor that the answer ends")
    masks[empty] = 0xFFFFFFFF
    return masks
