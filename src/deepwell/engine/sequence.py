"""One live request as the scheduler sees it: tokens known, tokens computed, blocks held."""

from __future__ import annotations

from collections.abc import Sequence

from deepwell.engine.blocks import block_key

GONE = -1
"""In a block table: a block that lay out of reach and was given up."""


class SequenceState:
    """`computed` of the `tokens` known are in the cache, in the blocks of `tables`, one block table per cache group.

    `scope` and `extras` enter the keys of its blocks, so that a hit means more than equal token ids: `scope` is who
    may share them, `extras` are (position, digest) of what stands behind a token, such as an image.
    """

    def __init__(
        self,
        id: str,
        prompt: Sequence[int],
        score_prompt: bool,
        *,
        scope: bytes = b"",
        extras: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        self.id = id
        self.prompt_tokens = len(prompt)
        self.tokens = list(prompt)
        self.computed = 0
        # Logits after every position before this one have been taken, or are of no interest.
        self.scored = 0 if score_prompt else len(prompt) - 1
        self.tables: list[list[int]] = []
        self.told: list[int] | None = None
        """Entries of each table that a plan has told; None while it holds nothing."""
        self.cached_tokens: int | None = None
        self._scope, self._extras = scope, sorted(extras)
        self._keys: dict[int, list[bytes]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether it lacks its newest token alone."""
        return self.computed == len(self.tokens) - 1

    def keys(self, group: int, count: int, root: bytes, block_tokens: int) -> list[bytes]:
        """Chain keys of the first `count` full blocks of `block_tokens` tokens, by cache group."""
        keys = self._keys.setdefault(group, [])
        while len(keys) < count:
            start = len(keys) * block_tokens
            end = start + block_tokens
            more = b"" if keys or not self._scope else _framed(0, self._scope)
            more += b"".join(_framed(1 + at - start, what) for at, what in self._extras if start <= at < end)
            keys.append(block_key(keys[-1] if keys else root, self.tokens[start:end], more))
        return keys[:count]


def _framed(place: int, what: bytes) -> bytes:
    """So that no two lists of things read alike when they stand one after the other."""
    return place.to_bytes(4, "little") + len(what).to_bytes(4, "little") + what
