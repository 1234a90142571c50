"""Guesses from the model's own multi-token prediction module, and the upkeep of the module's KV cache.

The module reads pairs: the model's state at position t and the token at t + 1, and its keys for the pair lie in slot t
of a cache layer of its own, under the sequence's block table. So a step's tokens become pairs once the token after them
is known. A prompt's pairs go through the module in the step that read them; an answer's wait in a track until guesses
are asked for, or have become many. No call has more rows than a step may.

A block's key in the prefix cache does not cover the token after the block, on which its last pair depends; a sequence
that goes on differently after a shared block finds one foreign pair there. That costs a guess at most: answers never
depend on the module.

N rows of a step, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.engine.scheduler import Segment, StepPlan
from deepwell.ops.base import BLOCK_TOKENS, Batch
from deepwell.ops.sampling import Chosen

if TYPE_CHECKING:
    from deepwell.engine.runner import BlockTables

MOST_WAITING = 512
"""Rows of states kept while nobody asks for guesses, over all sequences."""


class Predict(Protocol):
    """The module itself: see `Backend.predict`."""

    def __call__(
        self, batch: Batch, x_ND: NDArray[np.float32], again: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...


class Track:
    """States of a sequence's positions from `start` up to `end` that have not been through the module.

    `following` are the tokens from start + 1 on, as far as they are known: all that the states need, or one less.
    `guess` is what the module gave for the last state, a token and its own state x_D, once all have been through.
    """

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.rows: list[NDArray[np.float32]] = []
        self.following: list[int] = []
        self.guess: tuple[int, NDArray[np.float32]] | None = None

    @property
    def waiting(self) -> int:
        return self.end - self.start

    @property
    def is_complete(self) -> bool:
        """Whether the token after the last state is known."""
        return len(self.following) == self.waiting

    def add(self, tokens: Sequence[int], x_ND: NDArray[np.float32], newest: int | None) -> None:
        """The states of `tokens`, which stand from `end` on, and the token after them if it is known."""
        if self.waiting:
            self.following[self.waiting - 1 :] = tokens
        else:
            self.following = list(tokens[1:])
        if newest is not None:
            self.following.append(newest)
        self.rows.append(x_ND)
        self.end += len(tokens)
        self.guess = None

    def take(self, count: int) -> tuple[list[int], NDArray[np.float32]]:
        """The first `count` pairs, which leave the track."""
        x_ND = self.rows[0] if len(self.rows) == 1 else np.concatenate(self.rows)
        tokens, self.following = self.following[:count], self.following[count:]
        self.rows = [x_ND[count:]] if count < len(x_ND) else []
        self.start += count
        return tokens, x_ND[:count]


class DraftHead:
    """Tracks of the sequences that are followed, and which slots of the module's cache hold true pairs."""

    def __init__(self, predict: Predict, tables: BlockTables, blocks: int, most_rows: int) -> None:
        """`most_rows` bounds the rows of one call."""
        self._predict = predict
        self._tables = tables
        self._most_rows = most_rows
        # Leading slots of each block that hold the pairs of the block's present content.
        self._filled = np.zeros(blocks, np.int64)
        self._tracks: dict[str, Track] = {}

    @property
    def followed(self) -> int:
        return len(self._tracks)

    def can_guess(self, id: str) -> bool:
        track = self._tracks.get(id)
        return track is not None and track.is_complete

    def forget(self, id: str) -> None:
        self._tracks.pop(id, None)

    def unknown(self, block: int) -> None:
        """The block has got its content from elsewhere; who can say whether the module has seen it?"""
        self._filled[block] = 0

    def observe(
        self, plan: StepPlan, found: Mapping[str, Chosen], x_ND: NDArray[np.float32] | None, begin: bool
    ) -> None:
        """The plan was carried out: `found` was chosen, x_ND are the states of its rows, if they were taken.

        Without a track that ends where a segment begins, one is begun if `begin` and if all earlier pairs are there.
        """
        row = 0
        for segment in plan.segments:
            chosen = found[segment.id].tokens if segment.id in found else ()
            kept = len(segment.tokens) - segment.drafted + max(0, len(chosen) - 1)
            rows_ND = None if x_ND is None else x_ND[row : row + kept]
            row += len(segment.tokens)
            self._note(segment)
            self._add(segment, kept, rows_ND, chosen[-1] if chosen else None, begin)
        self._advance([s.id for s in plan.segments if s.reads and s.id in self._tracks])

    def catch_up(self) -> None:
        """Put waiting pairs through the module if they have become many."""
        if sum(track.waiting for track in self._tracks.values()) >= min(MOST_WAITING, self._most_rows):
            self._advance(list(self._tracks))

    def guesses(self, wanted: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Up to so many guesses for each sequence that can be guessed for and lacks its newest token alone."""
        asked = {id: count for id, count in wanted.items() if count > 0 and self.can_guess(id)}
        self._advance([id for id in asked if self._tracks[id].waiting], whole=True)
        known = {id: guess for id in asked if (guess := self._tracks[id].guess) is not None}
        said = {id: [token] for id, (token, _) in known.items()}
        states = {id: x_D for id, (_, x_D) in known.items()}
        for index in range(1, max((asked[id] for id in said), default=0)):
            going = [id for id in said if asked[id] > index and self._has_slot(id, index)]
            if not going:
                break
            x_ND = np.stack([states[id] for id in going])
            starts = [self._tracks[id].end - 1 + index for id in going]
            token_L, x_LD = self._run(going, starts, [said[id][-1:] for id in going], x_ND, going, again=True)
            for id, token, x_D in zip(going, token_L, x_LD, strict=True):
                said[id].append(int(token))
                states[id] = x_D
        return {id: tuple(tokens) for id, tokens in said.items()}

    def _note(self, segment: Segment) -> None:
        """The segment's blocks have new content, which the module has not seen."""
        first, last = segment.start // BLOCK_TOKENS, (segment.end - 1) // BLOCK_TOKENS
        blocks = self._tables.blocks(segment.id)[first : last + 1]
        before = min(int(self._filled[blocks[0]]), segment.start % BLOCK_TOKENS)
        self._filled[blocks] = 0
        self._filled[blocks[0]] = before

    def _add(
        self, segment: Segment, kept: int, x_ND: NDArray[np.float32] | None, newest: int | None, begin: bool
    ) -> None:
        track = self._tracks.get(segment.id)
        if track is None or track.end != segment.start:
            self.forget(segment.id)
            if not begin or not self._covered(segment):
                return
            track = self._tracks[segment.id] = Track(segment.start)
        if x_ND is None:
            self.forget(segment.id)
        else:
            track.add(segment.tokens[:kept], x_ND, newest)

    def _advance(self, ids: Sequence[str], whole: bool = False) -> None:
        """Waiting pairs of these sequences through the module, as many as one call may have: all but the last of each,
        which guesses begin from, or with `whole` all, and then its guess is kept."""
        left, going, starts, tokens, rows = self._most_rows, [], [], [], []
        for id in ids:
            track = self._tracks[id]
            count = min(left, track.waiting if whole else track.waiting - 1)
            if count <= 0:
                continue
            left -= count
            starts.append(track.start)
            following, x_ND = track.take(count)
            going.append(id)
            tokens.append(following)
            rows.append(x_ND)
        if not going:
            return
        guessing = [id for id in going if whole and not self._tracks[id].waiting]
        token_L, x_LD = self._run(going, starts, tokens, np.concatenate(rows), guessing, again=False)
        for id, start, following in zip(going, starts, tokens, strict=True):
            self._fill(id, start, start + len(following))
        for id, token, x_D in zip(guessing, token_L, x_LD, strict=True):
            self._tracks[id].guess = int(token), x_D

    def _run(
        self,
        ids: Sequence[str],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        x_ND: NDArray[np.float32],
        guessing: Sequence[str],
        *,
        again: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        segments = [
            Segment(id=id, start=start, tokens=tuple(following), blocks=(), wanted=int(id in guessing))
            for id, start, following in zip(ids, starts, tokens, strict=True)
        ]
        return self._predict(self._tables.batch(segments), np.ascontiguousarray(x_ND), again)

    def _fill(self, id: str, start: int, end: int) -> None:
        """The slots of positions from `start` to `end` hold true pairs now."""
        blocks = self._tables.blocks(id)
        for index in range(start // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
            self._filled[blocks[index]] = min(BLOCK_TOKENS, end - index * BLOCK_TOKENS)

    def _covered(self, segment: Segment) -> bool:
        """Whether the slots of all positions before the segment hold true pairs."""
        blocks = self._tables.blocks(segment.id)
        full, rest = divmod(segment.start, BLOCK_TOKENS)
        whole = self._filled[blocks[:full]]
        return bool((whole == BLOCK_TOKENS).all()) and (not rest or int(self._filled[blocks[full]]) >= rest)

    def _has_slot(self, id: str, index: int) -> bool:
        """Whether the module's pair number `index` behind the last state has a place in the cache."""
        return self._tracks[id].end - 1 + index < len(self._tables.blocks(id)) * BLOCK_TOKENS
