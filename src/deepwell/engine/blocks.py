"""The pool of KV blocks: who holds which, what each full one contains, and which to give up first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np


def root_key(fingerprint: bytes) -> bytes:
    """Key before the first block. `fingerprint` names the model and the layout of its cache."""
    return blake2b(fingerprint, digest_size=32, person=b"deepwell-kv").digest()


def block_key(parent: bytes, tokens: Sequence[int], more: bytes = b"") -> bytes:
    """Key of a full block after the block with key `parent`: the same in every process and on every machine.

    `more` is what its content depends on besides the tokens: whose it is, the images that some tokens stand for.
    """
    return blake2b(parent + np.asarray(tokens, "<i4").tobytes() + more, digest_size=32).digest()


class BlockPool:
    """Blocks by number, each held by any number of sequences, free, or free but still worth reusing.

    A block that is full and computed is *sealed* under its key; from then on it never changes while it keeps the key,
    so sequences share it. The free list is also the LRU: blocks without content come first, then sealed ones from the
    longest unused; `allocate` takes from the front and thereby forgets. Nothing here reads a clock or does I/O.
    """

    def __init__(self, blocks: int, fingerprint: bytes) -> None:
        if blocks < 1:
            raise ValueError(f"a block pool needs at least 1 block, got {blocks}")
        self.blocks = blocks
        self.root = root_key(fingerprint)
        self._holders = [0] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._key_of: dict[int, bytes] = {}
        self._sealed: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds, sealed ones included."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Sealed blocks, held or free."""
        return len(self._sealed)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The sealed blocks under the first `keys` of a sequence, up to the first that is missing."""
        blocks: list[int] = []
        for key in keys:
            block = self._sealed.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def available(self, shared: Iterable[int]) -> int:
        """Free blocks that would be left for `allocate` once `shared` are held."""
        return len(self._free) - sum(self._holders[block] == 0 for block in shared)

    def hold(self, blocks: Iterable[int]) -> None:
        """Take a share in sealed blocks found by `match`."""
        for block in blocks:
            self._holders[block] += 1
            self._free.pop(block, None)

    def allocate(self, count: int) -> list[int]:
        """`count` empty blocks, held once. The longest unused content is forgotten. Never more than `free`."""
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.forget(block)
            self._holders[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give back the blocks of a sequence, in its order. The tail of a prefix is forgotten before its start."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._key_of)

    def seal(self, block: int, key: bytes) -> None:
        """Declare a held block full and computed. If another has the same content, that one stays the shared."""
        if self._sealed.setdefault(key, block) == block:
            self._key_of[block] = key

    def forget(self, block: int) -> None:
        """Offer a block's content to nobody any more."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._sealed[key]
            if self._holders[block] == 0 and block in self._free:
                self._free.move_to_end(block, last=False)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless `tables`, the block lists of all live sequences, account for every block."""
        held = Counter(block for table in tables for block in table)
        counted = {block: count for block, count in enumerate(self._holders) if count}
        if counted != dict(held):
            raise AssertionError(f"holders {counted} differ from the block tables {dict(held)}")
        if set(self._free) != set(range(self.blocks)) - set(held):
            raise AssertionError(f"free blocks {sorted(self._free)} overlap or miss those of the block tables")
        if {block: key for key, block in self._sealed.items()} != self._key_of:
            raise AssertionError("keys and sealed blocks differ")
        order = [block in self._key_of for block in self._free]
        if order != sorted(order):
            raise AssertionError("a block without content would be reused after one with content")
