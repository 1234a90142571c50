"""The block pool never loses, doubles or misnames a block."""

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepwell.engine.blocks import BlockPool, block_key, root_key

TOKENS = list(range(64))


def test_keys_are_the_documented_hash_chain() -> None:
    root = hashlib.blake2b(b"model", digest_size=32, person=b"deepwell-kv").digest()
    assert root_key(b"model") == root
    data = b"".join(token.to_bytes(4, "little") for token in TOKENS)
    assert block_key(root, TOKENS) == hashlib.blake2b(root + data, digest_size=32).digest()
    assert block_key(block_key(root, TOKENS), TOKENS) != block_key(root, TOKENS)


def test_keys_are_stable_across_processes() -> None:
    code = "from deepwell.engine.blocks import *; print(block_key(root_key(b'm'), list(range(64))).hex())"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert out.stdout.strip() == block_key(root_key(b"m"), TOKENS).hex()


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_another_model_has_other_keys(one: bytes, other: bytes) -> None:
    assert (root_key(one) == root_key(other)) == (one == other)


def test_blocks_without_content_go_first_then_the_longest_unused() -> None:
    pool = BlockPool(4, b"")
    first, second, third, empty = pool.allocate(4)
    pool.seal(first, b"1")
    pool.seal(second, b"2")
    pool.seal(third, b"3")
    pool.release([first, second])  # one sequence: its tail must go before its start
    pool.release([third, empty])
    assert pool.allocate(4) == [empty, second, first, third]
    assert pool.cached == 0


def test_a_used_prefix_is_kept_longer() -> None:
    pool = BlockPool(2, b"")
    old, new = pool.allocate(2)
    pool.seal(old, b"old")
    pool.seal(new, b"new")
    pool.release([old])
    pool.release([new])
    assert pool.match([b"old"]) == [old]
    pool.hold([old])
    pool.release([old])
    assert pool.allocate(1) == [new]
    assert pool.match([b"old"]) == [old]
    assert pool.match([b"new"]) == []


def test_the_first_of_two_equal_blocks_is_shared() -> None:
    pool = BlockPool(3, b"")
    one, two = pool.allocate(2)
    pool.seal(one, b"same")
    pool.seal(two, b"same")
    assert pool.match([b"same", b"missing", b"same"]) == [one]
    pool.release([one, two])
    pool.check_integrity([])
    assert (pool.free, pool.cached) == (3, 1)


def test_integrity_check_sees_a_leak_and_a_double_hold() -> None:
    pool = BlockPool(2, b"")
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="holders"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match="holders"):
        pool.check_integrity([[block], [block]])
    pool.check_integrity([[block]])


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 block"):
        BlockPool(0, b"")


class PoolMachine(RuleBasedStateMachine):
    """Sequences that share prefixes come, grow and go; a dict of contents says what each sealed block must hold."""

    @initialize(blocks=st.integers(1, 6))
    def begin(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, b"m")
        self.tables: list[list[int]] = []
        self.keys: list[list[bytes]] = []
        self.content: dict[int, bytes] = {}

    @rule(names=st.lists(st.sampled_from("ab"), min_size=1, max_size=3))
    def enter(self, names: list[str]) -> None:
        keys = ["".join(names[: end + 1]).encode() for end in range(len(names))]
        hits = self.pool.match(keys)
        for key, block in zip(keys, hits, strict=False):
            assert self.content[block] == key
        missing = len(keys) - len(hits)
        free, unheld = self.pool.free, self.pool.available(hits)
        if missing > unheld:
            return
        self.pool.hold(hits)
        assert self.pool.free == unheld <= free
        fresh = self.pool.allocate(missing)
        for key, block in zip(keys[len(hits) :], fresh, strict=True):
            self.content[block] = key
            self.pool.seal(block, key)
        self.tables.append(hits + fresh)
        self.keys.append(keys)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), forget=st.booleans())
    def leave(self, data: st.DataObject, forget: bool) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, keys = self.tables.pop(index), self.keys.pop(index)
        if forget:
            for block in table:
                self.pool.forget(block)
        self.pool.release(table)
        if forget:
            assert not {*self.pool.match(keys)} & {*table}

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity(self.tables)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
