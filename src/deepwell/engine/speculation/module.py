"""Guesses from the model's own multi-token prediction module, and the upkeep of the module's KV cache.

The module reads pairs: the model's state at position t and the token at t + 1, and its keys for the pair lie in slot t
of a cache layer of its own, under the sequence's block table. So a step's tokens become pairs once the token after them
is known, which is when the step is over. Pairs wait in a track per sequence and go through the module together.

A block's key in the prefix cache does not cover the token after the block, on which its last pair depends; a sequence
that goes on differently after a shared block finds one foreign pair there. That costs a guess at most: answers never
depend on the module.

N rows of a step, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepwell.engine.runner import Further
from deepwell.engine.scheduler import Segment, SequenceState, StepPlan
from deepwell.ops.base import BLOCK_TOKENS

MOST_WAITING = 512
"""Rows of states kept while nobody asks for guesses, over all sequences."""


class Track:
    """States x_ND of the last positions of a sequence, those from `start` on, not yet through the module."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.rows: list[NDArray[np.float32]] = []
        self.end = start

    def add(self, x_ND: NDArray[np.float32]) -> None:
        self.rows.append(x_ND)
        self.end += len(x_ND)


class FurtherDrafter:
    """Tracks of the live sequences, and which slots of the module's cache hold true pairs."""

    def __init__(self, model: Further, blocks: int) -> None:
        self._model = model
        # Leading slots of each block that hold the pairs of the block's present content.
        self._filled = np.zeros(blocks, np.int64)
        self._tracks: dict[str, Track] = {}

    @property
    def tracks(self) -> int:
        return len(self._tracks)

    def tracked(self, sequence: SequenceState) -> bool:
        """Whether every pair of the sequence is known or waits, so that it can be guessed for."""
        track = self._tracks.get(sequence.id)
        return track is not None and track.end == sequence.computed

    def forget(self, id: str) -> None:
        self._tracks.pop(id, None)

    def observe(self, segment: Segment, kept: int, x_ND: NDArray[np.float32] | None, begin: bool) -> None:
        """A segment was computed and its first `kept` tokens stay; x_ND are the states of its rows.

        Without a track that ends where the segment begins, one is begun if `begin` and if all earlier pairs are there.
        """
        first = segment.start // BLOCK_TOKENS
        filled = min(int(self._filled[segment.blocks[first]]), segment.start % BLOCK_TOKENS)
        for block in segment.blocks[first:]:
            self._filled[block] = filled
            filled = 0
        track = self._tracks.get(segment.id)
        if track is None or track.end != segment.start:
            self.forget(segment.id)
            if not begin or not self._covered(segment.blocks, segment.start):
                return
            track = self._tracks[segment.id] = Track(segment.start)
        if x_ND is None:
            self.forget(segment.id)
        else:
            track.add(x_ND[:kept])

    def catch_up(self, sequences: Sequence[SequenceState]) -> None:
        """Put waiting pairs through the module if they have become many."""
        if sum(track.end - track.start for track in self._tracks.values()) >= MOST_WAITING:
            self._advance([s for s in sequences if self.tracked(s)])

    def drafts(self, wanted: Sequence[tuple[SequenceState, int]]) -> dict[str, tuple[int, ...]]:
        """Up to so many guesses for each tracked sequence that lacks its newest token alone."""
        asked = [(s, n) for s, n in wanted if n > 0 and self.tracked(s)]
        sequences = [s for s, _ in asked]
        if not sequences:
            return {}
        token_S, x_SD = self._advance(sequences)
        guesses = {s.id: [int(token)] for s, token in zip(sequences, token_S, strict=True)}
        for index in range(1, max(n for _, n in asked)):
            rows = [i for i, (s, n) in enumerate(asked) if n > index and _has_slot(s, s.computed - 1 + index)]
            if not rows:
                break
            going = [sequences[i] for i in rows]
            latest = [guesses[s.id][-1:] for s in going]
            starts = [s.computed - 1 + index for s in going]
            token_S, x_SD[rows] = self._predict(going, starts, latest, x_SD[rows], again=True)
            for s, token in zip(going, token_S, strict=True):
                guesses[s.id].append(int(token))
        return {id: tuple(guess) for id, guess in guesses.items()}

    def _advance(self, sequences: Sequence[SequenceState]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All waiting pairs of `sequences` through the module: its guess and its own state after each one's last."""
        tracks = [self._tracks[s.id] for s in sequences]
        following = [s.tokens[t.start + 1 : t.end + 1] for s, t in zip(sequences, tracks, strict=True)]
        x_ND = np.concatenate([rows for track in tracks for rows in track.rows])
        found = self._predict(sequences, [track.start for track in tracks], following, x_ND)
        for sequence, track in zip(sequences, tracks, strict=True):
            for index in range(track.start // BLOCK_TOKENS, (track.end - 1) // BLOCK_TOKENS + 1):
                self._filled[sequence.blocks[index]] = min(BLOCK_TOKENS, track.end - index * BLOCK_TOKENS)
            # The last state stays: guesses are asked for again when a step was planned but not carried out.
            track.rows, track.start = [track.rows[-1][-1:]], track.end - 1
        return found

    def _predict(
        self,
        sequences: Sequence[SequenceState],
        starts: Sequence[int],
        tokens: Sequence[Sequence[int]],
        x_ND: NDArray[np.float32],
        again: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        segments = tuple(
            Segment(
                id=s.id,
                start=start,
                tokens=tuple(following),
                blocks=tuple(s.blocks[: (start + len(following) - 1) // BLOCK_TOKENS + 1]),
                wanted=1,
            )
            for s, start, following in zip(sequences, starts, tokens, strict=True)
        )
        logits_SV, x_SD = self._model.predict(StepPlan(segments).batch(), x_ND, again)
        return logits_SV.argmax(axis=1), x_SD

    def _covered(self, blocks: Sequence[int], end: int) -> bool:
        """Whether the slots of all positions before `end` hold true pairs."""
        full, rest = divmod(end, BLOCK_TOKENS)
        whole = self._filled[list(blocks[:full])]
        return bool((whole == BLOCK_TOKENS).all()) and (not rest or int(self._filled[blocks[full]]) >= rest)


def _has_slot(sequence: SequenceState, position: int) -> bool:
    return position < len(sequence.blocks) * BLOCK_TOKENS
