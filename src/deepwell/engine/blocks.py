"""The pools of KV blocks: who holds which, what each full one contains, and which to give up first.

A model has a pool for each of its cache groups, and a sequence a block table in each. What lies farther back than its
later rows can look is given up while it goes on, and a prefix hit is as long as all groups allow.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import lcm
from typing import TYPE_CHECKING

import numpy as np

from deepwell.errors import ConfigError
from deepwell.ops.paging import CacheGroup

if TYPE_CHECKING:
    from deepwell.engine.scheduler import SequenceState

GONE = -1
"""In a block table: a block that lay out of reach and was given up."""


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


class Pools:
    """The block pools of all groups, and the rules that hold over them together."""

    def __init__(self, groups: tuple[CacheGroup, ...], fingerprint: bytes) -> None:
        """Raises ConfigError unless the first group looks back to the beginning, which bounds how long sequences get,
        and the others have blocks for what they look back to."""
        if not groups or groups[0].reach is not None:
            raise ConfigError("the first cache group must look back to the beginning")
        for group in groups:
            if group.reach is not None and group.blocks * group.block_tokens < group.reach + group.block_tokens:
                raise ConfigError(
                    f"{group.blocks} blocks of {group.block_tokens} tokens cannot reach {group.reach} back"
                )
        self.groups = groups
        self.pools = tuple(
            BlockPool(group.blocks, fingerprint + (f" group {index}".encode() if index else b""))
            for index, group in enumerate(groups)
        )
        self._unit = lcm(*(group.block_tokens for group in groups))

    @property
    def capacity(self) -> int:
        """Tokens that one sequence may have at most."""
        return min(g.blocks * g.block_tokens for g in self.groups if g.reach is None)

    def end(self, sequence: SequenceState) -> int:
        """Where the sequence's next tokens must end, so that it could have all their blocks if it were alone."""
        ends = [
            (_first(group, sequence.computed) + group.blocks) * group.block_tokens
            for group in self.groups
            if group.reach is not None
        ]
        return min(ends, default=len(sequence.tokens))

    def empty(self) -> list[list[int]]:
        """The block tables of a sequence that holds nothing."""
        return [[] for _ in self.groups]

    def match(self, sequence: SequenceState, most: int) -> int:
        """Tokens, at most `most`, that begin the sequence and can be taken from every group: a multiple of every
        group's block. Of a group with a reach, only the blocks that the next row looks into need be there."""
        found = most // self._unit * self._unit
        for index, group in enumerate(self.groups):
            if group.reach is None:
                keys = self.keys(sequence, index, found // group.block_tokens)
                known = len(self.pools[index].match(keys)) * group.block_tokens
                found = min(found, known // self._unit * self._unit)
        while found and not all(self._reaches(sequence, index, found) for index in range(len(self.groups))):
            found -= self._unit
        return found

    def _reaches(self, sequence: SequenceState, index: int, tokens: int) -> bool:
        group = self.groups[index]
        if group.reach is None:
            return True
        keys = self.keys(sequence, index, tokens // group.block_tokens)[_first(group, tokens) :]
        return len(self.pools[index].match(keys)) == len(keys)

    def take(self, sequence: SequenceState, tokens: int, upto: int) -> bool:
        """Give the sequence the sealed blocks of its first `tokens` tokens, as found by `match`, and empty ones for
        those before `upto`; False, and nothing taken, if a group has too few. A group with a reach gets its empty
        ones by and by."""
        shared: list[list[int]] = []
        missing: list[int] = []
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            keys = self.keys(sequence, index, tokens // group.block_tokens)[_first(group, tokens) :]
            shared.append(pool.match(keys))
            missing.append(0 if group.reach is not None else _count(group, upto) - tokens // group.block_tokens)
            if missing[-1] > pool.available(shared[-1]):
                return False
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pool.hold(shared[index])
            before = [GONE] * (_first(group, tokens) if tokens else 0)
            sequence.tables[index] = before + shared[index] + pool.allocate(missing[index])
        return True

    def grow(self, sequence: SequenceState, known: int, end: int) -> bool:
        """Blocks for `known` tokens in groups that look back to the beginning, for those before `end` in the others.
        False if a group has none left; what it got by then stays the sequence's."""
        for index, group in enumerate(self.groups):
            table, pool = sequence.tables[index], self.pools[index]
            missing = _count(group, known if group.reach is None else end) - len(table)
            if missing > 0:
                found = min(missing, pool.free)
                table += pool.allocate(found)
                if found < missing:
                    return False
        return True

    def room(self, sequence: SequenceState) -> int:
        """Tokens that the sequence has blocks for."""
        return min(len(t) * g.block_tokens for g, t in zip(self.groups, sequence.tables, strict=True))

    def seal(self, sequence: SequenceState, start: int) -> None:
        """Seal the blocks that positions from `start` to the computed end have filled; give up those out of reach."""
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            table = sequence.tables[index]
            first, full = start // group.block_tokens, sequence.computed // group.block_tokens
            if first < full:
                keys = self.keys(sequence, index, full)
                for number in range(first, full):
                    if table[number] != GONE:
                        pool.seal(table[number], keys[number])
            if group.reach is None:
                continue
            beyond = _first(group, sequence.computed)
            held = beyond
            while held and table[held - 1] != GONE:
                held -= 1
            pool.release(table[held:beyond])
            table[held:beyond] = [GONE] * (beyond - held)

    def release(self, sequence: SequenceState, forget: bool = False) -> None:
        """Give back all that the sequence holds; with `forget`, what it computed is not offered to others."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            held = [block for block in table if block != GONE]
            for block in held if forget else ():
                pool.forget(block)
            pool.release(held)
        sequence.tables = self.empty()

    def keys(self, sequence: SequenceState, index: int, count: int) -> list[bytes]:
        """Chain keys of the sequence's first `count` full blocks in a group."""
        return sequence.keys(index, count, self.pools[index].root, self.groups[index].block_tokens)

    def check_integrity(self, sequences: list[SequenceState]) -> None:
        """Raise AssertionError unless `sequences` account for every block."""
        for index, pool in enumerate(self.pools):
            pool.check_integrity([[block for block in s.tables[index] if block != GONE] for s in sequences])


def _count(group: CacheGroup, tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // group.block_tokens)


def _first(group: CacheGroup, position: int) -> int:
    """The first block that the row at `position`, or a later one, can look into."""
    return 0 if group.reach is None else max(0, position - group.reach + 1) // group.block_tokens
