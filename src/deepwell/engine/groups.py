"""The block pools of a model's cache groups, and the rules that hold over them together.

A sequence has one block table per group. What lies farther back than its later rows can look is given up while it goes
on, and a prefix hit is as long as all groups allow.
"""

from __future__ import annotations

from math import lcm

from deepwell.engine.blocks import BlockPool
from deepwell.engine.sequence import GONE, SequenceState
from deepwell.errors import ConfigError
from deepwell.ops.paging import CacheGroup


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
            (group.first(sequence.computed) + group.blocks) * group.block_tokens
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
        keys = self.keys(sequence, index, tokens // group.block_tokens)[group.first(tokens) :]
        return len(self.pools[index].match(keys)) == len(keys)

    def take(self, sequence: SequenceState, tokens: int, upto: int) -> bool:
        """Give the sequence the sealed blocks of its first `tokens` tokens, as found by `match`, and empty ones for
        those before `upto`; False, and nothing taken, if a group has too few. A group with a reach gets its empty
        ones by and by."""
        shared: list[list[int]] = []
        missing: list[int] = []
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            keys = self.keys(sequence, index, tokens // group.block_tokens)[group.first(tokens) :]
            shared.append(pool.match(keys))
            missing.append(0 if group.reach is not None else group.count(upto) - tokens // group.block_tokens)
            if missing[-1] > pool.available(shared[-1]):
                return False
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            pool.hold(shared[index])
            before = [GONE] * (group.first(tokens) if tokens else 0)
            sequence.tables[index] = before + shared[index] + pool.allocate(missing[index])
        return True

    def grow(self, sequence: SequenceState, known: int, end: int) -> bool:
        """Blocks for `known` tokens in groups that look back to the beginning, for those before `end` in the others.
        False if a group has none left; what it got by then stays the sequence's."""
        for index, group in enumerate(self.groups):
            table, pool = sequence.tables[index], self.pools[index]
            missing = group.count(known if group.reach is None else end) - len(table)
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
            beyond = group.first(sequence.computed)
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
